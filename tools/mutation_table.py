"""Plant faults into one port of several families and write down which of them ``porter parity`` sees.

    python tools/mutation_table.py [--only NAME …] [--mutants N] [--results FILE] [--merge FILE …] [--resume]
                                   [--again] [--table]

Writes ``porter/parity/data/mutation.json`` after each pipeline and ``docs/mutation.md`` at the end. Results hold for
the port that they name by its digest: ``--resume`` runs again what has another port since, or was never run, and the
page tells what is of an older port. ``--again`` tries only what was not seen. ``--merge`` takes in results of other
runs; ``--table`` runs nothing and writes the page again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from porter.parity.mutation_report import UNCOUNTED, MutantResult, MutationReport

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "porter" / "parity" / "data" / "mutation.json"
RANKS = RESULTS.with_name("rank_faults.json")
TABLE = ROOT / "docs" / "mutation.md"
PIPELINES = (
    "QwenImagePipeline",
    "FluxPipeline",
    "StableDiffusion3Pipeline",
    "WanPipeline",
    "LTXPipeline",
    "ZImagePipeline",
    "ChromaPipeline",
    "AuraFlowPipeline",
    "SanaPipeline",
    "Lumina2Pipeline",
    "CogView4Pipeline",
    "LattePipeline",
    "HunyuanDiTPipeline",
    "StableAudioPipeline",
)
BUGS = {
    1: "length of the text taken from its mask",
    2: "schedule off by one",
    3: "shift or terminal stretch of the sigmas left out",
    4: "`mu` from the length before packing",
    5: "guidance scaled twice; its embedder's weights lost",
    6: "negative prompt ignored",
    7: "norm rescale after guidance missing",
    8: "packed axes in another order",
    9: "residual stream in another dtype; a module cast as a whole",
    10: "row-parallel layer loads the wrong columns",
    11: "sequence-parallel padding not masked",
    12: "scheduler shared between requests",
    13: "a default overrides what was given, or stands for what was not",
    14: "prompt cleaned differently",
    15: "second attention lost, or loaded under another name",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=PIPELINES, help="pipelines to run")
    parser.add_argument("--mutants", type=int, default=45, help="generic faults a pipeline")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--merge", type=Path, nargs="+", default=(), help="results of other runs to take in")
    parser.add_argument("--resume", action="store_true", help="leave out what the results already hold")
    parser.add_argument("--again", action="store_true", help="try again what was not seen, nothing else")
    parser.add_argument("--table", action="store_true", help="run nothing, write the page from the results")
    args = parser.parse_args()
    reports = read(args.results)
    for file in args.merge:
        reports |= read(file)
    for name in () if args.table else args.only:
        if args.again or not (args.resume and name in reports and is_current(reports[name])):
            try:
                if not args.again:
                    reports[name] = run(name, args.mutants)
                elif name in reports:
                    reports[name] = run_again(reports[name])
            except ValueError as error:
                print(f"{name}: {error}", flush=True)
            write(reports, args.results)
    write(reports, args.results)
    if args.results == RESULTS:
        TABLE.write_text(table(list(reports.values())))


def is_current(report: MutationReport) -> bool:
    """Whether the port that faults were planted into is the one that is there now."""
    from porter.parity.port_files import digest
    from porter.runtime.diffusion.registry import ModelRegistry

    file = ModelRegistry().source_file(report.pipeline)
    return file is not None and file.is_file() and report.port == digest(file)


def run(name: str, count: int) -> MutationReport:
    from porter.cli.common import hush_libraries, hush_warnings
    from porter.parity.mutate import run_mutation

    hush_libraries()
    hush_warnings()
    report = run_mutation(name, count=count)
    print(f"{name} generic {report.tally()} known {report.tally(True)} ({report.seconds:.0f} s)", flush=True)
    return report


def run_again(report: MutationReport) -> MutationReport:
    from porter.cli.common import hush_libraries, hush_warnings
    from porter.parity.mutate import again

    hush_libraries()
    hush_warnings()
    report = again(report)
    print(f"{report.pipeline} generic {report.tally()} known {report.tally(True)} (again)", flush=True)
    return report


def read(file: Path) -> dict[str, MutationReport]:
    held = json.loads(file.read_text()) if file.is_file() else []
    return {entry["pipeline"]: MutationReport.model_validate(entry) for entry in held}


def write(reports: dict[str, MutationReport], file: Path) -> None:
    entries = [reports[name].model_dump(exclude_defaults=True) for name in sorted(reports)]
    file.write_text(json.dumps(entries, indent=1) + "\n")


def table(reports: list[MutationReport]) -> str:
    """The page."""
    reports = sorted(reports, key=lambda report: report.pipeline)
    seen, planted = (sum(numbers) for numbers in zip(*(report.tally() for report in reports)))
    unused = sum(m.verdict in UNCOUNTED and not m.bug for report in reports for m in report.mutants)
    seconds = sorted(m.seconds for report in reports for m in report.mutants if m.caught)
    lines = [
        "# Faults that the comparison sees",
        "",
        "`porter parity NAME --mutate` plants faults into a port, one at a time, and runs the comparison against a",
        "reference that ran once. This page is made by `python tools/mutation_table.py`; the single faults are in",
        "`porter/parity/data/mutation.json`.",
        "",
        f"**{seen} of {planted} generic faults seen ({100 * seen / max(planted, 1):.1f} %)**, {len(reports)} families.",
        f"{unused} more change nothing and are not counted: no case uses the value (planting one that raises when",
        "it is used changes nothing), or the reasons stand below. Nothing is planted on lines that no case runs (their",
        "number is in the table),",
        "on messages and logs, nor in what serves several ranks only: [features](features.md) has those proofs.",
        *_older(reports),
        f"A fault that was seen took {seconds[len(seconds) // 2] if seconds else 0:.2f} s (median).",
        "",
        "| pipeline | generic seen | known bugs seen | change nothing | places | places no case runs | cases |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        generic, known = report.tally(), report.tally(True)
        idle = sum(m.verdict in UNCOUNTED for m in report.mutants)
        lines.append(
            f"| {report.pipeline} | {generic[0]}/{generic[1]} | {known[0]}/{known[1]} | {idle} | {report.sites} |"
            f" {report.unreached_sites} | {len(report.cases)} |"
        )
    return "\n".join([*lines, *_by_mutator(reports), *_known(reports), *_survivors(reports)]) + "\n"


def _older(reports: list[MutationReport]) -> list[str]:
    names = [report.pipeline for report in reports if not is_current(report)]
    return [f"The port has changed since its faults were planted: {', '.join(names)}."] if names else []


def _by_mutator(reports: list[MutationReport]) -> list[str]:
    found: dict[str, list[MutantResult]] = defaultdict(list)
    for mutant in (m for report in reports for m in report.mutants if not m.bug and m.verdict not in UNCOUNTED):
        found[mutant.mutator].append(mutant)
    lines = ["", "| mutator | seen | planted |", "|---|---|---|"]
    return lines + [f"| {name} | {sum(m.caught for m in found[name])} | {len(found[name])} |" for name in sorted(found)]


def _known(reports: list[MutationReport]) -> list[str]:
    on_ranks = json.loads(RANKS.read_text()) if RANKS.is_file() else []
    lines = ["", "## Known bugs", "", "| # | bug | seen | families | stages that differ |", "|---|---|---|---|---|"]
    for number, title in BUGS.items():
        pairs = [(r, m) for r in reports for m in r.mutants if m.bug == number and m.verdict not in UNCOUNTED]
        stages = sorted({(m.stage.partition("[")[0].partition(":")[0] or m.verdict) for _, m in pairs if m.caught})
        families = len({report.family for report, _ in pairs})
        seen, planted = sum(m.caught for _, m in pairs), len(pairs)
        ranks = [entry for entry in on_ranks if entry["bug"] == number]
        if ranks:  # it shows on several ranks only
            seen, planted, families = sum(entry["seen"] for entry in ranks), len(ranks), len(ranks)
            stages = [f"two ranks: {_on_ranks(entry)} ({entry['model']})" for entry in ranks]
        if planted:
            lines.append(f"| {number} | {title} | {seen}/{planted} | {families} | {', '.join(stages)} |")
        else:
            lines.append(f"| {number} | {title} | not planted | | applies to none of these ports |")
    return lines


def _on_ranks(entry: dict[str, Any]) -> str:
    return f"{entry['relative']:.1e} off" if "relative" in entry else str(entry.get("error", ""))[:60]


def _survivors(reports: list[MutationReport]) -> list[str]:
    lines = ["", "## Not seen", "", "| pipeline | mutator | place | before | after |", "|---|---|---|---|---|"]
    lines += [f"| {report.pipeline} | {_row(m)} |" for report in reports for m in report.survivors]
    lines += ["", "## Looked into: nothing to see", "", "| pipeline | mutator | place | before | after | why |"]
    lines.append("|---|---|---|---|---|---|")
    for report in reports:
        for m in report.mutants:
            if m.verdict == "equivalent":
                lines.append(f"| {report.pipeline} | {_row(m)} | {m.reason} |")
    return lines


def _row(m: MutantResult) -> str:
    texts = [text.replace("|", "\\|")[:90] for text in (m.before, m.after)]
    return f"{m.mutator} | {m.module}.py:{m.line} {m.function} | `{texts[0]}` | `{texts[1]}`"


if __name__ == "__main__":
    main()
