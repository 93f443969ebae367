"""What a mutator knows about the place of a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import libcst as cst

from porter.parity.mutants.edits import Edit


@dataclass(frozen=True)
class Change:
    """Edits that make one fault, and the node they are about."""

    node: cst.CSTNode
    edits: tuple[Edit, ...]


class Context:
    """Source text, the nodes around, and the names of the functions around."""

    def __init__(self, source: bytes, spans: Mapping[Any, Any]) -> None:
        self.source = source
        self._spans = spans
        self.parents: list[cst.CSTNode] = []
        self.scopes: list[cst.FunctionDef | cst.ClassDef] = []

    @property
    def function(self) -> str:
        """Dotted name of the function or class around."""
        return ".".join(scope.name.value for scope in self.scopes)

    @property
    def in_function(self) -> bool:
        """Whether the code runs when something is called, not when the module is loaded."""
        return any(isinstance(scope, cst.FunctionDef) for scope in self.scopes)

    def enter(self, node: cst.FunctionDef | cst.ClassDef) -> None:
        """Go into a function or class."""
        self.scopes.append(node)

    def leave(self) -> None:
        """Come out of it."""
        self.scopes.pop()

    def span(self, node: cst.CSTNode) -> tuple[int, int]:
        """First and last byte of a node, without parentheses around it."""
        found = self._spans[node]
        return found.start, found.start + found.length

    def text(self, node: cst.CSTNode) -> str:
        """The source of a node, without parentheses around it."""
        start, end = self.span(node)
        return self.source[start:end].decode()

    def replace(self, node: cst.CSTNode, text: str) -> Change:
        """Put ``text`` in the place of an expression."""
        return Change(node, (Edit(*self.span(node), text),))

    def swap(self, first: cst.CSTNode, second: cst.CSTNode) -> Change:
        """Exchange two expressions."""
        edits = (Edit(*self.span(first), f"({self.text(second)})"), Edit(*self.span(second), f"({self.text(first)})"))
        return Change(first, edits)
