"""The device of the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_local_device: ContextVar[torch.device | None] = ContextVar("porter_local_device", default=None)


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def get_local_device() -> torch.device:
    """The device that the pipeline under construction (or at work) lives on."""
    return _local_device.get() or default_device()


@contextmanager
def set_local_device(device: torch.device) -> Iterator[None]:
    """Make ``device`` the one that ``get_local_device`` returns."""
    token = _local_device.set(device)
    try:
        yield
    finally:
        _local_device.reset(token)
