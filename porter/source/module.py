"""One source file: its text, its top-level definitions and what its imported names stand for."""

from __future__ import annotations

import ast
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porter.source.walk import walk

if TYPE_CHECKING:
    import libcst as cst


@dataclass(frozen=True)
class Imported:
    """A name bound by an import: ``from module import name`` (``name`` is None for ``import module``)."""

    module: str
    name: str | None


@dataclass
class Definition:
    """A top-level class, function or assignment of a module, with its lines (1-based, inclusive, decorators in)."""

    name: str
    module: SourceModule
    node: ast.stmt
    first_line: int
    last_line: int
    guards: tuple[ast.If | ast.Try, ...] = ()

    @property
    def code(self) -> str:
        """The definition's own lines, without the comments above it."""
        lines = self.module.lines[self.first_line - 1 : self.last_line]
        if self.guards:
            indent = len(lines[0]) - len(lines[0].lstrip())
            lines = [line[indent:] if line[:indent].isspace() else line for line in lines]
        return "".join(lines)

    @property
    def comments(self) -> list[str]:
        """Comment lines directly above the definition, without diffusers' "Copied from" markers."""
        found: list[str] = []
        for line in reversed(self.module.lines[: self.first_line - 1]):
            if not line.startswith("#"):
                break
            found.append(line.rstrip())
        return [line for line in reversed(found) if "Copied from" not in line]

    def parse(self) -> cst.ClassDef | cst.FunctionDef | cst.SimpleStatementLine:
        """The libcst tree of this definition alone; a file is never parsed whole for one of its classes."""
        return _parse(self.code, tuple(self.comments))


@lru_cache(maxsize=64)
def _parse(code: str, comments: tuple[str, ...]) -> Any:
    """Kept for a while: pipelines copy their helpers from each other, and what is known of a node is kept with it."""
    import libcst as cst  # takes longer than all that asks for no tree

    lines = [cst.EmptyLine(comment=cst.Comment(line)) for line in comments]
    return cst.parse_module(code).body[0].with_changes(leading_lines=lines)


@dataclass
class SourceModule:
    """A parsed source file of the diffusers package."""

    name: str
    path: Path
    text: str
    is_package: bool = False
    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        # As Python counts them: to `splitlines` a form feed or U+2028 inside a string ends a line too.
        self.lines = list(io.StringIO(self.text))

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    @cached_property
    def license(self) -> str:
        """The comment block at the head of the file."""
        head = []
        for line in self.lines:
            if not line.startswith("#") and line.strip():
                break
            head.append(line.rstrip())
        return "\n".join(head).strip()

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """Top-level definitions by name, in source order; those inside a top-level ``if``/``try`` count too."""
        found: dict[str, Definition] = {}
        for node, guards in _guarded(self.tree.body, ()):
            for name in _bound_names(node):
                decorators = getattr(node, "decorator_list", [])
                first = min([node.lineno, *(d.lineno for d in decorators)])
                found.setdefault(name, Definition(name, self, node, first, node.end_lineno or first, guards))
        return found

    @cached_property
    def imports(self) -> dict[str, Imported]:
        """Names bound by imports anywhere at top level (``if``/``try``/``TYPE_CHECKING`` blocks included)."""
        found: dict[str, Imported] = {}
        nodes = list(self.tree.body)
        while nodes:
            node = nodes.pop(0)
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    found[bound] = Imported(alias.name if alias.asname else bound, None)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    found.setdefault(alias.asname or alias.name, Imported(self.absolute(node), alias.name))
            elif isinstance(node, ast.If | ast.Try):
                for part in ("body", "orelse", "finalbody"):
                    nodes.extend(getattr(node, part, []))
                for handler in getattr(node, "handlers", []):
                    nodes.extend(handler.body)
        return found

    @cached_property
    def guarded(self) -> dict[str, ast.If | ast.Try]:
        """Names bound below a top-level ``if``/``try`` (optional imports, availability flags), with that statement."""
        found: dict[str, ast.If | ast.Try] = {}
        for outer in self.tree.body:
            if not isinstance(outer, ast.If | ast.Try) or "TYPE_CHECKING" in ast.unparse(outer).split("\n")[0]:
                continue
            for node in walk(outer):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.asname or alias.name.split(".")[0] for alias in node.names]
                else:
                    names = _bound_names(node) if isinstance(node, ast.stmt) else []
                found.update({name: outer for name in names if name not in found})
        return found

    def absolute(self, node: ast.ImportFrom) -> str:
        """The absolute module that ``from … import`` names."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        base = parts[: len(parts) - node.level + (1 if self.is_package else 0)]
        return ".".join([*base, *([node.module] if node.module else [])])

    def __reduce__(self):
        return SourceModule, (self.name, self.path, self.text, self.is_package)


Guards = tuple[ast.If | ast.Try, ...]


def _guarded(body: list[ast.stmt], guards: Guards) -> Iterator[tuple[ast.stmt, Guards]]:
    """Statements in source order, those inside an ``if`` or ``try`` with what is around them."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            for part in ("body", "orelse", "finalbody"):
                yield from _guarded(getattr(node, part, []), (*guards, node))
        else:
            yield node, guards


def _bound_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    return [name.id for target in targets for name in walk(target) if isinstance(name, ast.Name)]
