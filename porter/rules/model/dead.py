"""Remove what folding left without a reader."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst

from porter.rules.engine import code, names_read, to_ast, visit
from porter.rules.fold import dotted, only
from porter.source.walk import walk

# Calls without effect whose result a removed branch read.
PURE_CALLS = frozenset({"torch.is_grad_enabled"})


def without_dead(before: cst.FunctionDef, after: cst.FunctionDef) -> cst.FunctionDef:
    """``after`` (``before``, folded) without assignments to local names that only removed code read.

    An assignment goes if its value has no effect: a name, an attribute, a constant. What the source itself assigns and
    never reads stays.
    """
    if after is before:
        return after
    read = names_read(before.body)
    while True:
        dead = read - names_read(after.body)
        cleaned: Any = visit(after, _RemoveAssignments(dead)) if dead else after
        if cleaned is after:
            return after
        after = cleaned


class _RemoveAssignments(cst.CSTTransformer):
    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def leave_SimpleStatementLine(self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine) -> Any:
        node = only(updated)
        if not isinstance(node, cst.Assign) or len(node.targets) != 1 or not has_no_effect(node.value):
            return updated
        target = node.targets[0].target
        is_dead = isinstance(target, cst.Name) and target.value in self.names
        return cst.RemoveFromParent() if is_dead else updated


def has_no_effect(node: cst.BaseExpression) -> bool:
    """Whether evaluating an expression does nothing but give its value, and cannot fail."""
    if isinstance(node, cst.Call):
        return dotted(node.func) in PURE_CALLS and not node.args
    return dotted(node) is not None or isinstance(node, cst.Integer | cst.Float | cst.SimpleString)


class WithoutUnitFactors(cst.CSTTransformer):
    """``x / self.factor`` is ``x`` where the factor is known to be 1; ``x = x`` is nothing.

    Args:
        constants: attributes with a known value, by dotted name.
    """

    def __init__(self, constants: dict[str, Any]) -> None:
        self.ones = {name for name, value in constants.items() if type(value) in (int, float) and value == 1}

    def leave_BinaryOperation(self, original: cst.BinaryOperation, updated: cst.BinaryOperation) -> Any:
        divides = isinstance(updated.operator, cst.Divide | cst.Multiply)
        return updated.left if divides and dotted(updated.right) in self.ones else updated

    def leave_SimpleStatementLine(self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine) -> Any:
        node = only(updated)
        if isinstance(node, cst.Assign) and len(node.targets) == 1 and only(original) is not node:
            if isinstance(node.value, cst.Name) and code(node.targets[0].target) == node.value.value:
                return cst.RemoveFromParent()
        return updated


class RaiseOnNone(cst.CSTTransformer):
    """A block that computes with a parameter that is None raises what Python would raise there.

    Args:
        constants: parameters with a constant value.
    """

    def __init__(self, constants: dict[str, Any]) -> None:
        self.nones = {name for name, value in constants.items() if value is None}

    def leave_IndentedBlock(self, original: cst.IndentedBlock, updated: cst.IndentedBlock) -> cst.IndentedBlock:
        for statement in updated.body:
            name = self._none_in(statement) if isinstance(statement, cst.SimpleStatementLine) else None
            if name is not None:
                message = f"{name} is None where diffusers' Attention computes with it"
                return updated.with_changes(body=[cst.parse_statement(f'raise TypeError("{message}")')])
        return updated

    def _none_in(self, statement: cst.SimpleStatementLine) -> str | None:
        for node in walk(to_ast(statement)):
            if isinstance(node, ast.BinOp):
                for side in (node.left, node.right):
                    if isinstance(side, ast.Name) and side.id in self.nones:
                        return side.id
        return None
