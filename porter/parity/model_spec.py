"""Small configurations and calls of single models, as data: one JSON file a class in ``data/models``.

A file holds ``cases``: each a ``name`` (the pipeline that it was recorded from, or what it is about), a ``config``,
``calls``, the keyword arguments of forward as recipes (:mod:`porter.parity.recipes`), and where a model shares modules
of a transformer, that ``host``. These forms are added to the recipes:

``{"$values": {"shape": […], "dtype": "int64", "runs": [[value, count], …]}}``   a tensor whose values matter
``{"$complex": [recipe, recipe]}``                                               real and imaginary part
``{"$items": [[key, recipe], …]}``                                               a dictionary whose keys are no strings
``{"$object": {"class": name, "arguments": {…}}}``            an object of a class in the model's own
    file, such as a cache; the same one in all calls of a case
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from porter.parity import recipes
from porter.parity.spec import DATA, SpecError

MODELS = DATA / "models"

# Tensors up to this size are stored as they are; of larger ones only those that repeat a few values.
_SMALL = 64
_FEW = 8


@dataclass(frozen=True)
class ModelCase:
    """One configuration of a model and the calls it is tried with."""

    name: str
    config: dict[str, Any]
    calls: list[dict[str, Any]]
    """Recipes of keyword arguments; :func:`decode` makes them."""
    host: dict[str, Any] | None = None
    """``class`` and ``config`` of a transformer whose modules the model takes over by its ``from_transformer``."""

    def configured(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> ModelCase:
        """The case with other settings of the model, and of the transformer that it shares modules with."""
        host = self.host and {**self.host, "config": change(self.host["config"])}
        return replace(self, config=change(self.config), host=host)


def available(root: Path = MODELS) -> list[str]:
    """Names of the model classes that have a file, sorted."""
    return sorted(path.stem for path in root.glob("*.json"))


def read(name: str, root: Path = MODELS) -> list[ModelCase]:
    """The cases of one class.

    Raises:
        SpecError: there is no such file, or it is malformed.
    """
    path = root / f"{name}.json"
    if not path.is_file():
        raise SpecError(f"no small configuration of {name} in {root}")
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return [ModelCase(case["name"], case["config"], case["calls"], case.get("host")) for case in cases]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SpecError(f"{path} is malformed: {error}") from error


def decode_calls(calls: list[dict[str, Any]], module: ModuleType) -> Iterator[dict[str, Any]]:
    """The keyword arguments of the calls of a case, one after the other, for a model whose class stands in ``module``.

    Objects are made once and shared by the calls, so each model needs its own; each call is made when it is asked for,
    since what it does to an object must come after the call before.
    """
    objects: dict[str, Any] = {}

    def filled(value: Any) -> Any:
        if not isinstance(value, dict) or "$object" not in value:
            return decode(value)
        recipe = value["$object"]
        name = recipe["class"]
        if name not in objects:
            objects[name] = getattr(module, name)(**recipe.get("arguments", {}))
        for method, *arguments in recipe.get("before", []):
            getattr(objects[name], method)(*arguments)
        return objects[name]

    for call in calls:
        yield {key: filled(value) for key, value in call.items()}


def decode(value: Any) -> Any:
    """Fresh values for a recipe; the same at every call."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "$values" in value:
        stored = value["$values"]
        flat = [item for item, count in stored["runs"] for _ in range(count)]
        return torch.tensor(flat, dtype=getattr(torch, stored["dtype"])).reshape(stored["shape"])
    if "$complex" in value:
        return torch.complex(*(decode(part) for part in value["$complex"]))
    if "$tuple" in value:
        return tuple(decode(item) for item in value["$tuple"])
    if "$items" in value:
        return {decode(key): decode(item) for key, item in value["$items"]}
    if any(key.startswith("$") for key in value):
        return recipes.decode(value)
    return {key: decode(item) for key, item in value.items()}


def encode(value: Any, seed: int = 0) -> Any:
    """The recipe of a recorded argument: small or structured tensors as they are, others by shape.

    Raises:
        TypeError: the value is of a kind that has no recipe.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, seed)
    if isinstance(value, torch.dtype):
        return {"$repr": str(value)}
    if isinstance(value, torch.Size):
        value = tuple(value)
    if type(value) in (list, tuple):
        items = [encode(item, seed * 31 + index + 1) for index, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if isinstance(value, dict):
        entries = {key: encode(item, seed * 31 + index + 1) for index, (key, item) in enumerate(value.items())}
        is_plain = all(isinstance(key, str) and not key.startswith("$") for key in entries)
        return entries if is_plain else {"$items": [[encode(key), item] for key, item in entries.items()]}
    raise TypeError(f"no recipe for a {type(value).__name__}")


def _encode_tensor(tensor: torch.Tensor, seed: int) -> dict[str, Any]:
    if tensor.is_complex():
        return {"$complex": [_encode_tensor(tensor.real, seed), _encode_tensor(tensor.imag, seed + 1)]}
    dtype = str(tensor.dtype).removeprefix("torch.")
    if (
        not tensor.is_floating_point()
        or tensor.numel() <= _SMALL
        or tensor.unique().numel() <= _FEW
        or _is_whole(tensor)
    ):
        runs = [[item, len(list(group))] for item, group in groupby(tensor.flatten().tolist())]
        return {"$values": {"shape": list(tensor.shape), "dtype": dtype, "runs": runs}}
    return {"$tensor": {"shape": list(tensor.shape), "dtype": dtype, "kind": "normal", "seed": seed}}


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether a floating tensor holds whole numbers, as position ids do."""
    return bool((tensor == tensor.round()).all())
