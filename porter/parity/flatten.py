"""Nested values as a flat mapping from a path to a leaf, cloned, so that later in-place changes do not show."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import torch

Leaf: TypeAlias = np.ndarray | torch.Tensor | str | int | float | bool | None


def flatten(value: Any, path: str = "") -> dict[str, Leaf]:
    """All leaves of ``value`` by path (``a.0.b``), in order."""
    return dict(_walk(value, path))


def _walk(value: Any, path: str) -> Iterator[tuple[str, Leaf]]:
    if value is None or isinstance(value, (str, bool, int, float)):
        yield path, value
    elif isinstance(value, torch.Tensor):
        yield path, value.detach().clone()
    elif isinstance(value, (np.ndarray, np.generic)):
        yield path, np.array(value)
    elif isinstance(value, PIL.Image.Image):
        yield path, np.array(value)
    elif hasattr(value, "to_tuple"):  # diffusers and transformers outputs: the same call may return either form
        yield from _walk(value.to_tuple(), path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, _join(path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _walk(item, _join(path, str(index)))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            yield from _walk(getattr(value, item.name), _join(path, item.name))
    elif isinstance(getattr(value, "parameters", None), torch.Tensor):  # the VAE's Gaussian
        yield _join(path, "parameters"), value.parameters.detach().clone()
    elif isinstance(value, torch.Generator):
        yield path, value.get_state()


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def to_numpy(leaf: torch.Tensor | np.ndarray) -> np.ndarray:
    """A leaf as numpy; types that numpy lacks widen without loss."""
    if isinstance(leaf, np.ndarray):
        return leaf
    leaf = leaf.detach().cpu()
    if leaf.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        leaf = leaf.float()
    return leaf.numpy()


def clone_tree(value: Any) -> Any:
    """A copy of a call's arguments: tensors and containers fresh, the rest shared."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: clone_tree(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(clone_tree(item) for item in value)
    return value
