"""What a step makes of the request's constants, always the same: it is made once, before the steps where it can be."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import libcst as cst

from porter.rules.engine import code, nodes, statements, visit
from porter.rules.fold import dotted
from porter.rules.trees import NO_VARIABLES

JOINS = ("torch.cat", "torch.concat", "torch.stack")
# What is looked at or run only in some cases.
_IN_SOME_CASES = (cst.IfExp, cst.BooleanOperation, cst.Lambda, cst.BaseComp)


def convert_before(
    before: list[Any], body: list[Any], constants: Collection[str], alone: Collection[str]
) -> tuple[list[Any], list[Any]]:
    """Statements in front of the steps and those of a step, with conversions (``.to``) moved from these to those.

    Args:
        before: what runs once.
        body: what predicts, in each step.
        constants: variables of ``before`` that steps leave as they are.
        alone: those of them that nothing but ``body`` reads.

    Returns:
        Both; a constant of which each step makes the same and nothing else is converted at the end of ``before``.
    """
    moved = {name: text for name in sorted(alone) if (text := _conversion(name, body, frozenset(constants)))}
    if not moved:
        return before, body
    converted = statements("\n".join(f"{name} = {text}" for name, text in moved.items()))
    return [*before, *converted], [visit(item, _Converted(moved)) for item in body]


def _conversion(name: str, body: list[Any], constants: frozenset[str]) -> str:
    """``name.to(…)``, if steps always need it and nothing else of the variable; else nothing."""
    calls = [call for item in body for call in nodes(item, cst.Call) if dotted(call.func) == f"{name}.to"]
    reads = [node for item in body for node in nodes(item, cst.Name, NO_VARIABLES) if node.value == name]
    if len(calls) != len(reads) or len(texts := {code(call) for call in calls}) != 1:
        return ""
    if not all(is_constant(arg.value, constants - {name}) for arg in calls[0].args):
        return ""
    always = (item for item in body if isinstance(item, cst.SimpleStatementLine))
    always = (item for item in always if not any(nodes(item, _IN_SOME_CASES)))
    return texts.pop() if any(name in map(_owner, nodes(item, cst.Call)) for item in always) else ""


def _owner(call: cst.Call) -> str:
    return (dotted(call.func) or "").rpartition(".")[0]


class _Converted(cst.CSTTransformer):
    def __init__(self, moved: dict[str, str]) -> None:
        super().__init__()
        self._moved = moved

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.BaseExpression:
        name = _owner(original)
        return cst.Name(name) if name in self._moved and code(original) == self._moved[name] else updated


def convert_once(body: list[Any], constants: Collection[str]) -> list[Any]:
    """Statements of a step in which constants are converted (``.to``) and joined by way of ``once``.

    A model holds results for the tensors that it is given, by their places in memory: a copy made in each step would
    be another one each time.
    """
    return [visit(item, _Convert(frozenset(constants))) for item in body]


class _Convert(cst.CSTTransformer):
    def __init__(self, constants: frozenset[str]) -> None:
        super().__init__()
        self._constants = constants

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        name = dotted(original.func) or ""
        owner, _, method = name.rpartition(".")
        is_conversion = method == "to" and owner in self._constants
        is_join = name in JOINS and self._has_constants(original)
        if not (is_conversion or is_join) or not all(is_constant(arg.value, self._constants) for arg in original.args):
            return updated
        comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
        return updated.with_changes(func=cst.Name("once"), args=[cst.Arg(updated.func, comma=comma), *updated.args])

    def _has_constants(self, call: cst.Call) -> bool:
        first = call.args[0].value if call.args else None
        return isinstance(first, cst.List | cst.Tuple) and any(
            isinstance(item.value, cst.Name) and item.value.value in self._constants for item in first.elements
        )


def is_constant(node: cst.BaseExpression, constants: frozenset[str]) -> bool:
    """Whether an expression is the same in all steps: made of constants, plain values, and settings of modules."""
    if isinstance(node, cst.List | cst.Tuple):
        return all(is_constant(item.value, constants) for item in node.elements)
    name = dotted(node) or ""
    if isinstance(node, cst.Name):
        return name in constants or name in ("True", "False", "None")
    is_setting = name.startswith(("torch.", "self.")) and name.endswith((".dtype", ".device", "32", "16"))
    return is_setting or isinstance(node, cst.Integer | cst.UnaryOperation)
