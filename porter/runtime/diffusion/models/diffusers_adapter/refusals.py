"""What the diffusers backend cannot have, refused in words that name the port which can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from porter.runtime.errors import ConfigError

# Settings by name, and the feature that each stands for when it is above one, or on.
_SIZES = {
    "tensor_parallel_size": "tensor parallelism",
    "sequence_parallel_size": "sequence parallelism",
    "ulysses_degree": "sequence parallelism",
    "ring_degree": "sequence parallelism",
    "cfg_parallel_size": "CFG parallelism",
    "pipeline_parallel_size": "pipeline parallelism",
    "data_parallel_size": "data parallelism",
    "vae_patch_parallel_size": "parallel VAE decoding",
    "use_hsdp": "sharded weights",
}
_SWITCHES = {"cache_backend": "cache acceleration", "step_execution": "step execution"}
_OFF = (None, False, "none", "")
# Settings that the engine's configuration has no field for: all that they can say here is "off".
FEATURES = frozenset({*_SIZES, *_SWITCHES})


def refuse_unsupported(settings: Mapping[str, Any], has_port: Callable[[], str | None]) -> None:
    """Refuse features that need to see into a pipeline.

    Args:
        settings: the engine's settings as they were given.
        has_port: the pipeline class of the checkpoint, if it has a native port.

    Raises:
        ConfigError: a feature that diffusers' pipelines do not have here.
    """
    parallel = settings.get("parallel_config") or {}
    if not isinstance(parallel, Mapping):
        parallel = vars(parallel)
    sizes = {**settings, **parallel}
    for name, feature in _SIZES.items():
        value = sizes.get(name)
        if value is True or (type(value) is int and value > 1):
            raise ConfigError(_refusal(feature, f"{name}={value}", has_port()))
    for name, feature in _SWITCHES.items():
        if settings.get(name) not in _OFF:
            raise ConfigError(_refusal(feature, f"{name}={settings[name]}", has_port()))


def _refusal(feature: str, setting: str, port: str | None) -> str:
    start = f"the diffusers backend has no {feature} ({setting}): it runs the pipeline of diffusers as a whole"
    if port is None:
        return f"{start}; convert the pipeline (`porter convert NAME -o DIR`) for a native port"
    return f"{start}; the native port of {port} is the way to it: leave out --diffusion-load-format diffusers"
