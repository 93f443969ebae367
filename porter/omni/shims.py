"""What a machine without an accelerator needs besides a platform; each is undone by nothing and harms nothing."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

# Operators of torchvision's compiled part that importing it looks up, with their signatures.
_TORCHVISION = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[Any] = []  # a library that is collected takes its operators along


def has_accelerator() -> bool:
    """Whether torch could run anywhere but on the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type != "cpu"


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
