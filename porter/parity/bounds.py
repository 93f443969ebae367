"""Calls at the bounds that a pipeline's source draws: at each number it compares an argument with, and beside it."""

from __future__ import annotations

import ast
import inspect
import operator
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from porter.parity.cases import Case
from porter.parity.request import PER_PROMPT

# Sizes beyond these would make a call long, and tell no more.
_LARGEST = {"height": 512, "width": 512, "num_frames": 64}
_LARGEST_NUMBER = 4096
# Where the call must not begin to differ by itself.
_LEFT_OUT = frozenset(("num_inference_steps", "callback_steps"))
_ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
# A bound moved by a hundredth lies beyond this.
_BESIDE = 0.005
_OPERATORS = {ast.Mult: operator.mul, ast.Pow: operator.pow, ast.Add: operator.add, ast.FloorDiv: operator.floordiv}


def bound_cases(pipeline: Any, inputs: Mapping[str, Any]) -> list[Case]:
    """One case for every number at a bound, or beside one, that an argument may have.

    Args:
        pipeline: of diffusers; its methods are read, and its attributes where a bound names them.
        inputs: recipe of the plain call.
    """
    cls = type(pipeline)
    parameters = inspect.signature(cls.__call__).parameters
    changes: dict[str, list[Any]] = {}
    for compare, refuses in _comparisons(cls):
        name = _argument(compare.left, parameters)
        if name is None or name in _LEFT_OUT:
            continue
        held = inputs.get(name, parameters[name].default)
        for value in _values(compare, pipeline, held, refuses):
            if PER_PROMPT.fullmatch(name) and value < 1:
                continue  # no request says so
            if abs(value) <= _LARGEST.get(name, _LARGEST_NUMBER) and value not in changes.setdefault(name, []):
                changes[name].append(value)
    return [
        Case(name=f"{name} of {value}", changes={name: value}, first_call_only=isinstance(value, int))
        for name, values in changes.items()
        for value in values
    ]


def _comparisons(cls: type) -> Iterator[tuple[ast.Compare, bool]]:
    """Every comparison in the methods of a pipeline, and whether what it holds for is refused."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, SyntaxError):
        return
    refusing: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise):
            refusing |= {id(part) for part in ast.walk(node.test)}
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield node, id(node) in refusing


def _argument(value: ast.expr, parameters: Mapping[str, Any]) -> str | None:
    """The argument that an expression is, itself or as the pipeline keeps it, or whose remainder it is."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mod):
        value = value.left
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id == "self":
        name = value.attr.removeprefix("_")
    elif isinstance(value, ast.Name):
        name = value.id
    else:
        return None
    return name if name in parameters else None


def _values(compare: ast.Compare, pipeline: Any, held: Any, refuses: bool) -> list[Any]:
    """Numbers at the bound and beside it."""
    if isinstance(compare.left, ast.BinOp):  # a multiple is asked for: half a one more is none
        number = _number(compare.left.right, pipeline)
        usable = refuses and isinstance(number, int) and number > 1 and type(held) is int
        return [held - held % number + number // 2] if usable else []
    number = _number(compare.comparators[0], pipeline)
    if number is None or not isinstance(compare.ops[0], _ORDER):
        return []
    if refuses:
        below = isinstance(compare.ops[0], (ast.Lt, ast.LtE))
        return [int(number) - 1, int(number)] if below else [int(number), int(number) + 1]
    return [float(number), number + _BESIDE] if isinstance(held, float) else []


def _number(value: ast.expr, pipeline: Any) -> Any:
    """The whole or real number that an expression of constants and the pipeline's attributes is; None if it is none."""
    if isinstance(value, ast.Constant):
        found = value.value
    elif isinstance(value, ast.Attribute):
        found = _held(value, pipeline)
    elif isinstance(value, ast.BinOp) and type(value.op) in _OPERATORS:
        left, right = _number(value.left, pipeline), _number(value.right, pipeline)
        found = _OPERATORS[type(value.op)](left, right) if left is not None and right is not None else None
    else:
        found = None
    return found if type(found) in (int, float) else None


def _held(value: ast.expr, pipeline: Any) -> Any:
    """What ``self.a.b`` is; None if it is not there, or something else is asked for."""
    if isinstance(value, ast.Name):
        return pipeline if value.id == "self" else None
    return getattr(_held(value.value, pipeline), value.attr, None) if isinstance(value, ast.Attribute) else None
