"""Prove what ports of pipelines do in vLLM-Omni: turns, guidance on two ranks, Cache-DiT, batches, held results.

    python tools/pipeline_features.py [--python .venv-omni/bin/python] [--features NAME …] [--only NAME …] [--resume]

Each pipeline with a tiny checkpoint is converted for vllm-omni and run in the engine's worker on the CPU:

- step_execution: a request whole, and two of different step counts in turns, by the engine's own step scheduler;
- cfg_parallel: the same request on two ranks (gloo), with a branch of its guidance each;
- cache_dit: with a cache that never fills (equal to none), and one that skips (blocks run less often);
- request_batch: two requests together, as each alone;
- hoisting: a request that holds results over its steps, as one that computes all in each step.

Classes that the engine's diffusers lacks are proven with another one in its place, which ``PYTHONPATH`` names
(``pip install --no-deps --target DIR diffusers==…``).

Adds to ``porter/parity/data/features.json``; the page is made by ``tools/feature_table.py --table``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porter.omni.rendezvous import ROOT, run_ranks

EVIDENCE = ROOT / "porter" / "parity" / "data" / "features.json"
# Pipelines between two notes of what was found.
TOGETHER = 32


@dataclass(frozen=True)
class Proof:
    """How a feature is proven.

    Attributes:
        mode: of ``porter.omni.prove``.
        bound: on the largest difference, as a part of the result's scale.
        shared: whether the work was really shared or saved, from what the run noted.
    """

    mode: str
    bound: float
    shared: Callable[[dict[str, Any]], bool]


PROOFS = {
    "step_execution": Proof("one", 0.0, lambda found: bool(found.get("steps_shared"))),
    "cfg_parallel": Proof("cfg", 1e-4, lambda found: bool(found.get("collectives"))),
    "cache_dit": Proof("cache", 0.0, lambda found: found["blocks"][-1] < found["blocks"][0]),
    "hoisting": Proof("held", 0.0, lambda found: found["used"] > 0),
    "request_batch": Proof("batch", 1e-5, lambda found: found["calls"][-1] < found["calls"][0]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=str(ROOT / ".venv-omni" / "bin" / "python"), help="with vllm-omni")
    parser.add_argument("--features", nargs="+", default=list(PROOFS), choices=list(PROOFS), metavar="NAME")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--resume", action="store_true", help="leave out what was run with the plan of today")
    args = parser.parse_args()
    from porter.emit.write import write_ports
    from porter.facts.evidence import as_if_untried
    from porter.parity.spec import available
    from porter.port import Converter
    from porter.source import SourceTree
    from porter.targets import get_target

    converter = Converter(SourceTree(None), get_target("vllm-omni"))
    names = args.only or available()
    for start in range(0, len(names), TOGETHER):
        with as_if_untried("pipelines"):
            ports = [converter.port(name) for name in names[start : start + TOGETHER]]
        held = json.loads(EVIDENCE.read_text())["pipelines"] if args.resume else {}
        due = {
            feature: [port for port in ports if feature in port.plans and not was_run(held, port, feature)]
            for feature in args.features
        }
        with tempfile.TemporaryDirectory(prefix="porter-features-") as folder:
            write_ports(Path(folder) / "ports", ports)
            for feature, wanted in due.items():
                if wanted:
                    prove(Path(folder), args.python, feature, wanted)


def was_run(held: dict[str, Any], port: Any, feature: str) -> bool:
    """Whether evidence holds a run of a plan as it is today."""
    return bool(held.get(port.name, {}).get(feature, {}).get("fingerprint") == port.plans[feature])


def prove(work: Path, python: str, feature: str, ports: list[Any]) -> None:
    """Run some ports and add what was found to the evidence."""
    found = run(work, python, PROOFS[feature].mode, [port.name for port in ports])
    held = json.loads(EVIDENCE.read_text())
    for port in ports:
        entry = found.get(port.name, {"error": "was not run"})
        proof = PROOFS[feature]
        passed = "error" not in entry and entry.get("relative", 1.0) <= proof.bound and proof.shared(entry)
        kept = {"fingerprint": port.plans[feature], "passed": passed, **entry}
        held["pipelines"].setdefault(port.name, {})[feature] = kept
        print(port.name, feature, entry, flush=True)
    held["pipelines"] = dict(sorted(held["pipelines"].items()))
    EVIDENCE.write_text(json.dumps(held, indent=1) + "\n")


def run(work: Path, python: str, mode: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """How pipelines went in a mode; ``cfg`` has two processes, and compares with what ``one`` left."""
    alone = [name for name in names if not (work / f"{name}.pt").is_file()]
    if mode == "cfg" and alone:
        run(work, python, "one", alone)
    (work / "jobs.json").write_text(json.dumps(names))
    ranks = 2 if mode == "cfg" else 1
    entries = run_ranks(python, "porter.omni.prove", work, mode, ranks, PORTER_UNVERIFIED="1")
    return {entry.pop("pipeline"): entry for entry in entries}


if __name__ == "__main__":
    sys.exit(main())
