"""``porter diff``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from porter.cli.common import Failure, Json, Quiet, Source, Verbose, bad_input, complete_pipeline, console

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="diffusers.XPipeline or XPipeline", autocompletion=complete_pipeline)
]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write the differences as a page")]
Unified = Annotated[bool, typer.Option("--unified", "-u", help="lines that go above lines that come, at any width")]
TargetName = Annotated[str, typer.Option("--target", metavar="porter|vllm-omni", help="what the port imports")]


def diff(
    name: Name,
    html: Html = None,
    unified: Unified = False,
    target: TargetName = "porter",
    source: Source = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare diffusers with its port, each hunk with the rule that made it, its class and why; 1: one has none."""
    from porter.listing import find_pipeline
    from porter.review.diff import diff_pipeline
    from porter.source import SourceError, SourceTree

    if html is not None and html.is_dir():
        raise Failure(f"--html {html} is a folder; name a file")
    if html is not None and not html.absolute().parent.is_dir():
        raise Failure(f"--html {html}: {html.parent} is no folder")
    with bad_input(SourceError, ValueError):
        tree = SourceTree(source)
        find_pipeline(tree, name.removeprefix("diffusers."))
        found = diff_pipeline(name, tree, target)
    if html is not None:
        from porter.review.html import write

        with bad_input(OSError):
            write(found, html)
    if json:
        from porter.cli.schema import print_model

        print_model(found)
    elif html is None and not quiet:
        from porter.review.terminal import print_diff, print_steps

        print_diff(found, console(), unified)
        if verbose:
            print_steps(found, console())
    elif not quiet:
        print(html)
    if found.unattributed:
        raise typer.Exit(1)
