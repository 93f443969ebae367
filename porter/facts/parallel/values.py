"""What is known of a value while the code of a module is followed: how it is split over ranks.

A value is the same on all ranks unless a split projection had a part in it. Then one of its axes holds this rank's
share: of the width (heads and head size in one axis, ``flat``) or of the heads alone.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from typing import Any


class Unsplittable(Exception):
    """What is done to a split value would differ from one rank to the next.

    Args:
        origins: the projections that the value comes from.
        reason: what was done to it, in words.
        line: of the code that was followed.
    """

    def __init__(self, origins: frozenset[str], reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.origins, self.reason, self.line = origins, reason, line


@dataclass(frozen=True)
class Split:
    """An axis that holds a rank's share.

    Attributes:
        axis: counted from the front.
        ndim: number of axes.
        flat: the axis holds heads and head size in one; otherwise heads alone.
        origins: projections that had a part in the value.
        attended: it went through attention.
        direct: the one projection whose output it is, axis by axis; None once its axes were changed.
        parts: the projections whose outputs lie one after the other on the axis, if there are several.
    """

    axis: int
    ndim: int
    flat: bool
    origins: frozenset[str]
    attended: bool = False
    direct: str | None = None
    parts: tuple[frozenset[str], ...] = ()

    @property
    def last(self) -> bool:
        return self.axis == self.ndim - 1

    def moved(self, axis: int) -> Split:
        return replace(self, axis=axis, direct=None)


@dataclass(frozen=True)
class Value:
    """A value of the followed code.

    Attributes:
        split: how it is split; None: the same on all ranks.
        kind: what else is known: ``none``, ``heads`` (a number of heads of this rank), ``width``, ``head`` (head size),
            ``shape``, ``self``, ``module``, ``function``, ``list``.
        what: the value whose shape it is, the name of the module, the function.
        items: of a tuple or list.
    """

    split: Split | None = None
    kind: str = ""
    what: Any = None
    items: tuple[Value, ...] | None = None

    def splits(self) -> list[Split]:
        found = [self.split] if self.split else []
        for item in self.items or ():
            found += item.splits()
        return found


WHOLE = Value()
NONE = Value(kind="none")


@dataclass(frozen=True)
class Closure:
    """A function and the variables around it."""

    node: ast.FunctionDef | ast.Lambda
    around: dict[str, Value]


def origins_of(*values: Value) -> frozenset[str]:
    """The projections that had a part in any of the values."""
    return frozenset(name for value in values for split in value.splits() for name in split.origins)


def split_value(value: Value, **changes: Any) -> Value:
    """The value with its split changed."""
    assert value.split is not None
    return Value(replace(value.split, **changes))


def merge(values: list[Value], line: int) -> Value:
    """What an elementwise operation makes of its operands.

    Raises:
        Unsplittable: they are split along different axes.
    """
    split: Split | None = None
    for value in values:
        for other in value.splits():
            if split is None:
                split = other
            elif (split.axis - split.ndim, split.flat) != (other.axis - other.ndim, other.flat):
                raise Unsplittable(origins_of(*values), "combines values that are split along different axes", line)
            else:
                split = replace(
                    split,
                    origins=split.origins | other.origins,
                    attended=split.attended or other.attended,
                    direct=split.direct if split.direct == other.direct else None,
                    parts=split.parts if split.parts == other.parts else (),
                )
    return Value(split)


def join(first: Value, second: Value) -> Value | None:
    """The value after a branch; None where it is split on one side and whole on the other."""
    if first == second:
        return first
    if first.kind == "none" or second.kind == "none":
        other = second if first.kind == "none" else first
        return other if other.splits() else WHOLE
    if first.items is not None and second.items is not None and len(first.items) == len(second.items):
        joined = [join(a, b) for a, b in zip(first.items, second.items)]
        return None if None in joined else Value(items=tuple(item for item in joined if item is not None))
    if first.split and second.split:
        a, b = first.split, second.split
        if (a.axis, a.ndim, a.flat) != (b.axis, b.ndim, b.flat):
            return None
        return Value(
            replace(
                a,
                origins=a.origins | b.origins,
                attended=a.attended and b.attended,
                direct=a.direct if a.direct == b.direct else None,
                parts=a.parts if a.parts == b.parts else (),
            )
        )
    if first.splits() or second.splits():
        return None
    return Value(kind=first.kind, what=first.what) if first.kind == second.kind and first.what == second.what else WHOLE
