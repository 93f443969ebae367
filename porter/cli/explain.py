"""``porter explain``"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from porter.cli.common import Json, Quiet, Source, Verbose, bad_input, complete_pipeline, console

Subject = Annotated[
    str,
    typer.Argument(
        metavar="RULE|NAME|FILE:LINE", help="a rule, a pipeline, or a line of a port", autocompletion=complete_pipeline
    ),
]


def explain(
    subject: Subject, source: Source = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Tell what a rule does, what was recognised in a pipeline, or what made a line of a port.

    With --verbose also: where the rule is written, what each rule changed in the pipeline, the line's neighbours.
    """
    from porter.review.explain import UnknownSubject
    from porter.review.explain import explain as explained
    from porter.source import SourceError

    with bad_input(SourceError, UnknownSubject, OSError):
        text = explained(subject, source, verbose)
    if json:
        from porter.cli.schema import ExplainOutput, print_model

        print_model(ExplainOutput(subject=subject, verbose=verbose, text=text))
    elif quiet:
        return
    elif sys.stdout.isatty():
        from rich.markdown import Markdown

        console().print(Markdown(text))
    else:
        print(text, end="")
