"""The engine's attention setting in the terms of diffusers."""

from __future__ import annotations

from typing import Any

import torch

from porter.runtime.errors import ConfigError
from porter.runtime.logger import init_logger

logger = init_logger(__name__)

NATIVE = "native"
# The newer FlashAttention first, and of each the hub's kernels before an installed package.
ATTEMPTS: dict[str, tuple[str, ...]] = {
    "FLASH_ATTN": ("_flash_3_hub", "_flash_3", "flash_hub", "flash"),
    "SAGE_ATTN": ("sage_hub", "sage"),
    "TORCH_SDPA": (NATIVE,),
}
AUTOMATIC = "FLASH_ATTN"


def transformers_of(pipeline: Any) -> dict[str, Any]:
    """The transformers of a diffusers pipeline, and of the pipelines that it is made of, by name.

    A transformer is a model that diffusers defines among its transformers, or a model under a name of that kind (one
    whose code comes with the checkpoint, say).
    """
    found: dict[str, Any] = {}
    for name, part in getattr(pipeline, "components", {}).items():
        if not hasattr(part, "set_attention_backend"):
            continue
        if "transformer" in name or ".transformers." in f"{type(part).__module__}.":
            found[name] = part
    return found


def set_attention_backend(pipeline: Any, setting: str | None, device: torch.device) -> str:
    """Have every transformer of the pipeline compute attention as asked.

    Args:
        pipeline: a diffusers pipeline.
        setting: FLASH_ATTN, SAGE_ATTN or TORCH_SDPA; None: the best that can run, PyTorch's own in the end.
        device: where the pipeline runs.

    Returns:
        The name of the backend in diffusers.

    Raises:
        ConfigError: there is no such setting, or the one that was asked for cannot run.
    """
    models = transformers_of(pipeline)
    name = type(pipeline).__name__
    if setting is not None and setting not in ATTEMPTS:
        raise ConfigError(
            f"attention backend {setting!r} has no counterpart in diffusers; there are {', '.join(ATTEMPTS)}"
        )
    if not models:
        if setting not in (None, "TORCH_SDPA"):
            raise ConfigError(f"attention backend {setting} cannot be set: {name} has no transformer")
        logger.info("%s has no transformer: its attention stays as diffusers has it", name)
        return NATIVE
    attempts = ATTEMPTS[setting or AUTOMATIC]
    if setting is None and device.type != "cuda":
        attempts = ()  # none of them has kernels for this device; asking the hub for one would only cost time
    failed: dict[str, str] = {}
    for backend in attempts:
        try:
            _apply(models, backend, device)
        except Exception as error:  # whatever a package that does not fit this machine raises
            failed[backend] = " ".join(str(error).split()) or type(error).__name__
            logger.info("attention backend %s for %s failed: %s", backend, name, failed[backend])
            continue
        logger.info("attention backend of %s (%s): %s", name, ", ".join(models), backend)
        return backend
    if setting is not None:
        _reset(models)
        tried = "; ".join(f"{backend}: {reason}" for backend, reason in failed.items())
        raise ConfigError(f"attention backend {setting} cannot run {name} here ({tried})")
    _apply(models, NATIVE, device)
    logger.info("attention backend of %s (%s): %s, PyTorch's own", name, ", ".join(models), NATIVE)
    return NATIVE


def _apply(models: dict[str, Any], backend: str, device: torch.device) -> None:
    for model in models.values():
        model.set_attention_backend(backend)
        if backend != NATIVE:
            _try(backend, device, model.dtype)


def _try(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """One small attention: a package that imports may still have no kernel for this device or dtype."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    query = torch.zeros(1, 64, 2, 64, device=device, dtype=dtype)
    with torch.no_grad():
        dispatch_attention_fn(query, query, query, backend=AttentionBackendName(backend))


def _reset(models: dict[str, Any]) -> None:
    # set_attention_backend also sets a default for the whole process, which a failed attempt must not leave behind.
    for model in models.values():
        model.set_attention_backend(NATIVE)
