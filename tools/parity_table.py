"""Make the parity table: every pipeline that has a tiny checkpoint, converted afresh and compared with diffusers.

    python tools/parity_table.py [--cases NAME …] [--only NAME …] [--resume] [--details DIR] [--table] [--jobs N]

Writes ``porter/parity/data/results.json`` (``porter list`` shows it) after each pipeline and ``docs/parity.md`` at the
end. Each pipeline is converted into a folder of its own, so that one that fails does not keep the others from being
compared. ``--resume`` goes on where a run was stopped; ``--table`` only writes the page again. How long a whole run
took stands in ``measured.json`` beside the results.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from porter.batch import convert_batch
from porter.cache import Cache
from porter.cores import cores
from porter.emit.write import write_ports
from porter.listing import live_pipelines, other_pipelines
from porter.parity import run_parity
from porter.parity.checkpoint import available
from porter.parity.many import each
from porter.port import Converter
from porter.source import SourceTree
from porter.targets import get_target

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "porter" / "parity" / "data" / "results.json"
MEASURED = RESULTS.with_name("measured.json")
TABLE = ROOT / "docs" / "parity.md"
_GOOD = ("parity", "begun", "rejected alike")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=None, help="cases to run; default: all that apply")
    parser.add_argument("--only", nargs="+", default=None, help="pipelines to run; default: all")
    parser.add_argument("--resume", action="store_true", help="leave out what the results already hold")
    parser.add_argument("--details", type=Path, help="folder for the full report of each pipeline")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="run nothing, write the page from the results")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes; default: one a core")
    args = parser.parse_args()
    tree = SourceTree()
    results: dict[str, Any] = json.loads(args.results.read_text()) if args.results.is_file() else {}
    live = live_pipelines(tree)
    have = set(available())
    # What the bar is about comes first.
    every = sorted(set(live) | have, key=lambda name: (name not in live, name))
    names = [name for name in args.only or every if not (args.resume and _held(results.get(name), args.cases))]
    began = time.perf_counter()
    work = functools.partial(compare, cases=args.cases, details=args.details)
    for name, found in each(work, [name for name in names if name in have and not args.table], args.jobs):
        if isinstance(found, Exception):
            found = {"verdict": "does not run", "reason": _line(found)}
        result = results.setdefault(name, {})
        merge(result, found, args.cases is None)
        result["transformer"] = name in live
        seconds = time.perf_counter() - began
        print(f"{seconds:6.0f} s  {name} {result['verdict']} {result.get('reason', '')}", flush=True)
        args.results.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    if not args.table:
        results |= {name: {"verdict": "not tested", "transformer": name in live} for name in names if name not in have}
        args.results.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    TABLE.parent.mkdir(exist_ok=True)
    measured = json.loads(MEASURED.read_text())
    if names == every and args.cases is None and not args.table:
        measured |= {"minutes": round((time.perf_counter() - began) / 60, 1), "jobs": args.jobs}
    MEASURED.write_text(json.dumps({**measured, "diffusers": tree.version}) + "\n")
    TABLE.write_text(table(results, measured, tree.version) + untested(tree, results, args.jobs))


def untested(tree: SourceTree, results: dict[str, Any], jobs: int) -> str:
    """A section on the pipelines that have no tiny checkpoint: do they convert, and what is left."""
    names = sorted({*live_pipelines(tree), *other_pipelines(tree)} - set(results))
    rows = []
    for outcome in convert_batch(names, tree, jobs=jobs, cache=Cache(tree.root, "porter")):
        left = "; ".join(entry["reason"] for entry in outcome.residue)
        rows.append(f"| {outcome.name} | {'yes' if outcome.converted else outcome.error} | {left} |")
    head = "\n## Without a tiny checkpoint\n\nNot tested. What is left as it was cannot change results.\n\n"
    return f"{head}| pipeline | converts | left as it was |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _held(result: dict[str, Any] | None, cases: list[str] | None) -> bool:
    if result is None:
        return False
    return result.get("complete", False) if cases is None else set(cases) <= set(result.get("cases", {}))


def compare(name: str, cases: list[str] | None = None, details: Path | None = None) -> dict[str, Any]:
    """Convert one pipeline and run its cases."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_ports(Path(folder), [converter().port(name)])
        except Exception as error:  # noqa: BLE001 - the table says what went wrong with each pipeline
            return {"verdict": "does not convert", "reason": _line(error)}
        report = run_parity(name, models_dir=folder, cases=cases)
    if details is not None:
        details.mkdir(parents=True, exist_ok=True)
        (details / f"{name}.json").write_text(report.to_json())
    found: dict[str, Any] = {"verdict": report.verdict, "reason": _line(report.reason), "cases": {}}
    for case in report.cases:
        held: dict[str, Any] = {"verdict": case.verdict, "largest_difference": case.largest_difference}
        if case.verdict == "rejected alike":
            held["error"] = _line(case.reference_error)
        elif not case.passed:
            held["first_difference"] = case.first_difference.stage if case.first_difference else ""
            held["error"] = _line(case.port_error or case.reference_error)
        found["cases"][case.name] = held
    return found


@functools.cache
def converter() -> Converter:
    """One a process: it keeps what it read."""
    return Converter(SourceTree(), get_target("porter"))


