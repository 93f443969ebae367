"""Call inputs drawn from seeded recipes.

Values of the inputs rarely matter, that they are not constant does: an all-black image or an all-white mask hides
errors. So a spec stores how an input is drawn instead of its bytes:

``{"$generator": seed}``                                           a torch generator
``{"$image": {"size": [w, h], "mode": "RGB", "seed": n}}``         a noise picture; ``"kind": "box"`` for a mask
``{"$images": {"count": n, …}}``                                   a list of those, each with a seed of its own
``{"$tensor": {"shape": […], "dtype": "float32", "seed": n}}``     uniform in [low, high); ``kind``: normal, box
``{"$ndarray": {…}}``                                              the same as a numpy array
``{"$tuple": […]}``                                                a tuple
``{"$repr": "torch.float32"}``                                     a torch attribute
``{"$object": {"class": "diffusers.….Condition", "frames": …}}``   an instance of a diffusers class

A string instead of the ``{…}`` of an image, tensor or array names a tensor of the spec's safetensors file.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch


def decode(value: Any, tensors: Mapping[str, torch.Tensor] | None = None) -> Any:
    """Rebuild the value that a recipe stands for; each call gives fresh, equal objects."""
    stored = tensors or {}
    if isinstance(value, list):
        return [decode(item, stored) for item in value]
    if not isinstance(value, dict):
        return value
    if "$generator" in value:
        return torch.Generator("cpu").manual_seed(value["$generator"])
    if "$tuple" in value:
        return tuple(decode(item, stored) for item in value["$tuple"])
    if "$repr" in value:
        return getattr(torch, value["$repr"].removeprefix("torch."))
    if "$object" in value:
        arguments = {key: decode(item, stored) for key, item in value["$object"].items() if key != "class"}
        return _diffusers_class(value["$object"]["class"])(**arguments)
    if "$tensor" in value:
        return _tensor(value["$tensor"], stored)
    if "$ndarray" in value:
        return _tensor(value["$ndarray"], stored).numpy().copy()
    if "$image" in value:
        return _image(value["$image"], stored)
    if "$images" in value:
        recipe = dict(value["$images"])
        count, seed = recipe.pop("count"), recipe.pop("seed", 0)
        return [_image({**recipe, "seed": seed * 1000 + index}, stored) for index in range(count)]
    return {key: decode(item, stored) for key, item in value.items()}


def _diffusers_class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if module.split(".")[0] != "diffusers":
        raise ValueError(f"$object makes instances of diffusers' classes, not of {path}")
    return getattr(importlib.import_module(module), name)


def _image(recipe: str | dict[str, Any], stored: Mapping[str, torch.Tensor]) -> PIL.Image.Image:
    if isinstance(recipe, str):
        return PIL.Image.fromarray(stored[recipe].numpy())
    (width, height), mode = recipe["size"], recipe.get("mode", "RGB")
    if recipe.get("kind") == "box":
        return PIL.Image.fromarray((_box(height, width) * 255).astype(np.uint8)).convert(mode)
    shape = (height, width) if mode == "L" else (height, width, 3)
    pixels = np.random.default_rng(recipe.get("seed", 0)).integers(0, 256, size=shape, dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def _tensor(recipe: str | dict[str, Any], stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if isinstance(recipe, str):
        return stored[recipe].clone()
    shape, dtype = tuple(recipe["shape"]), getattr(torch, recipe.get("dtype", "float32"))
    rng = np.random.default_rng(recipe.get("seed", 0))
    kind = recipe.get("kind", "uniform")
    if kind == "box":
        values = np.broadcast_to(_box(*shape[-2:]), shape).copy()
    elif kind == "normal":
        values = rng.standard_normal(shape)
    else:
        low, high = recipe.get("low", 0.0), recipe.get("high", 1.0)
        values = rng.random(shape) * (high - low) + low
    return torch.from_numpy(np.asarray(values)).to(dtype)


def _box(height: int, width: int) -> np.ndarray:
    """A mask whose lower right part is one: no symmetry that a transposed or flipped copy would share."""
    mask = np.zeros((height, width))
    mask[height // 4 :, width // 2 :] = 1.0
    return mask
