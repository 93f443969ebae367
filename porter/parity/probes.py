"""Statements that note that they ran: which lines of a port a call reaches, at hardly any cost."""

from __future__ import annotations

import ast
from types import CodeType
from typing import TypeVar

_Node = TypeVar("_Node", bound=ast.AST)


class Probes:
    """Compiles source text so that every statement notes where it begins.

    A trace function would be called for every line of torch as well.

    Args:
        seen: gets (module, line) of what runs.
    """

    NAME = "_porter_ran"
    """What the compiled code calls; its namespace must hold :attr:`note` under it."""

    def __init__(self, seen: set[tuple[str, int]]) -> None:
        self.seen = seen
        self.compiled: dict[str, CodeType] = {}

    def note(self, module: str, line: int) -> None:
        """Called by a statement."""
        self.seen.add((module, line))

    def compile(self, module: str, source: bytes, file: str) -> CodeType:
        """The code of a module whose statements note that they run."""
        if module not in self.compiled:
            tree = _Noting(module).visit(ast.parse(source))
            self.compiled[module] = compile(ast.fix_missing_locations(tree), file, "exec")
        return self.compiled[module]


class _Noting(ast.NodeTransformer):
    def __init__(self, module: str) -> None:
        self.module = module

    def generic_visit(self, node: _Node) -> _Node:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            held = getattr(node, name, None)
            if isinstance(held, list) and held:
                setattr(node, name, [part for statement in held for part in self._noted(statement)])
        return node

    def _noted(self, statement: ast.stmt) -> list[ast.stmt]:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if docstring or isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            return [statement]
        where: list[ast.expr] = [ast.Constant(self.module), ast.Constant(statement.lineno)]
        call = ast.Expr(ast.Call(ast.Name(Probes.NAME, ast.Load()), where, []))
        return [ast.copy_location(call, statement), statement]
