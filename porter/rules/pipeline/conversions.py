"""What a step makes of the request's constants, always the same: it is made once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import libcst as cst

from porter.rules.engine import visit
from porter.rules.fold import dotted

JOINS = ("torch.cat", "torch.concat", "torch.stack")


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
        if not (is_conversion or is_join) or not all(self._is_constant(arg.value) for arg in original.args):
            return updated
        comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
        return updated.with_changes(func=cst.Name("once"), args=[cst.Arg(updated.func, comma=comma), *updated.args])

    def _has_constants(self, call: cst.Call) -> bool:
        first = call.args[0].value if call.args else None
        return isinstance(first, cst.List | cst.Tuple) and any(
            isinstance(item.value, cst.Name) and item.value.value in self._constants for item in first.elements
        )

    def _is_constant(self, node: cst.BaseExpression) -> bool:
        if isinstance(node, cst.List | cst.Tuple):
            return all(self._is_constant(item.value) for item in node.elements)
        name = dotted(node) or ""
        if isinstance(node, cst.Name):
            return name in self._constants or name in ("True", "False", "None")
        is_setting = name.startswith(("torch.", "self.")) and name.endswith((".dtype", ".device", "32", "16"))
        return is_setting or isinstance(node, cst.Integer | cst.UnaryOperation)
