"""Backward slices: which statements of a function a later one depends on, and whether they can run elsewhere."""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass

from porter.source.walk import walk

SIMPLE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.If, ast.Expr, ast.Pass)


@dataclass
class Effect:
    """What a statement reads and binds: plain names, and attributes of ``self``."""

    reads: set[str]
    writes: set[str]
    attributes: set[str]
    simple: bool


def effect(statement: ast.stmt) -> Effect:
    """The effect of one statement, nested blocks included."""
    reads: set[str] = set()
    writes: set[str] = set()
    attributes: set[str] = set()
    bound_inside = {n.id for c in walk(statement) if isinstance(c, ast.comprehension) for n in _names(c.target)}
    simple = True
    for node in walk(statement):
        if isinstance(node, ast.Name):
            (writes if isinstance(node.ctx, ast.Store | ast.Del) else reads).add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            attributes.add(node.attr)
            simple &= not isinstance(node.ctx, ast.Store)
        elif isinstance(node, ast.stmt) and not isinstance(node, SIMPLE):
            simple = False
        elif isinstance(node, ast.Call) and _is_method_call(node):
            simple = False
    for node in walk(statement):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            reads.add(node.target.id)
    return Effect(reads - bound_inside - {"self"}, writes - bound_inside, attributes, simple)


def _names(node: ast.AST) -> list[ast.Name]:
    return [n for n in walk(node) if isinstance(n, ast.Name)]


def _is_method_call(node: ast.Call) -> bool:
    """``self.method(…)``; calls of what an attribute holds (``self.processor.resize(…)``) are another matter."""
    return isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "self"


def backward_slice(effects: list[Effect], index: int, params: set[str], known: set[str]) -> list[int] | None:
    """Indices of the statements before ``index`` that it depends on, in order; None if one of them cannot be moved.

    Args:
        effects: effects of all top-level statements of the function.
        params: parameters of the function.
        known: names that exist at module level.
    """
    wanted = set(effects[index].reads)
    chosen: list[int] = []
    for position in range(index - 1, -1, -1):
        if effects[position].writes & wanted:
            if not effects[position].simple:
                return None
            chosen.append(position)
            wanted |= effects[position].reads
    bound = {name for position in chosen for name in effects[position].writes} | effects[index].writes
    loose = wanted - bound - params - known - set(dir(builtins))
    return None if loose else sorted(chosen)


def needs_value(statement: ast.stmt, name: str) -> bool:
    """Whether a statement fails for ``name`` being None: it reads attributes or items of it unguarded."""
    if isinstance(statement, ast.If) and f"{name} is not None" in ast.unparse(statement.test):
        return False
    return any(
        isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == name
        for node in walk(statement)
    ) and f"{name} is not None" not in ast.unparse(statement)
