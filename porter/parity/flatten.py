"""Nested values as a flat mapping from a path to a leaf, cloned, so that later in-place changes do not show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import torch

Leaf: TypeAlias = np.ndarray | torch.Tensor | str | int | float | bool | None


def flatten(value: Any, path: str = "", copy: bool = True) -> dict[str, Leaf]:
    """All leaves of ``value`` by path (``a.0.b``), in order.

    Args:
        copy: whether tensors are cloned; left out for what is a copy.
    """
    found: dict[str, Leaf] = {}
    _walk(value, path, copy, found)
    return found


def _walk(value: Any, path: str, copy: bool, found: dict[str, Leaf]) -> None:
    """Put the leaves of ``value`` into ``found``; what is met most often is asked for first."""
    if value is None or isinstance(value, (str, bool, int, float)):
        found[path] = value
    elif isinstance(value, torch.Tensor):
        tensor = value.detach() if value.requires_grad else value
        found[path] = tensor.clone() if copy else tensor
    elif isinstance(value, (np.ndarray, np.generic, PIL.Image.Image)):
        found[path] = np.array(value)
    elif hasattr(value, "to_tuple"):  # diffusers and transformers outputs: the same call may return either form
        _walk(value.to_tuple(), path, copy, found)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _walk(item, _join(path, str(key)), copy, found)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _walk(item, _join(path, str(index)), copy, found)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _walk(getattr(value, field.name), _join(path, field.name), copy, found)
    elif isinstance(getattr(value, "parameters", None), torch.Tensor):  # the VAE's Gaussian
        found[_join(path, "parameters")] = value.parameters.detach().clone()
    elif isinstance(value, torch.Generator):
        found[path] = value.get_state()


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
