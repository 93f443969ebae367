"""The configuration in force while a pipeline is built; ``Attention`` layers read their backend from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from porter.runtime.diffusion.data import OmniDiffusionConfig

_current: ContextVar[OmniDiffusionConfig | None] = ContextVar("porter_diffusion_config", default=None)


@contextmanager
def set_current_diffusion_config(config: OmniDiffusionConfig) -> Iterator[None]:
    """Make ``config`` the current one inside the block."""
    token = _current.set(config)
    try:
        yield
    finally:
        _current.reset(token)


def get_current_diffusion_config() -> OmniDiffusionConfig:
    """The current configuration.

    Raises:
        RuntimeError: none is set.
    """
    config = _current.get()
    if config is None:
        raise RuntimeError("no diffusion config is set; build the model inside set_current_diffusion_config()")
    return config


def get_current_diffusion_config_or_none() -> OmniDiffusionConfig | None:
    """The current configuration, or None."""
    return _current.get()
