"""What a machine without an accelerator needs besides a platform; each is undone by nothing and harms nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import torch

# Operators of torchvision's compiled part that importing it looks up, with their signatures.
_TORCHVISION = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[Any] = []  # a library that is collected takes its operators along


def claimed(platforms: Mapping[str, Callable[[], str | None]], group: str) -> bool:
    """Whether this machine is another platform's: one of an engine's own (CPUs apart) or of another package.

    The engine's own ask drivers, as torch would not do without making a context that no child process could use. Of
    packages with a platform only one may be active, so that one which was installed for it goes first.

    Args:
        platforms: the detecting functions of the engine, by name.
        group: the entry point group of further platforms.
    """
    if any(not point.value.startswith("porter.") for point in metadata.entry_points(group=group)):
        return True
    for name, detect in platforms.items():
        if name == "cpu":
            continue
        try:
            if detect() is not None:
                return True
        except Exception:  # a platform that cannot be asked is not here: so the engine sees it too
            continue
    return False


def define_torchvision_operators() -> None:
    """Declare the operators that ``import torchvision`` looks up, if its compiled part does not load.

    PyPI's torchvision is built for CUDA; beside a torch for the CPU its library does not load, and importing the
    package fails on the operators that are missing. Its transforms, which is all that pipelines use, are Python.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _TORCHVISION.values():
        library.define(schema)
    _libraries.append(library)
