"""The call of a diffusers pipeline that a request stands for: what it sets, and nothing that it does not."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from porter.runtime.diffusion.request import OmniDiffusionRequest
from porter.runtime.errors import ConfigError, RequestError
from porter.runtime.inputs.data import OmniDiffusionSamplingParams

# Keys of a prompt dict that belong to the engine, not to the pipeline.
ENGINE_KEYS = frozenset({"multi_modal_data", "mm_processor_kwargs", "modalities", "additional_information"})
# Set when the model is loaded, and by these names asked for in requests.
LOAD_TIME = {"boundary_ratio": "--boundary-ratio", "flow_shift": "--flow-shift"}

_PER_PROMPT = re.compile(r"num_[a-z]+_per_prompt")
_FRAME_COUNTS = ("num_frames", "frames", "video_length")
# The engine's own: no pipeline is asked for them by these fields.
_NOT_ARGUMENTS = frozenset({"extra_args", "seed", "generator_device", "guidance_scale_provided"})


def check_call_kwargs(kwargs: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], name: str) -> None:
    """Refuse default call arguments that the pipeline does not take.

    Raises:
        ConfigError: an unknown name, or ``return_dict``, which the engine needs as it is.
    """
    for argument in kwargs:
        if argument == "return_dict" or (argument not in parameters and not _is_open(parameters)):
            taken = ", ".join(item for item in parameters if item != "return_dict")
            raise ConfigError(f"diffusers_call_kwargs: {name} takes no {argument!r}; it takes {taken}")


def call_arguments(
    request: OmniDiffusionRequest,
    parameters: Mapping[str, inspect.Parameter],
    defaults: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """The keyword arguments of the call.

    An argument is looked up under its own name in the prompt, its multi-modal data, the extra arguments and the
    sampling parameters. What stands in the first three counts as set, even None; a field of the sampling parameters
    counts as set if it differs from its default. ``defaults`` fill in what the request leaves open, and the pipeline's
    own defaults what is left then.

    Args:
        request: the request.
        parameters: those of the pipeline's ``__call__``.
        defaults: the call arguments that the engine was started with.
        device: where random numbers are drawn unless the request says.

    Raises:
        RequestError: the request names something that the pipeline does not take.
    """
    prompt: dict[str, Any] = {"prompt": request.prompt} if isinstance(request.prompt, str) else {**request.prompt}
    params = request.sampling_params
    given = {name: value for name in parameters if (value := _sampling_value(params, name)) is not None}
    for name, value in _named(prompt, params):
        if name in parameters or _is_open(parameters):
            given[name] = value
        elif name in LOAD_TIME and value is not None:
            raise _load_time(name)
        elif value is not None:
            taken = ", ".join(item for item in parameters if item != "return_dict")
            raise RequestError(f"unknown argument {name!r}; this pipeline takes {taken}")
    if "return_dict" in given:
        raise RequestError("return_dict is the engine's own")
    if params.boundary_ratio is not None and "boundary_ratio" not in parameters:
        raise _load_time("boundary_ratio")
    if params.seed_provided or "generator" not in defaults:
        generator = _generator(params, device)
        if "generator" in parameters and "generator" not in given and generator is not None:
            given["generator"] = generator
    return {**defaults, **given}


def _named(prompt: Mapping[str, Any], params: OmniDiffusionSamplingParams) -> Iterator[tuple[str, Any]]:
    yield from params.extra_args.items()
    yield from (prompt.get("multi_modal_data") or {}).items()
    yield from ((name, value) for name, value in prompt.items() if name not in ENGINE_KEYS)


def _sampling_value(params: OmniDiffusionSamplingParams, name: str) -> Any:
    """A field that was set; None if there is none of that name, or it has its default."""
    if name in _NOT_ARGUMENTS or name == "generator":
        return None
    if _PER_PROMPT.fullmatch(name):
        name = "num_outputs_per_prompt"
    elif name in _FRAME_COUNTS:
        name = "num_frames"
    field = type(params).__dataclass_fields__.get(name)
    if field is None or not getattr(params, f"{name}_provided", True):
        return None
    value = getattr(params, name)
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if isinstance(value, torch.Tensor) or type(value) is not type(default):
        return value
    return None if value == default else value


def _load_time(name: str) -> RequestError:
    return RequestError(f"{name} takes effect when the model is loaded, not with a request: see {LOAD_TIME[name]}")


def _generator(params: OmniDiffusionSamplingParams, device: torch.device) -> Any:
    if params.generator is not None or params.seed is None:
        return params.generator
    return torch.Generator(device=params.generator_device or device).manual_seed(params.seed)


def _is_open(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
