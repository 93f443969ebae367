"""Make the parity table: every pipeline that has a tiny checkpoint, converted afresh and compared with diffusers.

    python tools/parity_table.py [--cases plain …] [--only NAME …] [--resume]

Writes ``porter/parity/data/results.json`` (``porter list`` shows it) and ``docs/parity.md``. Each pipeline is converted
into a folder of its own, so that one that fails does not keep the others from being compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "porter" / "parity" / "data" / "results.json"
TABLE = ROOT / "docs" / "parity.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["plain"])
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--resume", action="store_true", help="leave out what the results already hold")
    args = parser.parse_args()
    from porter.listing import live_pipelines
    from porter.parity.checkpoint import available
    from porter.port import Converter
    from porter.source import SourceTree
    from porter.targets import get_target

    converter = Converter(SourceTree(), get_target("porter"))
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    live = live_pipelines(converter.tree)
    have = set(available())
    for name in args.only or sorted(set(live) | have):
        if args.resume and name in results:
            continue
        results[name] = compare(converter, name, args.cases) if name in have else {"verdict": "not tested"}
        results[name]["transformer"] = name in live
        print(name, results[name]["verdict"], results[name].get("reason", ""), flush=True)
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(results, converter.tree.version))


def compare(converter: Any, name: str, cases: list[str]) -> dict[str, Any]:
    """Convert one pipeline and run its cases; a failure of either is a result, not an error."""
    from porter.emit.write import write_ports
    from porter.parity import run_parity

    with tempfile.TemporaryDirectory() as folder:
        try:
            write_ports(Path(folder), [converter.port(name)])
        except Exception as error:  # noqa: BLE001 - the table says what went wrong with each pipeline
            return {"verdict": "does not convert", "reason": _line(error)}
        try:
            report = run_parity(name, models_dir=folder, cases=cases)
        except Exception as error:  # noqa: BLE001
            return {"verdict": "does not run", "reason": _line(error)}
    found: dict[str, Any] = {"verdict": report.verdict, "reason": _line(report.reason)}
    found["cases"] = {
        case.name: {"verdict": case.verdict, "largest_difference": case.largest_difference} for case in report.cases
    }
    first = next((case.first_difference for case in report.cases if case.first_difference is not None), None)
    if first is not None:
        found["first_difference"] = str(getattr(first, "stage", first))[:200]
    return found


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def table(results: dict[str, Any], version: str) -> str:
    """The results as a Markdown page."""
    rows = []
    for name, result in sorted(results.items()):
        cases = ", ".join(f"{case}: {held['verdict']}" for case, held in result.get("cases", {}).items())
        differences = [held["largest_difference"] for held in result.get("cases", {}).values()]
        largest = f"{max(differences):.3g}" if differences else ""
        kind = "transformer" if result.get("transformer") else "UNet or other"
        reason = result.get("reason", "").replace("|", "\\|")
        rows.append(f"| {name} | {kind} | {result['verdict']} | {largest} | {cases} | {reason} |")
    transformer = [r for r in results.values() if r.get("transformer")]
    reached = sum(r["verdict"] == "parity" for r in transformer)
    other = [r for r in results.values() if not r.get("transformer")]
    reached_other = sum(r["verdict"] == "parity" for r in other)
    return (
        "# Parity\n\n"
        f"diffusers {version}, tiny random checkpoints, float32 on the CPU, one thread: largest difference over "
        "all stages.\nMade by `python tools/parity_table.py`.\n\n"
        f"Transformer pipelines: {reached} of {len(transformer)} at difference 0. "
        f"Others: {reached_other} of {len(other)}.\n\n"
        "| pipeline | denoiser | verdict | largest difference | cases | reason |\n|---|---|---|--:|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
