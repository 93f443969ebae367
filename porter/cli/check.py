"""``porter check``"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from porter.cli.common import (
    Jobs,
    Json,
    NoCache,
    Quiet,
    Source,
    bad_input,
    complain,
    print_json,
    processes,
    progress_bar,
)

if TYPE_CHECKING:
    from porter.batch import Progress

Folder = Annotated[Path, typer.Argument(metavar="[DIR]", help="folder of ports")]
Diff = Annotated[bool, typer.Option("--diff", help="print what differs")]
Fix = Annotated[bool, typer.Option("--fix", help="write what differs")]


def check(
    folder: Folder = Path("generated_models"),
    source: Source = None,
    diff: Diff = False,
    fix: Fix = False,
    jobs: Jobs = 0,
    no_cache: NoCache = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Regenerate the ports in DIR and compare: exit code 0 if they are the same, 1 if they differ, 2 on an error."""
    from porter.check import check_models
    from porter.check import fix as write_fixes
    from porter.emit.write import OutputError
    from porter.source import SourceError

    with contextlib.ExitStack() as bars, bad_input(SourceError, OutputError, OSError):

        def progress(total: int) -> Progress:
            return bars.enter_context(progress_bar(total, "checking", quiet or json)) or (lambda outcome: None)

        result = check_models(folder, source, processes(jobs), not no_cache, progress)
        if fix:
            write_fixes(result)
    if json:
        found = [{"path": str(item.path), "kind": item.kind} for item in result.differences]
        counts = {"pipelines": result.pipelines, "files": result.files}
        print_json({"same": result.same, **counts, "differences": found, "errors": result.errors})
    else:
        for item in result.differences:
            if diff:
                print(item.diff(), end="")
            elif not quiet:
                print(f"{'fixed' if fix else item.kind}: {item.path}")
        for name, error in result.errors.items():
            print(f"does not convert: {name}: {error}")
        if result.same and not quiet:
            print(f"{result.files} files of {result.pipelines} pipelines in {folder} are what porter writes")
    if result.errors:
        if not json:
            complain(f"{len(result.errors)} of {result.pipelines} pipelines do not convert")
        raise typer.Exit(2)
    raise typer.Exit(0 if result.same or fix else 1)
