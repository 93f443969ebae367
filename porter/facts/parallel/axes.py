"""What operations that change axes make of a split value."""

from __future__ import annotations

from dataclasses import replace

from porter.facts.parallel.values import Split, Unsplittable, Value


def integer(value: Value) -> int | None:
    """The number that a value is known to be."""
    return value.what if value.kind == "number" and isinstance(value.what, int) else None


def refuse(split: Split, reason: str, line: int) -> Unsplittable:
    return Unsplittable(split.origins, reason, line)


def transposed(split: Split, first: int, second: int) -> Split:
    first, second = first % split.ndim, second % split.ndim
    if split.axis not in (first, second):
        return replace(split, direct=None)
    return split.moved(second if split.axis == first else first)


def permuted(split: Split, order: list[int]) -> Split:
    return split.moved([place % split.ndim for place in order].index(split.axis))


def unflattened(split: Split, axis: int, sizes: list[Value], line: int) -> Split:
    """One axis becomes several; the first or the heads' of them holds the share."""
    axis = axis % split.ndim
    more = len(sizes) - 1
    if axis != split.axis:
        return replace(split, ndim=split.ndim + more, axis=split.axis + (more if axis < split.axis else 0), direct=None)
    if not split.flat:
        raise refuse(split, "divides the axis of heads", line)
    heads = [place for place, size in enumerate(sizes) if size.kind == "heads"]
    if not heads and len(sizes) == 2 and sizes[1].kind == "head" and integer(sizes[0]) == -1:
        heads = [0]
    if len(heads) != 1 or heads[0] != 0:
        raise refuse(split, "divides its width into something else than heads", line)
    return replace(split, axis=axis, ndim=split.ndim + more, flat=False, direct=None)


def flattened(split: Split, first: int, last: int, line: int) -> Split:
    """Several axes become one."""
    first, last = first % split.ndim, last % split.ndim
    fewer = last - first
    if not first <= split.axis <= last:
        return replace(split, ndim=split.ndim - fewer, axis=split.axis - (fewer if split.axis > last else 0))
    if split.axis != first:
        raise refuse(split, "joins its axis to one before it", line)
    # Heads that were repeated for their group are heads still.
    return replace(split, ndim=split.ndim - fewer, flat=split.flat or last == split.ndim - 1, direct=None)


def reshaped(split: Split, sizes: list[Value], starred: bool, line: int) -> Split:
    """``view`` and ``reshape``.

    Args:
        sizes: the new sizes; what ``*x.shape[:-1]`` stands for is not among them.
        starred: whether such a part comes first, taking all axes but the last.
    """
    heads = [place for place, size in enumerate(sizes) if size.kind == "heads"]
    ndim = len(sizes) + (split.ndim - 1 if starred else 0)
    shift = split.ndim - 1 if starred else 0
    if split.flat:
        if not split.last:
            raise refuse(split, "reshapes a width that is not the last axis", line)
        if len(heads) == 1:
            return replace(split, axis=heads[0] + shift, ndim=ndim, flat=False, direct=None)
        if len(sizes) >= 2 and sizes[-1].kind == "head" and integer(sizes[-2]) == -1:
            return replace(split, axis=ndim - 2, ndim=ndim, flat=False, direct=None)
        if sizes and (sizes[-1].kind == "width" or (integer(sizes[-1]) == -1 and ndim == split.ndim)):
            return replace(split, axis=ndim - 1, ndim=ndim)
        raise refuse(split, "reshapes its width", line)
    if starred and split.axis < split.ndim - 1:
        return replace(split, ndim=ndim)  # the last axis alone is divided
    if len(heads) == 1:
        return replace(split, axis=heads[0] + shift, ndim=ndim)
    is_width = bool(sizes) and (sizes[-1].kind == "width" or integer(sizes[-1]) == -1)
    if is_width and split.axis == split.ndim - 2 and ndim == split.ndim - 1:
        return replace(split, axis=ndim - 1, ndim=ndim, flat=True, direct=None)
    raise refuse(split, "reshapes its heads", line)
