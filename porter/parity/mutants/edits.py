"""A fault as a change of source text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """Bytes ``start`` to ``end`` of a module's source become ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Mutant:
    """One fault at one place."""

    mutator: str
    module: str
    """Name of the module inside its package."""
    line: int
    """Of what is changed."""
    lines: tuple[int, ...]
    """Of the code that must run for the fault to run; empty: it runs when the port is loaded."""
    function: str
    """Dotted name of the function or class it stands in; empty: the module."""
    edits: tuple[Edit, ...]
    before: str
    after: str
    bug: int = 0
    """Number of the known bug; 0: a generic fault."""
    around: tuple[tuple[int, int], ...] = ()
    """First and last byte of the expressions that hold the whole change, the innermost first."""
    is_default: bool = False
    """Whether a parameter's default is changed, which runs only where the argument is left out."""


def apply(source: bytes, edits: Iterable[Edit]) -> bytes:
    """The source with the edits made; they must not overlap."""
    for edit in sorted(edits, key=lambda item: -item.start):
        source = source[: edit.start] + edit.text.encode() + source[edit.end :]
    return source
