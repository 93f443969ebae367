"""Settings that take effect while a pipeline is built, not with a request: Wan's boundary ratio and flow shift."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers.configuration_utils import FrozenDict

from porter.runtime.diffusion.data import OmniDiffusionConfig
from porter.runtime.errors import ConfigError

# How schedulers call the shift of a flow's timesteps.
_SHIFTS = ("flow_shift", "shift")


def boundary_ratio_argument(pipeline_cls: type, od_config: OmniDiffusionConfig) -> dict[str, Any]:
    """The boundary ratio as an argument of ``from_pretrained``; nothing if it is not set.

    Raises:
        ConfigError: the pipeline has none.
    """
    if od_config.boundary_ratio is None:
        return {}
    if "boundary_ratio" not in inspect.signature(pipeline_cls).parameters:
        raise ConfigError(f"boundary_ratio: {pipeline_cls.__name__} has no boundary between two transformers")
    return {"boundary_ratio": od_config.boundary_ratio}


def set_flow_shift(pipeline: Any, od_config: OmniDiffusionConfig) -> None:
    """Rebuild the pipeline's scheduler with the flow shift, if one is set.

    Raises:
        ConfigError: the pipeline, or its scheduler, has none.
    """
    if od_config.flow_shift is None:
        return
    scheduler = getattr(pipeline, "scheduler", None)
    config = getattr(scheduler, "config", {})
    name = next((name for name in _SHIFTS if name in config), None)
    if scheduler is None or name is None:
        what = "no scheduler" if scheduler is None else f"the scheduler {type(scheduler).__name__}, which has no shift"
        raise ConfigError(f"flow_shift: {type(pipeline).__name__} has {what}")
    pipeline.scheduler = type(scheduler).from_config(config, **{name: od_config.flow_shift})


def set_port_boundary_ratio(pipeline: Any, od_config: OmniDiffusionConfig) -> None:
    """Put the boundary ratio into a port, which keeps it in its ``config`` as the diffusers pipeline does.

    Raises:
        ConfigError: the port has none.
    """
    if od_config.boundary_ratio is None:
        return
    config = getattr(pipeline, "config", {})
    if "boundary_ratio" not in config:
        raise ConfigError(f"boundary_ratio: {type(pipeline).__name__} has no boundary between two transformers")
    pipeline.config = FrozenDict({**config, "boundary_ratio": od_config.boundary_ratio})
