"""What planted faults do at run time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import numpy as np
import torch

from porter.parity.flatten import flatten


class Inapplicable(BaseException):
    """The fault changes nothing in this checkpoint; loaders let it through."""


Weights = Iterable[tuple[str, torch.Tensor]]


def without_values(weights: Weights, number: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights, one of them zero: as if it had been counted as loaded and never copied."""
    for index, (name, tensor) in enumerate(weights):
        yield name, torch.zeros_like(tensor) if index == number else tensor


def exchanged(weights: Weights) -> list[tuple[str, torch.Tensor]]:
    """The weights, the first two matrices of one shape under each other's name."""
    items = list(weights)
    seen: dict[torch.Size, int] = {}
    for index, (name, tensor) in enumerate(items):
        if tensor.ndim < 2:
            continue
        if tensor.shape in seen:
            other = seen[tensor.shape]
            items[other], items[index] = (items[other][0], tensor), (name, items[other][1])
            break
        seen[tensor.shape] = index
    return items


def zeroed(weights: Weights, part: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights, those with ``part`` in their name zero."""
    found = False
    for name, tensor in weights:
        found |= part in name
        yield name, torch.zeros_like(tensor) if part in name else tensor
    if not found:
        raise Inapplicable(f"the checkpoint has no tensor with {part!r} in its name")


def swapped_names(weights: Weights, first: str, second: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of one layer under another's name and the other way round, where the shapes allow it."""
    items = dict(weights)
    swapped = 0
    for name, tensor in items.items():
        other = name.replace(f"{first}.", "\0").replace(f"{second}.", f"{first}.").replace("\0", f"{second}.")
        fits = other != name and other in items and items[other].shape == tensor.shape
        swapped += fits
        yield name, items[other] if fits else tensor
    if not swapped:
        raise Inapplicable(f"the checkpoint has no {first} and {second} of one shape")


def same(first: Any, second: Any) -> Any:
    """The first of two values, if they are equal.

    Raises:
        AssertionError: they are not, so that a fault that makes one of the other changes something.
    """
    mine, its = flatten(first), flatten(second)
    if not mine or mine.keys() != its.keys():
        raise AssertionError("another structure, or one that cannot be compared")
    for name, value in mine.items():
        other = its[name]
        if type(value) is not type(other):
            raise AssertionError("another type")
        if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
            if value.dtype != other.dtype or not torch.equal(value, other):
                raise AssertionError("another tensor")
        elif not bool(np.all(value == other)):
            raise AssertionError("another value")
    return first


def enlarged(value: Any) -> Any:
    """A number, or a list of them, half as large again; what is no number stays as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(enlarged(item) for item in value)
    return value * 1.5 if isinstance(value, (int, float, torch.Tensor)) and not isinstance(value, bool) else value


def unshifted(scheduler: Any) -> Any:
    """A scheduler without the shift of its sigmas."""
    config = {**scheduler.config}
    config.update({name: None for name in ("shift_terminal",) if name in config})
    config.update({name: 1.0 for name in ("shift", "flow_shift") if name in config})
    config.update({name: 0.0 for name in ("base_shift", "max_shift") if name in config})
    if config == {**scheduler.config}:
        raise Inapplicable("the scheduler of this checkpoint shifts nothing")
    return type(scheduler).from_config(config)


def recleaned(prompt: Any) -> Any:
    """A prompt after a cleaning that does too much."""
    import html

    if isinstance(prompt, list):
        return [recleaned(item) for item in prompt]
    return html.unescape(html.unescape(prompt)).strip().lower() if isinstance(prompt, str) else prompt


class Unused:
    """Stands where a value was that no case uses: whatever is done with it raises."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("this value is used")

    __bool__ = __iter__ = __len__ = __call__ = __getitem__ = __getattr__ = __index__ = __float__ = __int__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = _refuse
    __rfloordiv__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __neg__ = __mod__ = __pow__ = _refuse
    __hash__ = object.__hash__
