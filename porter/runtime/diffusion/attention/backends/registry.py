"""Attention backends by name."""

from __future__ import annotations

import importlib
from enum import Enum

from porter.runtime.diffusion.attention.backends.abstract import AttentionBackend
from porter.runtime.errors import ConfigError

_PACKAGE = "porter.runtime.diffusion.attention.backends"


class DiffusionAttentionBackendEnum(Enum):
    """The known backends; the value is the path of the class."""

    TORCH_SDPA = f"{_PACKAGE}.sdpa.SDPABackend"
    FLASH_ATTN = f"{_PACKAGE}.flash_attn.FlashAttentionBackend"
    SAGE_ATTN = f"{_PACKAGE}.sage_attn.SageAttentionBackend"

    def get_class(self) -> type[AttentionBackend]:
        """The backend class."""
        module, _, name = self.value.rpartition(".")
        return getattr(importlib.import_module(module), name)


def get_backend_class(name: str) -> type[AttentionBackend]:
    """The backend of that name, in any case.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    try:
        return DiffusionAttentionBackendEnum[name.upper()].get_class()
    except KeyError:
        known = ", ".join(DiffusionAttentionBackendEnum.__members__)
        raise ConfigError(f"unknown attention backend {name!r}; there are {known}, and 'auto'") from None
