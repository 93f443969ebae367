"""What the engine makes of repeated blocks changes no result: compiled, offloaded one by one, on two ranks (HSDP)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from porter.model_port import ModelPort, build_model, find_model, write_models
from porter.omni.rendezvous import run_ranks
from porter.source import SourceTree
from porter.targets import get_target

# Blocks of two kinds; three lists of blocks of one kind.
MODELS = ("FluxTransformer2DModel", "Lumina2Transformer2DModel")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    tree, target = SourceTree(None), get_target("vllm-omni")
    for name in MODELS:
        text, _ = build_model(tree, target, find_model(tree, name))
        write_models(folder / "ports", [ModelPort(name, name, text)])
    (folder / "jobs.json").write_text(json.dumps({"blocks": MODELS, "hsdp": MODELS}))
    return folder


def test_blocks_are_compiled_offloaded_and_sharded_by_the_engine(work):
    alone = {entry["model"]: entry for entry in run_ranks(sys.executable, "porter.omni.blocks", work, "blocks", 1)}
    for name in MODELS:
        compiled, away = alone[name]["regional_compile"], alone[name]["layerwise_offload"]
        assert compiled["relative"] <= 1e-6 and 0 < compiled["calls"] == compiled["in_graph"], compiled
        assert compiled["breaks"] == 0
        assert away["relative"] == 0 < away["calls"] == away["emptied"] and away["most"] < away["blocks"], away
    ranks = run_ranks(sys.executable, "porter.omni.blocks", work, "hsdp", 2, "--world", "2")
    for entry in ranks:
        found = entry["hsdp"]
        assert found["relative"] <= 1e-6 and found["share"] < 0.75 and found["collectives"], entry
