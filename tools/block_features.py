"""Prove what vLLM-Omni makes of the repeated blocks of models: regional compilation, layer-wise offload, HSDP.

    python tools/block_features.py [--python .venv-omni/bin/python] [--only CLASS …] [--resume]

Every transformer and controlnet class with a stored small configuration is converted for vllm-omni and run on the CPU
by ``porter.omni.blocks``, which applies the engine's own functions: results are compared with those of the model as it
is, on one rank. Adds to ``porter/parity/data/features.json``; the page is made by ``tools/feature_table.py --table``.
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

from feature_table import EVIDENCE, convert

from porter.omni.rendezvous import ROOT, run_ranks

# Models between two notes of what was found.
TOGETHER = 28


@dataclass(frozen=True)
class Proof:
    """How a feature is proven.

    Attributes:
        mode: of ``porter.omni.blocks``.
        bound: on the largest difference, as a part of the result's scale.
        done: whether the engine really did it, from what the run noted.
    """

    mode: str
    bound: float
    done: Callable[[dict[str, Any]], bool]


PROOFS = {
    "regional_compile": Proof("blocks", 1e-6, lambda found: 0 < found["calls"] == found["in_graph"]),
    "layerwise_offload": Proof(
        "blocks", 0.0, lambda found: 0 < found["calls"] == found["emptied"] and found["most"] < found["blocks"]
    ),
    "hsdp": Proof("hsdp", 1e-6, lambda found: found["share"] < 0.75 and bool(found["collectives"])),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=str(ROOT / ".venv-omni" / "bin" / "python"), help="with vllm-omni")
    parser.add_argument("--only", nargs="+", default=None, metavar="CLASS")
    parser.add_argument("--resume", action="store_true", help="leave out what was run with the plan of today")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="porter-blocks-") as folder:
        plans = convert(Path(folder), args.only)
        held = json.loads(EVIDENCE.read_text())["models"] if args.resume else {}
        due = [name for name in sorted(plans) if not was_run(held.get(name, {}), plans[name])]
        for start in range(0, len(due), TOGETHER):
            prove(Path(folder), args.python, plans, due[start : start + TOGETHER])


def was_run(held: dict[str, Any], plans: dict[str, Any]) -> bool:
    """Whether evidence holds runs of the plans of a model as they are today."""
    return all(
        held.get(name, {}).get("fingerprint") == plans[name]["fingerprint"] for name in PROOFS if has(plans, name)
    )


def has(plans: dict[str, Any], feature: str) -> bool:
    return bool(plans[feature]["fingerprint"])


def prove(work: Path, python: str, plans: dict[str, Any], names: list[str]) -> None:
    """Run some models and add what was found to the evidence."""
    (work / "jobs.json").write_text(json.dumps({"blocks": names, "hsdp": names}))
    found = {
        mode: {entry["model"]: entry for entry in run_ranks(python, "porter.omni.blocks", work, mode, ranks, *world)}
        for mode, ranks, world in (("blocks", 1, ()), ("hsdp", 2, ("--world", "2")))
    }
    held = json.loads(EVIDENCE.read_text())
    for name in names:
        for feature, proof in PROOFS.items():
            if not has(plans[name], feature):
                continue
            run = found[proof.mode].get(name, {"error": "was not run"})
            entry = {"error": run["error"]} if "error" in run else {"case": run["case"], **run[feature]}
            passed = "error" not in entry and entry["relative"] <= proof.bound and proof.done(entry)
            kept = {"fingerprint": plans[name][feature]["fingerprint"], "passed": passed, **entry}
            held["models"].setdefault(name, {})[feature] = kept
            print(name, feature, passed, entry, flush=True)
    held["models"] = dict(sorted(held["models"].items()))
    EVIDENCE.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
