"""What names stand for where a definition stands: in a file of a port, or in a file of diffusers."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from porter.source import SourceModule, SourceTree


class Scope(Protocol):
    """Finds what a name stands for."""

    def find(self, name: str) -> Found | None:
        """The definition that a bare name stands for; None if it is none of diffusers'."""

    def origin(self, name: str) -> str:
        """Where a dotted name comes from: ``torch.nn.Linear``."""

    def imported(self, node: ast.ImportFrom, name: str) -> Found | None:
        """The definition of diffusers that an import inside a function gives a name."""


@dataclass
class Found:
    """A class or function, and the scope that it stands in."""

    node: ast.ClassDef | ast.FunctionDef
    scope: Scope
    is_own: bool = False
    """It stands in the port's own file."""

    @property
    def name(self) -> str:
        return self.node.name


@dataclass
class SourceScope:
    """A file of diffusers."""

    tree: SourceTree
    module: SourceModule

    def find(self, name: str) -> Found | None:
        return _of_tree(self.tree, self.module.name, name)

    def imported(self, node: ast.ImportFrom, name: str) -> Found | None:
        return _of_tree(self.tree, self.module.absolute(node), name)

    def origin(self, name: str) -> str:
        head, _, rest = name.partition(".")
        bound = self.module.imports.get(head)
        if bound is None:
            return name
        path = f"{bound.module}.{bound.name}" if bound.name else bound.module
        return f"{path}.{rest}" if rest else path


@dataclass
class FileScope:
    """A file of a port.

    Attributes:
        definitions: by name.
        imports: what a bound name comes from: (module, name).
    """

    tree: SourceTree | None
    definitions: dict[str, ast.ClassDef | ast.FunctionDef]
    imports: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)

    def find(self, name: str) -> Found | None:
        if name in self.definitions:
            return Found(self.definitions[name], self, is_own=True)
        module, original = self.imports.get(name, ("", None))
        if self.tree is None or original is None or not module.startswith("diffusers"):
            return None
        return _of_tree(self.tree, module, original)

    def imported(self, node: ast.ImportFrom, name: str) -> Found | None:
        return _of_tree(self.tree, node.module or "", name) if self.tree is not None else None

    def origin(self, name: str) -> str:
        head, _, rest = name.partition(".")
        if head not in self.imports:
            return name
        module, original = self.imports[head]
        path = f"{module}.{original}" if original else module
        return f"{path}.{rest}" if rest else path


def _of_tree(tree: SourceTree, module: str, name: str) -> Found | None:
    definition = tree.resolve(module, name)
    if definition is None or not isinstance(definition.node, ast.ClassDef | ast.FunctionDef):
        return None
    return Found(definition.node, SourceScope(tree, definition.module))


def find_method(owner: Found, name: str) -> Found | None:
    """A method of a class, or of what it derives from."""
    assert isinstance(owner.node, ast.ClassDef)
    for item in owner.node.body:
        if isinstance(item, ast.FunctionDef) and item.name == name:
            return Found(item, owner.scope, owner.is_own)
    for base in owner.node.bases:
        found = owner.scope.find(base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found.node, ast.ClassDef) and found.node is not owner.node:
            inherited = find_method(found, name)
            if inherited is not None:
                return inherited
    return None


def dotted(node: ast.AST) -> str:
    """``a.b.c`` for a name or a chain of attributes, the empty text for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""
