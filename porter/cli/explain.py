"""``porter explain``"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from porter.cli.common import Json, Source, bad_input, console, print_json

Subject = Annotated[str, typer.Argument(metavar="RULE|NAME|FILE:LINE", help="a rule, a pipeline, or a line of a port")]


def explain(subject: Subject, source: Source = None, json: Json = False) -> None:
    """Tell what a rule does, what was recognised in a pipeline, or what made a line of a port."""
    from porter.review.explain import UnknownSubject
    from porter.review.explain import explain as explained
    from porter.source import SourceError

    with bad_input(SourceError, UnknownSubject, OSError):
        text = explained(subject, source)
    if json:
        print_json({"schema_version": 1, "subject": subject, "text": text})
    elif sys.stdout.isatty():
        from rich.markdown import Markdown

        console().print(Markdown(text))
    else:
        print(text, end="")
