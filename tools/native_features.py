"""Prove Cache-DiT and batches of requests in vLLM-Omni.

    python tools/native_features.py [--python .venv-omni/bin/python] [--only NAME …] [--resume]

Each pipeline with a tiny checkpoint is converted for vllm-omni and run in the engine's worker on the CPU: with a cache
that never fills (equal to none) and one that skips (blocks run less often), and two requests together (as each alone).
Adds to ``porter/parity/data/features.json``.
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

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "porter" / "parity" / "data" / "features.json"
# Feature: the module that runs it, the file that it writes.
MODULES = {"cache_dit": ("porter.omni.cached", "cache"), "request_batch": ("porter.omni.batched", "batch")}
# A batch adds up in another order.
BOUND = {"cache_dit": 0.0, "request_batch": 1e-5}
# Pipelines of one process: a crash loses no more.
TOGETHER = 8


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
        with tempfile.TemporaryDirectory(prefix="porter-features-") as folder:
            write_ports(Path(folder) / "ports", ports)
            for feature in MODULES:
                due = [
                    port for port in ports if feature in port.plans and not (args.resume and is_proven(port, feature))
                ]
                if due:
                    prove(Path(folder), args.python, due, feature)


def is_proven(port: Any, feature: str) -> bool:
    """Whether the plan of today was run."""
    held = read()["pipelines"].get(port.name, {}).get(feature, {})
    return bool(held.get("fingerprint") == port.plans[feature])


def prove(work: Path, python: str, ports: list[Any], feature: str) -> None:
    """Run some ports and add what was found to the evidence."""
    module, log = MODULES[feature]
    (work / "jobs.json").write_text(json.dumps([port.name for port in ports]))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with (work / f"{log}.log").open("ab") as output:
        subprocess.run([python, "-m", module, str(work)], env=environment, stdout=output, stderr=output, check=False)
    file = work / f"{log}.jsonl"
    found = {entry.pop("pipeline"): entry for entry in map(json.loads, file.read_text().splitlines())}
    add({port.name: found.get(port.name, {"error": "was not run"}) for port in ports}, ports, feature)


def add(found: dict[str, dict[str, Any]], ports: list[Any], feature: str) -> None:
    """Add results to the evidence; a feature passed if nothing differs and the work was really less."""
    held = read()
    for port in ports:
        entry = found[port.name]
        counts = entry.get("blocks") or entry.get("calls") or [0]
        passed = entry.get("relative", 1.0) <= BOUND[feature] and counts[-1] < counts[0]
        held["pipelines"].setdefault(port.name, {})[feature] = {
            "fingerprint": port.plans[feature],
            "passed": passed,
            **entry,
        }
        print(port.name, feature, entry, flush=True)
    held["pipelines"] = dict(sorted(held["pipelines"].items()))
    EVIDENCE.write_text(json.dumps(held, indent=1) + "\n")


def read() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(EVIDENCE.read_text())
    held.setdefault("pipelines", {})
    return held


if __name__ == "__main__":
    sys.exit(main())
