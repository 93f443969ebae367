"""Predictions of several parts: video and audio, each with a scheduler of its own."""

from __future__ import annotations

from typing import Any

import libcst as cst

from porter.rules.engine import code, names_in, nodes, statements, visit
from porter.rules.trees import NO_VARIABLES


def take_apart(denoise: list[Any], step: list[Any], given: frozenset[str]) -> tuple[list[Any], list[Any]]:
    """``step(noise_pred[0], …)`` and ``step(noise_pred[1], …)`` made to read a variable for each part.

    The engine lays the predictions of several requests one below the other, and gives each request its rows back. That
    is done to the first part; the others stay with their request, as whatever else the prediction leaves behind.

    Args:
        denoise: the statements that predict.
        step: those that apply the prediction.
        given: variables in what the scheduler's step is given.

    Returns:
        Both; as they are if no variable is read by its parts alone, of which there are two at least, the first among
        them.
    """
    for name in sorted(given):
        found = [_place(node, name) for item in step for node in nodes(item, cst.Subscript)]
        places = [place for place in found if place is not None]
        read = [node for item in step for node in nodes(item, cst.Name, NO_VARIABLES) if node.value == name]
        rest = f"{name}_rest"
        if len(places) != len(read) or not {0} < set(places):
            continue
        if not any(rest in names_in(item) for item in (*denoise, *step)):
            taken = statements(f"{name}, {rest} = {name}[0], {name}[1:]")
            return [*denoise, *taken], [visit(item, _Parts(name, rest)) for item in step]
    return denoise, step


def _place(node: cst.BaseExpression, name: str) -> int | None:
    """``1`` of ``name[1]``."""
    if not isinstance(node, cst.Subscript) or code(node.value) != name or len(node.slice) != 1:
        return None
    index = node.slice[0].slice
    return int(index.value.value) if isinstance(index, cst.Index) and isinstance(index.value, cst.Integer) else None


class _Parts(cst.CSTTransformer):
    def __init__(self, name: str, rest: str) -> None:
        self.name, self.rest = name, rest

    def leave_Subscript(self, original: cst.Subscript, updated: cst.Subscript) -> cst.BaseExpression:
        place = _place(original, self.name)
        if place is None:
            return updated
        return cst.parse_expression(f"{self.rest}[{place - 1}]" if place else self.name)
