"""Processes of one machine that share a model in vLLM-Omni: how they are started, and where they meet."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    # What the caller has put before its packages is before those of the ranks too: another diffusers, say.
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "GLOO_SOCKET_IFNAME": "lo",
}


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    python: str, module: str, work: Path, mode: str, ranks: int, *arguments: str, **environment: str
) -> list[dict[str, Any]]:
    """Run a module of porter once for each rank; what the first rank noted of its jobs, nothing if it never began.

    Args:
        python: the interpreter, with vllm-omni.
        module: ``porter.omni.ranks``, or another that takes ``WORK --mode --rank --port`` and writes
            ``WORK/<mode>.<rank>.jsonl``.
        work: holds the jobs; what ranks print goes to ``<mode>.<rank>.log`` in it.
        mode: of the module.
        ranks: number of processes.
        arguments: of the module, besides.
        environment: variables, besides.
    """
    for notes in work.glob(f"{mode}.*.jsonl"):
        notes.unlink()
    command = [python, "-m", module, str(work), "--mode", mode, "--port", str(free_port()), *arguments]
    processes = []
    for rank in range(ranks):
        with (work / f"{mode}.{rank}.log").open("ab") as log:
            started = subprocess.Popen(
                [*command, "--rank", str(rank)], env=os.environ | ENVIRONMENT | environment, stdout=log, stderr=log
            )
        processes.append(started)
    for process in processes:
        process.wait()
    notes = work / f"{mode}.0.jsonl"
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.is_file() else []
