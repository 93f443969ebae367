"""What the commands share: options, errors, output."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from porter.cores import cores

if TYPE_CHECKING:
    from rich.console import Console

    from porter.cli.schema import KeptEdit
    from porter.emit.edits import Edit

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print errors only")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="print more")]
Source = Annotated[
    Path | None, typer.Option("--source", metavar="DIR", help="diffusers sources; the installed package by default")
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=0, help="processes; 0: one a core")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="convert again even if nothing changed")]
ModelsDir = Annotated[
    Path | None,
    typer.Option("--models-dir", metavar="DIR", help="ports as `porter convert -o` writes them; the committed ones"),
]


def complete_pipeline(incomplete: str) -> list[str]:
    """Names of pipelines, for the shell."""
    from porter.source import SourceError, SourceTree

    prefix = "diffusers." if incomplete.startswith("diffusers.") else ""
    try:
        names = SourceTree().pipelines()
    except SourceError:
        return []
    return [prefix + name for name in names if (prefix + name).startswith(incomplete)]


Conflicts = Annotated[
    str,
    typer.Option(
        "--conflicts", metavar="fail|mine|porter", help="where an edit by hand and porter changed the same lines"
    ),
]

# Wide enough for a table that nobody wraps, where the output is no terminal.
_PIPE_WIDTH = 200


def rest_collector() -> None:
    """Look for no cycles in a process that reads sources and ends.

    Trees are millions of small objects that die by reference count, or with the process: looking for cycles among them
    was two thirds of the time of reading all pipelines. :func:`porter.cli.main` wakes the collector for who calls it.
    """
    gc.disable()


class Failure(Exception):
    """The question was bad: one line on stderr, exit code 2.

    Attributes:
        details: what is shown above that line.
    """

    details: str = ""


@contextlib.contextmanager
def bad_input(*kinds: type[Exception]) -> Iterator[None]:
    """Exceptions of these kinds are the user's to mend; those that know both sides of a conflict show them."""
    try:
        yield
    except kinds as error:
        told = getattr(error, "summary", str(error))
        if isinstance(error, OSError) and error.filename:
            told = f"{error.filename}: {error.strerror}"
        failure = Failure(told)
        failure.details = "\n".join(str(conflict) for conflict in getattr(error, "conflicts", ()))
        raise failure from error


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"porter: error: {' '.join(message.split())}", file=sys.stderr)


def describe(path: Path, edit: Edit) -> KeptEdit:
    """An edit by hand, for ``--json``."""
    from porter.cli.schema import KeptEdit

    added, removed = edit.counts
    return KeptEdit(path=str(path), added=added, removed=removed, recorded=edit.recorded)


def console() -> Console:
    """Stdout through rich: colours and the terminal's width if it is one. NO_COLOR is honoured."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def processes(jobs: int) -> int:
    """The number of processes that ``--jobs`` asks for."""
    return jobs or cores()


@contextlib.contextmanager
def progress_bar(
    total: int, label: str, quiet: bool = False, name: str = "name"
) -> Iterator[Callable[[Any], None] | None]:
    """Called with each outcome, of which ``name`` is shown; a bar on stderr if it is a terminal and more will come."""
    if quiet or total < 2 or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda outcome: bar.update(task, advance=1, description=f"{label} {getattr(outcome, name)}")


def hush_libraries() -> None:
    """Bars of the model libraries belong on a terminal only, as ours do."""
    if sys.stderr.isatty():
        return
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def hush_warnings() -> None:
    """Tiny checkpoints and calls made to try everything draw warnings that say nothing about a port."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("porter").setLevel(logging.ERROR)


def check_device(device: str | None) -> None:
    """Refuse a device that torch does not know or that is not here."""
    if device is None:
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise Failure(f"--device {device}: {str(error).splitlines()[0]}") from error


def check_conflicts(choice: str) -> None:
    """Refuse a word that ``--conflicts`` does not know."""
    from porter.emit.edits import CHOICES

    if choice not in CHOICES:
        raise Failure(f"--conflicts {choice}: there are {', '.join(CHOICES)}")


DTYPES = ("float32", "bfloat16", "float16", "float64")


def check_dtype(dtype: str | None) -> None:
    """Refuse a dtype that no model is run in."""
    if dtype is not None and dtype not in DTYPES:
        raise Failure(f"--dtype {dtype}: there are {', '.join(DTYPES)}")
