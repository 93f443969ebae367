"""Plant the two known bugs that show on several ranks only, and see that two ranks of vLLM-Omni do not pass with them.

    python tools/rank_faults.py [--python .venv-omni/bin/python] [--work DIR]

Each model runs alone on one process without a fault; then two ranks (gloo, on the CPU) run it with the fault, from the
same weights and inputs, and are held to the bound of ``tools/feature_table.py``. Writes
``porter/parity/data/rank_faults.json``, which ``tools/mutation_table.py --table`` puts on its page.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porter.omni.rendezvous import ROOT

sys.path.insert(0, str(Path(__file__).resolve().parent))
from feature_table import BOUND, convert, run_mode

RESULTS = ROOT / "porter" / "parity" / "data" / "rank_faults.json"


@dataclass(frozen=True)
class Fault:
    """A change of a port's text, and what the ranks share when it shows."""

    bug: int
    model: str
    mode: str
    before: str
    after: str


def _contiguous(model: str) -> Fault:
    """A row-parallel layer takes the columns as they lie, though its input is one part of attention and one of MLP."""
    return Fault(
        10, model, "tp", "parts = [part.chunk(ranks, dim=1) for part in weight.split(self.input_sizes, dim=1)]",
        "parts = [weight.chunk(ranks, dim=1)]",
    )  # fmt: skip


def _unmasked(model: str) -> Fault:
    """Where ranks share a sequence, its padding is attended to."""
    return Fault(
        11, model, "sp", "self.layer(query, key, value, attn_metadata=attn_metadata))",
        "self.layer(query, key, value, attn_metadata=None))",
    )  # fmt: skip


FAULTS = (
    _contiguous("FluxTransformer2DModel"),
    _contiguous("ChromaTransformer2DModel"),
    _unmasked("HunyuanVideoTransformer3DModel"),
    _unmasked("HunyuanImageTransformer2DModel"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=str(ROOT / ".venv-omni" / "bin" / "python"), help="with vllm-omni")
    parser.add_argument("--work", type=Path, default=None, help="kept; left out, a temporary folder")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="porter-rank-faults-"))
    try:
        results = plant(work, args.python)
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(not all(entry["seen"] for entry in results))


def plant(work: Path, python: str) -> list[dict[str, Any]]:
    """Run the models without a fault on one process, then with theirs on two ranks."""
    models = sorted({fault.model for fault in FAULTS})
    convert(work, models)
    modes = {mode: [fault for fault in FAULTS if fault.mode == mode] for mode in ("tp", "sp")}
    jobs = {mode: sorted({fault.model for fault in faults}) for mode, faults in modes.items()}
    (work / "jobs.json").write_text(json.dumps({"one": models, **jobs, "wide": models}))
    alone = run_mode(work, python, "one")
    results = []
    for mode, faults in modes.items():
        clean = {fault.model: port_file(work, fault.model).read_text() for fault in faults}
        for fault in faults:
            port_file(work, fault.model).write_text(planted(clean[fault.model], fault))
        found = run_mode(work, python, mode)
        for fault in faults:
            port_file(work, fault.model).write_text(clean[fault.model])
            entry = found.get(fault.model, {"error": "was not run"})
            if "error" in alone.get(fault.model, {"error": ""}):
                raise SystemExit(f"{fault.model} does not run on one process: {alone.get(fault.model)}")
            seen = entry.get("relative", 0.0) > BOUND or "error" in entry
            kept = {key: entry[key] for key in ("case", "relative", "error") if key in entry}
            results.append({**vars(fault), "seen": seen, **kept})
            print(fault.bug, fault.model, kept, flush=True)
    return results


def planted(text: str, fault: Fault) -> str:
    """The port with the fault."""
    if text.count(fault.before) != 1:
        raise SystemExit(f"{fault.model}: the place of bug {fault.bug} is not there: {fault.before}")
    return text.replace(fault.before, fault.after)


def port_file(work: Path, model: str) -> Path:
    return work / "ports" / f"{model}.py"


if __name__ == "__main__":
    main()
