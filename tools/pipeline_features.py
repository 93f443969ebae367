"""Prove step execution and CFG parallelism of pipelines in vLLM-Omni.

    python tools/pipeline_features.py [--python .venv-omni/bin/python] [--only NAME …] [--resume]

Each pipeline with a tiny checkpoint is converted for vllm-omni. One process runs a request whole, and two requests of
different step counts in turns, by the engine's own step scheduler; then two ranks (gloo, on the CPU) run the request
with a branch of its guidance each. Adds to ``porter/parity/data/features.json``; the page is made by
``tools/feature_table.py --table``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from porter.omni.rendezvous import free_port

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "porter" / "parity" / "data" / "features.json"
BOUND = 1e-4
# Pipelines between two notes of what was found.
TOGETHER = 16
# What is proven here; tools/native_features.py proves the rest.
PROVEN = ("cfg_parallel", "step_execution")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=str(ROOT / ".venv-omni" / "bin" / "python"), help="with vllm-omni")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--resume", action="store_true", help="leave out what was proven for the plan of today")
    args = parser.parse_args()
    from porter.emit.write import write_ports
    from porter.parity.spec import available
    from porter.port import Converter
    from porter.source import SourceTree
    from porter.targets import get_target

    converter = Converter(SourceTree(None), get_target("vllm-omni"))
    names = args.only or available()
    for start in range(0, len(names), TOGETHER):
        ports = [converter.port(name) for name in names[start : start + TOGETHER]]
        ports = [port for port in ports if plans(port) and not (args.resume and is_proven(port))]
        if not ports:
            continue
        with tempfile.TemporaryDirectory(prefix="porter-features-") as folder:
            write_ports(Path(folder) / "ports", ports)
            prove(Path(folder), args.python, ports)


def is_proven(port: Any) -> bool:
    """Whether every plan of a port was run, as it is today."""
    held = read()["pipelines"].get(port.name, {})
    return all(held.get(name, {}).get("fingerprint") == plan for name, plan in plans(port).items())


def plans(port: Any) -> dict[str, str]:
    """What is to be proven of a port, with the fingerprint of each plan."""
    return {name: plan for name, plan in port.plans.items() if name in PROVEN}


def prove(work: Path, python: str, ports: list[Any]) -> None:
    """Run some ports and add what was found to the evidence."""
    names = [port.name for port in ports]
    (work / "jobs.json").write_text(json.dumps(names))
    start(work, python, "one", 0).wait()
    (work / "jobs.json").write_text(json.dumps([port.name for port in ports if "cfg_parallel" in port.plans]))
    port_number = free_port()
    for process in [start(work, python, "cfg", rank, port_number) for rank in (0, 1)]:
        process.wait()
    alone, shared = results(work, "one"), results(work, "cfg")
    held = read()
    for port in ports:
        entry = held["pipelines"].setdefault(port.name, {})
        for name, plan in plans(port).items():
            found = (shared if name == "cfg_parallel" else alone).get(port.name, {"error": "was not run"})
            together = found.get("collectives") if name == "cfg_parallel" else found.get("steps_shared")
            passed = found.get("relative", 1.0) <= BOUND and bool(together)
            entry[name] = {"fingerprint": plan, "passed": passed, **found}
            print(port.name, name, found, flush=True)
    held["pipelines"] = dict(sorted(held["pipelines"].items()))
    EVIDENCE.write_text(json.dumps(held, indent=1) + "\n")


def read() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(EVIDENCE.read_text())
    held.setdefault("pipelines", {})
    return held


def start(work: Path, python: str, mode: str, rank: int, port: int = 0) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "GLOO_SOCKET_IFNAME": "lo",
        "PORTER_UNVERIFIED": "1",
    }
    command = [python, "-m", "porter.omni.turns", str(work), "--mode", mode, "--rank", str(rank)]
    command += ["--port", str(port)]
    with (work / f"{mode}.{rank}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def results(work: Path, mode: str) -> dict[str, dict[str, Any]]:
    log = work / f"{mode}.0.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    found = {}
    for entry in map(json.loads, lines):
        found[entry.pop("pipeline")] = entry
    return found


if __name__ == "__main__":
    sys.exit(main())
