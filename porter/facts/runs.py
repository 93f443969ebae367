"""Runs of statements that compute the same in each step of a request: what they take, and what they leave.

Tables of positions for a prompt's tokens, masks made of lengths: code that stands inline in a method, between
statements that work on the sample. A run of such statements can become a function of its own, whose result is then held
like that of any other call.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass

from porter.facts.flow import flow, reads
from porter.facts.purity import CHANGES, READS
from porter.facts.scope import dotted
from porter.source.walk import walk

# What a function of its own could not contain, or what says more than it computes.
LEAVES = (ast.Return, ast.Raise, ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.Delete)
DEFINES = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.Import, ast.ImportFrom, ast.With, ast.Try)


@dataclass(frozen=True)
class Run:
    """Statements of a method, by where they stand among its own.

    Attributes:
        definition: the class.
        function: the method.
        first, count: which of the method's statements.
        inputs: variables that they read from before.
        outputs: variables that they bind and that are read later.
    """

    definition: str
    function: str
    first: int
    count: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def can_stand_apart(statement: ast.stmt, bound: set[str]) -> bool:
    """Whether a statement only binds variables, and changes nothing that was there before the run.

    Args:
        bound: variables that the run bound so far; what they hold is the run's own.
    """
    is_call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    if not isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.For | ast.If) and not is_call:
        return False
    if isinstance(statement, ast.AugAssign) and _root(statement.target) not in bound:
        return False
    own = bound | {n.id for n in walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in walk(statement):
        if isinstance(node, LEAVES + DEFINES):
            return False
        writes = isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            writes = node.func.attr in CHANGES or node.func.attr.endswith("_")
            node = node.func
        if writes and _root(node) not in own:
            return False
    return True


def makes_tensors(statement: ast.stmt) -> bool:
    """Whether a statement calls anything that may make a tensor, rather than a size or a copy of a dictionary."""
    calls = [node.func for node in walk(statement) if isinstance(node, ast.Call)]
    names = (call.attr if isinstance(call, ast.Attribute) else dotted(call) for call in calls)
    return any(name not in READS | CHANGES and not hasattr(builtins, name) for name in names)


def ports_of(body: list[ast.stmt], first: int, count: int, known: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(inputs, outputs) of a run; no outputs where one of them may not be bound.

    Args:
        body: the statements of the function.
        known: variables that are bound before the run.
    """
    inside, after = flow(body[first : first + count]), flow(body[first + count :])
    wanted = inside.bound & after.exposed
    inputs = tuple(sorted((inside.exposed & known) - {"self"}))
    return inputs, tuple(sorted(wanted)) if wanted <= inside.sure else ()


def taken(statement: ast.stmt, bound: set[str]) -> set[str]:
    """Variables that a statement of a run reads from before the run."""
    return flow([statement]).exposed & reads(statement) - bound


def _root(node: ast.AST) -> str:
    """The variable that a chain of attributes and items begins with."""
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