def merge(held: dict[str, Any], found: dict[str, Any], complete: bool) -> None:
    """Put what was found into what is held: cases that were not run again keep their results."""
    cases = {} if complete else held.get("cases", {})
    cases |= found.get("cases", {})
    held |= {**found, "cases": cases, "complete": complete or held.get("complete", False)}
    if held["verdict"] == "parity" and any(case["verdict"] == "differs" for case in cases.values()):
        held["verdict"] = "differs"


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]


# Column of the table, and how the cases in it are named.
COLUMNS = {
    "plain": ("plain",),
    "batch": ("two prompts",),
    "prompts": ("untidy", "negative", "embeddings"),
    "guidance": ("guidance",),
    "sizes": ("taller", "wider", "odd", "half a position", "long strip", "inputs of unlike"),
    "output types": ("output",),
    "per prompt": ("two per prompt",),
    "strength": ("half strength",),
    "half precision": ("half precision",),
    "defaults": ("defaults", "all defaults"),
    "denoisers alone": ("denoisers alone",),
    "other checkpoints": ("another checkpoint",),
    "others": ("",),
}


def table(results: dict[str, Any], measured: dict[str, Any], version: str) -> str:
    """The results as a Markdown page."""
    rows = []
    for name, result in sorted(results.items()):
        columns: dict[str, list[dict[str, Any]]] = {column: [] for column in COLUMNS}
        for case, held in result.get("cases", {}).items():
            columns[next(key for key, starts in COLUMNS.items() if case.startswith(starts))].append(held)
        kind = "" if result.get("transformer") else " \\*"
        cells = " | ".join(_cell(held) for held in columns.values())
        some = "" if result.get("complete") or not result.get("cases") else " (not all calls run)"
        rows.append(f"| {name}{kind} | {result['verdict']}{some} | {cells} |")
    reasons = [f"- {name}, {text}" for name, result in sorted(results.items()) for text in _reasons(result)]
    transformer = [result for result in results.values() if result.get("transformer")]
    other = [result for result in results.values() if not result.get("transformer")]
    cases = [case for result in results.values() for case in result.get("cases", {}).values()]
    alike = sum(case["verdict"] == "rejected alike" for case in cases)
    equal = sum(case["verdict"] == "parity" for case in cases)
    begun = sum(case["verdict"] == "begun" for case in cases)
    unfinished = [r for r in transformer if r["verdict"] == "parity" and not r.get("complete")]
    return (
        "# Parity\n\n"
        f"diffusers {version}, tiny random checkpoints, float32 on the CPU, one thread: largest absolute difference "
        "over all stages of\nall calls of a kind. Made by `python tools/parity_table.py`"
        + (f" in {measured['minutes']} minutes on {measured['jobs']} cores" if "minutes" in measured else "")
        + ".\n\n"
        f"Transformer pipelines: {_reached(transformer)} of {len(transformer)} at difference 0 in all their cases. "
        f"Others (\\*): {_reached(other)} of {len(other)}.\n"
        + (f"{len(unfinished)} more transformer pipelines are at 0 in those that were run.\n" if unfinished else "")
        + f"Where a component stands in for one that cannot be had (`porter/parity/stand_ins.py`), the spec names it.\n"
        f"{len(cases)} calls: {equal} at difference 0, {begun} at 0 as far as they were begun, {alike} that diffusers "
        f"refuses\nand the port refuses in the same words, {len(cases) - equal - begun - alike} that differ.\n\n"
        "A cell is the largest difference of the calls of that kind; `refused n` counts those that both refuse, "
        "`begun n` those\nthat were compared up to their first large tensor only, as they take sizes that diffusers "
        "chooses; – means that the\npipeline has no such call.\n\n"
        f"| pipeline | verdict | {' | '.join(COLUMNS)} |\n|---|---|{'--:|' * len(COLUMNS)}\n"
        + "\n".join(rows)
        + "\n"
        + ("\n## What is not at difference 0\n\n" + "\n".join(reasons) + "\n" if reasons else "")
    )


def _reached(results: Iterable[dict[str, Any]]) -> int:
    return sum(result["verdict"] == "parity" and result.get("complete", False) for result in results)


def _cell(held: list[dict[str, Any]]) -> str:
    computed = [case["largest_difference"] for case in held if case["verdict"] != "rejected alike"]
    refused = len(held) - len(computed)
    failed = any(case["verdict"] not in _GOOD for case in held)
    parts = []
    if computed:
        worst = max(computed)
        shown = "differs" if failed and (math.isinf(worst) or not worst) else f"{worst:.3g}"
        parts.append(f"**{shown}**" if failed else shown)
    if begun := sum(case["verdict"] == "begun" for case in held):
        parts.append(f"begun {begun}")
    if refused:
        parts.append(f"refused {refused}")
    return ", ".join(parts) or "–"


def _reasons(result: dict[str, Any]) -> list[str]:
    texts = [f"{result['verdict']}: {result['reason']}"] if result.get("reason") else []
    for case, held in result.get("cases", {}).items():
        if held["verdict"] not in _GOOD:
            where = held.get("first_difference") or "no output"
            error = f" ({held['error']})" if held.get("error") else ""
            texts.append(f"{case}: {held['verdict']} at {where}{error}")
    if not texts and result["verdict"] not in ("parity", "differs"):
        texts.append(result["verdict"])
    return [text.replace("|", "\\|") for text in texts]


if __name__ == "__main__":
    main()
