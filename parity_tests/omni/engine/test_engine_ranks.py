"""A model on two ranks of the engine computes what it computes on one, and the ranks share the work."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from porter.model_port import ModelPort, build_model, find_model, write_models
from porter.source import SourceTree
from porter.targets import get_target

ROOT = Path(__file__).resolve().parents[3]
MODELS = ("FluxTransformer2DModel", "WanTransformer3DModel")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ports of the models, and what they give on one rank."""
    folder = tmp_path_factory.mktemp("ranks")
    tree, target = SourceTree(None), get_target("vllm-omni")
    for name in MODELS:
        text, _ = build_model(tree, target, find_model(tree, name))
        write_models(folder / "ports", [ModelPort(name, name, text)])
    (folder / "jobs.json").write_text(json.dumps({"one": MODELS, "tp": MODELS, "sp": MODELS, "wide": []}))
    run(folder, "one", 1)
    return folder


def run(work: Path, mode: str, ranks: int) -> dict[str, dict]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "porter.omni.ranks", str(work), "--mode", mode, "--port", port]
    command += ["--world", str(ranks)]
    processes = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(ranks)]
    assert [process.wait(timeout=600) for process in processes] == [0] * ranks
    entries = map(json.loads, (work / f"{mode}.0.jsonl").read_text().splitlines())
    return {entry["model"]: entry for entry in entries}


@pytest.mark.parametrize("mode", ["tp", "sp"])
def test_two_ranks_compute_what_one_does(work, mode):
    for name, entry in run(work, mode, 2).items():
        assert "error" not in entry, (name, entry)
        assert entry["relative"] <= 1e-4
        assert sum(entry["collectives"].values()) > 0
        if mode == "tp":
            assert entry["split"] > 0
            assert entry["share"] < 0.9
        else:
            assert entry["hooked"]
