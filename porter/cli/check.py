"""``porter check``"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from porter.cli.common import (
    Conflicts,
    Jobs,
    Json,
    NoCache,
    Quiet,
    Source,
    Verbose,
    bad_input,
    check_conflicts,
    complain,
    describe,
    processes,
    progress_bar,
    rest_collector,
)

if TYPE_CHECKING:
    from porter.batch import Progress
    from porter.check import CheckResult
    from porter.cli.schema import CheckOutput

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="folder of ports")]
Diff = Annotated[bool, typer.Option("--diff", help="print what differs")]
Fix = Annotated[bool, typer.Option("--fix", help="write what differs; edits by hand are kept and recorded")]


def check(
    folder: Folder = Path("generated_models"),
    source: Source = None,
    diff: Diff = False,
    fix: Fix = False,
    conflicts: Conflicts = "fail",
    jobs: Jobs = 0,
    no_cache: NoCache = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Regenerate the ports in DIR and compare: exit code 0 if they are the same, 1 if they differ, 2 on an error."""
    check_conflicts(conflicts)
    rest_collector()
    from porter.check import check_models
    from porter.check import fix as write_fixes
    from porter.emit.write import OutputError
    from porter.source import SourceError

    with contextlib.ExitStack() as bars, bad_input(SourceError, OutputError, OSError):

        def progress(total: int) -> Progress:
            bars.close()  # a terminal shows one at a time
            return bars.enter_context(progress_bar(total, "checking", quiet or json)) or (lambda outcome: None)

        result = check_models(folder, source, processes(jobs), not no_cache, progress, conflicts)
        if fix and not result.conflicts:
            write_fixes(result)
    if json:
        from porter.cli.schema import print_model

        print_model(_told(result))
    else:
        _report(result, folder, diff or verbose, fix, quiet)
    if result.errors or result.conflicts:
        if not json:
            complain(_why(result))
        raise typer.Exit(2)
    raise typer.Exit(0 if result.same or fix else 1)


def _told(result: CheckResult) -> CheckOutput:
    from porter.cli.schema import CheckOutput, Differing

    return CheckOutput(
        same=result.same,
        pipelines=result.pipelines,
        files=result.files,
        differences=[Differing(path=str(d.path), kind=d.kind, edited=d.edited) for d in result.differences],
        edits=[describe(path, edit) for path, edit in result.edits.items()],
        conflicts=[
            replace(conflict, file=str(models / conflict.file))
            for models, conflicts in result.conflicts.items()
            for conflict in conflicts
        ],
        errors=result.errors,
    )


def _report(result: CheckResult, folder: Path, diff: bool, fix: bool, quiet: bool) -> None:
    for item in result.differences:
        if diff:
            print(item.diff(), end="")
        elif not quiet:
            hint = " (edited by hand: --fix keeps the edit and records it)" if item.edited and not fix else ""
            print(f"{'fixed' if fix else item.kind}: {item.path}{hint}")
    for path, edit in result.edits.items():
        if not quiet and (edit.recorded or fix):
            added, removed = edit.counts
            print(f"edited by hand: {path} (+{added} -{removed})")
            if diff:
                print(edit.diff(), end="")
    for name, error in result.errors.items():
        print(f"does not convert: {name}: {error}")
    for conflicts in result.conflicts.values():
        for conflict in conflicts:
            print(conflict, file=sys.stderr)
    if result.same and not quiet:
        kept = f", but for {len(result.edits)} edits by hand" if result.edits else ""
        print(f"{result.files} files of {result.pipelines} pipelines in {folder} are what porter writes{kept}")


def _why(result: CheckResult) -> str:
    number = sum(map(len, result.conflicts.values()))
    parts = [f"{len(result.errors)} of {result.pipelines} pipelines do not convert"] if result.errors else []
    parts += [f"{number} edits by hand cannot be kept as they are (see above)"] if number else []
    return "; ".join(parts)
