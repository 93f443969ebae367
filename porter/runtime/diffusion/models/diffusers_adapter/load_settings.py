"""Settings that take effect while a pipeline is built, not with a request: Wan's boundary ratio and flow shift."""

from __future__ import annotations

import inspect
from typing import Any

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
    name, scheduler = _shift_name(pipeline), pipeline.scheduler
    pipeline.scheduler = type(scheduler).from_config(scheduler.config, **{name: od_config.flow_shift})


def _shift_name(pipeline: Any) -> str:
    scheduler = getattr(pipeline, "scheduler", None)
    name = next((name for name in _SHIFTS if name in getattr(scheduler, "config", {})), None)
    if scheduler is None or name is None:
        what = "no scheduler" if scheduler is None else f"the scheduler {type(scheduler).__name__}, which has no shift"
        raise ConfigError(f"flow_shift: {type(pipeline).__name__} has {what}")
    return name


def check_port(pipeline: Any, od_config: OmniDiffusionConfig) -> None:
    """Whether a port could use the settings that it was loaded with.

    Raises:
        ConfigError: a boundary ratio for a port without one; a flow shift for a scheduler without one.
    """
    if od_config.boundary_ratio is not None and "boundary_ratio" not in getattr(pipeline, "config", {}):
        raise ConfigError(f"boundary_ratio: {type(pipeline).__name__} has no boundary between two transformers")
    if od_config.flow_shift is not None:
        _shift_name(pipeline)
