"""Random weights for tiny components, none of them constant."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# Small enough to keep activations tame, large enough that a dropped gate or bias shows in the first digits.
NOISE = 0.05

# What torch.empty happens to hold can be finite; nothing that a constructor draws is this large.
_SENSIBLE = 1e4


def component_class(library: str, name: str) -> type:
    """The class that ``[library, name]`` of a model_index.json stands for; a diffusers pipeline is a library too."""
    own = hasattr(importlib.import_module("diffusers.pipelines"), library)
    module = importlib.import_module(f"diffusers.pipelines.{library}" if own else library)
    return getattr(module, name)


def seed_for(seed: int, component: str) -> int:
    """A seed of the component's own, so that adding a component leaves the others' weights as they were."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{component}".encode()).digest()[:4], "big") >> 1


def random_module(cls: Any, folder: Path, seed: int) -> torch.nn.Module:
    """Build the module of the config in ``folder`` with seeded float32 weights, none constant."""
    with _filled_memory(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(cls, "load_config"):
            module = cls.from_config(cls.load_config(str(folder)))
        else:
            module = cls(cls.config_class.from_pretrained(str(folder)))
    module = module.float().eval()
    refill(module, seed + 1)
    return module


def refill(module: torch.nn.Module, seed: int) -> list[str]:
    """Give every constant or uninitialised float tensor of the state dict noise; return the names, in order."""
    generator = torch.Generator().manual_seed(seed)
    refilled, done = [], set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or not tensor.numel():
            continue
        if id(tensor) in done or not is_constant(tensor):
            continue
        done.add(id(tensor))
        data = tensor.data
        base = float(data.flatten()[0]) if _is_sane(data) else 0.0
        noise = torch.randn(data.shape, generator=generator, dtype=torch.float32)
        data.copy_((base + NOISE * noise).to(data.dtype))
        refilled.append(name)
    return refilled


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether a parameter carries no information: one value throughout, or garbage.

    A tensor of one element counts: it is as likely a zero-initialised gate as anything else.
    """
    data = tensor.detach()
    if not _is_sane(data) or data.numel() == 1:
        return True
    return bool((data == data.flatten()[0]).all())


def _is_sane(data: torch.Tensor) -> bool:
    return bool(torch.isfinite(data).all()) and float(data.abs().max()) < _SENSIBLE


@contextlib.contextmanager
def _filled_memory() -> Iterator[None]:
    """Make torch.empty give NaN, so that what a constructor never initialises is seen and not a matter of luck."""
    settings = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
