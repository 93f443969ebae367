"""Choosing the backend of an attention layer, once, when the layer is built."""

from __future__ import annotations

import torch

from porter.runtime.diffusion.attention.backends.abstract import AttentionBackend
from porter.runtime.diffusion.attention.backends.registry import get_backend_class
from porter.runtime.diffusion.config import get_current_diffusion_config_or_none
from porter.runtime.diffusion.data import AttentionConfig, AttentionSpec
from porter.runtime.diffusion.distributed.utils import get_local_device
from porter.runtime.errors import ConfigError
from porter.runtime.logger import init_logger

logger = init_logger(__name__)

# Best first. SAGE_ATTN is missing on purpose: it quantises, which nobody should get without asking.
_AUTOMATIC = ("FLASH_ATTN", "TORCH_SDPA")


def get_attn_backend_for_role(
    role: str,
    head_size: int,
    attention_config: AttentionConfig | None = None,
    role_category: str | None = None,
) -> tuple[type[AttentionBackend], AttentionSpec | None]:
    """The backend class for a layer, and the explicit spec that chose it (None: automatic).

    Raises:
        ConfigError: an explicit choice is unknown or cannot run here; the message says why.
    """
    config = get_current_diffusion_config_or_none()
    dtype = config.dtype if config is not None else torch.get_default_dtype()
    device = get_local_device()

    spec = attention_config.resolve(role, role_category) if attention_config is not None else None
    if spec is not None:
        backend = get_backend_class(spec.backend)
        reason = backend.why_unavailable(head_size, dtype, device)
        if reason is not None:
            raise ConfigError(f"attention backend {backend.get_name()} cannot run: {reason}")
        return backend, spec

    tried: list[str] = []
    for name in _AUTOMATIC:
        backend = get_backend_class(name)
        reason = backend.why_unavailable(head_size, dtype, device)
        if reason is None:
            passed_over = f" (passed over {'; '.join(tried)})" if tried else ""
            logger.info_once("attention backend for role %s: %s%s", role, name, passed_over)
            return backend, None
        tried.append(f"{name}: {reason}")
    raise ConfigError(f"no attention backend can run: {'; '.join(tried)}")
