"""Make the table of ports in vLLM-Omni: each pipeline that has a tiny checkpoint, compared with diffusers there.

    .venv-omni/bin/python tools/omni_table.py [--cases plain …] [--only NAME …] [--resume]

Needs the environment of `make omni-env`. A port is converted from the diffusers of that environment, runs in the
engine's own worker (loader, hooks, runner) and is compared with plain diffusers stage by stage. Writes
``porter/parity/data/omni.json`` and ``docs/omni_parity.md``, with what ``tools/omni_warm_up.py`` found beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "porter" / "parity" / "data" / "omni.json"
WARM_UP = RESULTS.with_name("omni_warm_up.json")
TABLE = ROOT / "docs" / "omni_parity.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["plain"])
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--resume", action="store_true", help="leave out what the results already hold")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    from porter import omni

    omni.start()
    quiet()
    from porter.omni.choice import native_models

    results: dict[str, Any] = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for name in args.only or comparable():
        if args.resume and name in results:
            continue
        started = time.perf_counter()
        result = compare(name, args.cases)
        result["native"] = name in native_models()
        results[name] = result
        print(name, result["verdict"], result.get("reason", ""), f"| {time.perf_counter() - started:.0f} s", flush=True)
        args.results.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    TABLE.parent.mkdir(exist_ok=True)
    warmed = json.loads(WARM_UP.read_text()) if WARM_UP.is_file() else {}
    TABLE.write_text(table(results, warmed))
    return 0


def comparable() -> list[str]:
    """Pipelines that have a port and a tiny checkpoint; those with a transformer, which vLLM-Omni is for, first."""
    from porter.listing import live_pipelines
    from porter.omni.ports import available as ports
    from porter.parity.checkpoint import available
    from porter.source import SourceTree

    live = live_pipelines(SourceTree())
    return sorted(set(available()) & set(ports()), key=lambda name: (name not in live, name))


def quiet() -> None:
    """The engine says a page about each model that it loads."""
    import logging

    import diffusers
    import torch
    import transformers

    torch.set_num_threads(1)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    diffusers.utils.logging.set_verbosity_error()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def compare(name: str, cases: list[str]) -> dict[str, Any]:
    """Compare one port; what goes wrong is a result, not an error."""
    from porter.parity import checkpoint, run_parity

    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = checkpoint.build(name, Path(scratch) / name)
        except Exception as error:  # noqa: BLE001 - the checkpoint is made for another release of diffusers, say
            return {"verdict": "no checkpoint", "reason": line(error)}
        try:
            report = run_parity(name, engine="vllm-omni", checkpoint=folder, cases=cases, threads=1)
        except Exception as error:  # noqa: BLE001 - the table says what went wrong with each pipeline
            return {"verdict": "does not run", "reason": line(error)}
        found: dict[str, Any] = {"verdict": report.verdict, "reason": line(report.reason)}
        found["family"] = family(name)
        found["cases"] = {
            case.name: {"verdict": case.verdict, "largest_difference": case.largest_difference} for case in report.cases
        }
        failed = next((case for case in report.cases if not case.passed), None)
        if failed is not None and not found["reason"]:
            first = failed.first_difference
            stage = f"{first.stage} {first.part} {first.note}" if first is not None else ""
            found["reason"] = line(f"{failed.name}: {stage} {failed.port_error}")
    return found


def family(name: str) -> str:
    """The folder of the port."""
    from porter.omni.ports import port_folder

    folder = port_folder(name)
    return next((path.parent.name for path in sorted(folder.glob("*/pipeline_*.py"))), "")


def line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def started(entry: dict[str, Any] | None) -> str:
    """What became of the start-up request, in a cell."""
    if entry is None:
        return "not tried"
    size = f" at {entry['size']}" if entry.get("size", 512) != 512 else ""
    if entry["verdict"] in ("runs", "not asked"):
        return entry["verdict"] + size
    if entry.get("runs with"):
        return f"tiny checkpoint{size}: runs with its own {', '.join(entry['runs with'])}"
    return f"{entry['verdict']}{size}: {entry.get('reason', '')}".replace("|", "\\|")


def table(results: dict[str, Any], warmed: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    from importlib import metadata

    reached = {name: r for name, r in results.items() if r["verdict"] == "parity"}
    families = {r["family"] for r in reached.values()}
    other = [name for name, r in reached.items() if not r["native"]]
    asked = [warmed[name] for name in results if name in warmed]
    counts = {verdict: sum(e["verdict"] == verdict for e in asked) for verdict in ("runs", "cold", "too much", "error")}
    small = {verdict: sum(e["verdict"] == verdict and bool(e.get("runs with")) for e in asked) for verdict in counts}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("vllm-omni", "diffusers", "torch"))
    rows = []
    for name, result in sorted(results.items()):
        differences = [held["largest_difference"] for held in result.get("cases", {}).values()]
        largest = f"{max(differences):.3g}" if differences else ""
        native = "yes" if result["native"] else "no"
        reason = result.get("reason", "").replace("|", "\\|")
        cells = (name, result.get("family", ""), native, result["verdict"], largest, started(warmed.get(name)), reason)
        rows.append(f"| {' | '.join(cells)} |")
    return (
        "# Ports in vLLM-Omni\n\n"
        f"{versions}; tiny random checkpoints, float32 on the CPU, one thread. Each port was converted from that "
        "diffusers and ran in the engine's own worker; the difference is the largest over all stages of the call.\n"
        "Made by `.venv-omni/bin/python tools/omni_table.py`.\n\n"
        f"{len(reached)} of {len(results)} pipelines at difference 0, from {len(families)} families; {len(other)} of "
        f"them have no model of their own in vLLM-Omni.\n\n"
        f"The engine's start-up request was sent to {len(asked)} ports: {counts['runs']} run it, {counts['cold']} "
        f"decline it in one line of the log and start cold, {counts['too much']} did not end in time or memory, "
        f"{counts['error']} keep the engine from starting. {small['cold']} of those that decline, and "
        f"{small['too much']} of those that did not end, run it with arguments of the tiny call: what they were sent "
        "is too large for the tiny checkpoint. The size is the one that makes as many latents as 512×512 does in a "
        "real checkpoint (made by `.venv-omni/bin/python tools/omni_warm_up.py --resume`, which does the rest).\n\n"
        "| pipeline | family | vLLM-Omni has its own | verdict | largest difference | warm-up | reason |\n"
        "|---|---|---|---|--:|---|---|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
