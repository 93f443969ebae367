"""The arguments of several calls of a model as those of one, and its output as theirs again.

A model computes each sample of a batch by itself. So calls whose arguments look alike can be one call: what has an
entry a sample is put together along the samples, what has none must be equal in all calls.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch


class Unmergeable(Exception):
    """Calls that differ in more than their samples."""


def structure(value: Any) -> Hashable:
    """What must be alike in two calls that are put together: types and shapes of tensors, numbers, texts, objects."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype, value.device)
    if isinstance(value, Mapping):
        return tuple((str(name), structure(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return (type(value).__name__, *(structure(item) for item in value))
    if isinstance(value, bool | int | float | str | None):
        return (type(value).__name__, value)
    return id(value)


def samples_of(output: Any) -> int:
    """The number of samples that a model's output has.

    Raises:
        Unmergeable: it has no entry a sample.
    """
    if isinstance(output, torch.Tensor) and output.ndim:
        return int(output.shape[0])
    if isinstance(output, Mapping):
        return samples_of(next(iter(output.values())))
    if isinstance(output, tuple) and output:
        return samples_of(output[0])
    if isinstance(output, list) and output:
        return len(output)
    raise Unmergeable("the output has no samples")


def merge(values: Sequence[Any], samples: int) -> Any:
    """One argument for several calls of ``samples`` samples each.

    Raises:
        Unmergeable: it has no entry a sample, and is not equal in all calls.
    """
    first = values[0]
    if isinstance(first, torch.Tensor):
        if first.ndim and first.shape[0] == samples:
            return torch.cat(list(values))
        if all(value is first or torch.equal(value, first) for value in values[1:]):
            return first
        raise Unmergeable("a tensor differs and has no entry a sample")
    if isinstance(first, Mapping):
        merged = {name: merge([value[name] for value in values], samples) for name in first}
        return merged if type(first) is dict else type(first)(**merged)
    if isinstance(first, list) and len(first) == samples:
        return [item for value in values for item in value]
    if isinstance(first, list | tuple):
        return type(first)(merge(items, samples) for items in zip(*values, strict=True))
    if all(value is first or value == first for value in values[1:]):
        return first
    raise Unmergeable(f"arguments of type {type(first).__name__} differ")


def split(output: Any, calls: int, samples: int) -> list[Any]:
    """The outputs of the calls that were merged.

    Raises:
        Unmergeable: the output has not as many samples as they.
    """
    if isinstance(output, torch.Tensor):
        if not output.ndim or output.shape[0] != calls * samples:
            raise Unmergeable(f"{calls * samples} samples went in, and {tuple(output.shape)} came out")
        return list(output.split(samples))
    if isinstance(output, Mapping):
        parts = {name: split(item, calls, samples) for name, item in output.items()}
        return [type(output)(**{name: part[n] for name, part in parts.items()}) for n in range(calls)]
    if isinstance(output, tuple):
        columns = [split(item, calls, samples) for item in output]
        return [tuple(column[n] for column in columns) for n in range(calls)]
    if isinstance(output, list) and len(output) == calls * samples:
        return [output[n * samples : (n + 1) * samples] for n in range(calls)]
    if output is None:
        return [None] * calls
    raise Unmergeable(f"an output of type {type(output).__name__} cannot be divided")


def difference(found: Any, expected: Any) -> float:
    """The largest difference of two outputs, relative to the largest value that was expected."""
    if isinstance(expected, torch.Tensor):
        if found.shape != expected.shape:
            return float("inf")
        scale = max(1e-6, float(expected.abs().max())) if expected.numel() else 1.0
        return float((found.double() - expected.double()).abs().max()) / scale if expected.numel() else 0.0
    if isinstance(expected, Mapping):
        return max((difference(found[name], item) for name, item in expected.items()), default=0.0)
    if isinstance(expected, list | tuple):
        return max((difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    return 0.0 if found == expected else float("inf")
