"""Make the table of ports in vLLM-Omni: each pipeline that has a tiny checkpoint, compared with diffusers there.

    .venv-omni/bin/python tools/omni_table.py [--cases plain …] [--only NAME …] [--resume]

Needs the environment of `make omni-env`. A port is converted from the diffusers of that environment, runs in the
engine's own worker (loader, hooks, runner) and is compared with plain diffusers stage by stage; then it gets what the
engine sends at its start. Writes ``porter/parity/data/omni.json`` and ``docs/omni_parity.md``.
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
TABLE = ROOT / "docs" / "omni_parity.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["plain"])
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--resume", action="store_true", help="leave out what the results already hold")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--no-warm-up", action="store_true")
    args = parser.parse_args()
    from porter import omni

    omni.start()
    quiet()
    from porter.listing import live_pipelines
    from porter.omni.choice import native_models
    from porter.omni.ports import available as ports
    from porter.parity.checkpoint import available
    from porter.source import SourceTree

    results: dict[str, Any] = json.loads(args.results.read_text()) if args.results.is_file() else {}
    # Those with a transformer first: they are what vLLM-Omni is for.
    live = live_pipelines(SourceTree())
    names = args.only or sorted(set(available()) & set(ports()), key=lambda name: (name not in live, name))
    for name in names:
        held = results.get(name, {})
        if args.resume and held and (args.no_warm_up or held.get("warm_up") != "not tried"):
            continue
        started = time.perf_counter()
        result = compare(name, args.cases, not args.no_warm_up)
        result["native"] = name in native_models()
        results[name] = result
        print(name, result["verdict"], result.get("reason", ""), "| warm-up", result.get("warm_up"),
              f"| {time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
        args.results.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(results))
    return 0


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


def compare(name: str, cases: list[str], warm_up: bool) -> dict[str, Any]:
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
        found["warm_up"] = survives(name, folder) if warm_up and report.cases else "not tried"
    return found


def survives(name: str, folder: Path) -> str:
    """Whether the port survives the engine's first request, at the size of the tiny call.

    ``yes``, ``refused: …`` (the engine starts, and says so), ``not asked`` or the error that keeps it from starting.
    """
    from porter.omni import adapt
    from porter.omni.worker import OneWorker, dummy_request
    from porter.parity.checkpoint import load_inputs
    from porter.parity.sides import small_areas

    inputs = load_inputs(name)
    told: list[str] = []
    try:
        worker = OneWorker(folder)
    except Exception as error:  # noqa: BLE001
        return line(error)
    scale = getattr(worker.pipeline, "vae_scale_factor", 8)
    size = max(inputs.get("height") or 0, inputs.get("width") or 0) or min(64 * scale, 512)
    warn = adapt.logger.warning
    adapt.logger.warning = lambda text, *arguments: told.append(text % arguments)  # type: ignore[method-assign]
    try:
        if dummy_request(worker.config) is None:
            return "not asked"
        with small_areas(worker.pipeline):
            worker.warm_up(size)
        return f"refused: {line(told[0].rpartition('cold: ')[2])}" if told else "yes"
    except Exception as error:  # noqa: BLE001
        return line(f"{type(error).__name__}: {error}")
    finally:
        adapt.logger.warning = warn  # type: ignore[method-assign]
        worker.close()


def family(name: str) -> str:
    """The folder of the port."""
    from porter.omni.ports import port_folder

    folder = port_folder(name)
    return next((path.parent.name for path in sorted(folder.glob("*/pipeline_*.py"))), "")


def line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    from importlib import metadata

    reached = {name: r for name, r in results.items() if r["verdict"] == "parity"}
    families = {r["family"] for r in reached.values()}
    other = [name for name, r in reached.items() if not r["native"]]
    warm = [name for name, r in results.items() if r.get("warm_up") == "yes"]
    tried = sum(result.get("warm_up", "not tried") != "not tried" for result in results.values())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("vllm-omni", "diffusers", "torch"))
    rows = []
    for name, result in sorted(results.items()):
        differences = [held["largest_difference"] for held in result.get("cases", {}).values()]
        largest = f"{max(differences):.3g}" if differences else ""
        native = "yes" if result["native"] else "no"
        reason = result.get("reason", "").replace("|", "\\|")
        survived = result.get("warm_up", "").replace("|", "\\|")
        cells = (name, result.get("family", ""), native, result["verdict"], largest, survived, reason)
        rows.append(f"| {' | '.join(cells)} |")
    return (
        "# Ports in vLLM-Omni\n\n"
        f"{versions}; tiny random checkpoints, float32 on the CPU, one thread. Each port was converted from that "
        "diffusers and ran in the engine's own worker; the difference is the largest over all stages of the call.\n"
        "Made by `.venv-omni/bin/python tools/omni_table.py`.\n\n"
        f"{len(reached)} of {len(results)} pipelines at difference 0, from {len(families)} families; {len(other)} of "
        f"them have no model of their own in vLLM-Omni. Of {tried} that were sent the engine's warm-up request (at the "
        f"size of the tiny call) {len(warm)} ran it; the others start cold, with the reason as a warning.\n\n"
        "| pipeline | family | vLLM-Omni has its own | verdict | largest difference | warm-up | reason |\n"
        "|---|---|---|---|--:|---|---|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
