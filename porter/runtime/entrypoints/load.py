"""The ways of loading a model: the native port, or the pipeline of diffusers."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import porter
from porter.runtime.diffusion.data import OmniDiffusionConfig
from porter.runtime.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
from porter.runtime.diffusion.registry import ModelRegistry, ProcessFunc
from porter.runtime.entrypoints.media_kind import kind_of_diffusers, kind_of_port
from porter.runtime.errors import ConfigError, ModelNotFoundError
from porter.runtime.transformers_utils.config import get_hf_file_to_dict

# What `porter parity` found for the committed ports.
RESULTS = Path(porter.__file__).parent / "parity" / "data" / "results.json"
DIFFUSERS_INSTEAD = (
    "Or run the pipeline of diffusers as it is: --diffusion-load-format diffusers (diffusion_load_format='diffusers')"
)
_KWARGS = ("diffusers_load_kwargs", "diffusers_call_kwargs")


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline ready to run, with its hooks.

    Attributes:
        name: its class, as diffusers calls it.
        kind: what it makes: ``image``, ``video`` or ``audio``.
        parameters: of its call, by the names of diffusers.
    """

    pipeline: nn.Module
    name: str
    kind: str
    parameters: Mapping[str, inspect.Parameter]
    pre_process: ProcessFunc | None = None
    post_process: ProcessFunc | None = None


def checked_settings(
    settings: Mapping[str, Any],
    load_format: str,
    model: str | os.PathLike[str],
    model_class_name: str | None,
    models_dir: str | Path | None,
) -> dict[str, Any]:
    """The settings, less those that say only that a feature is off.

    Raises:
        ConfigError: there is no such load format; arguments for diffusers without its load format, or features that
            diffusers' pipelines do not have with it.
    """
    if load_format not in _LOAD_FORMATS:
        raise ConfigError(
            f"there is no diffusion_load_format {load_format!r}; there is {', '.join(map(repr, _LOAD_FORMATS))}"
        )
    found = dict(settings)
    if load_format != "diffusers":
        for name in _KWARGS:
            if found.get(name) is not None:
                raise ConfigError(f"{name} (--{name.replace('_', '-')}) needs diffusion_load_format='diffusers'")
            found.pop(name, None)
        return found
    from porter.runtime.diffusion.models.diffusers_adapter.refusals import FEATURES, refuse_unsupported

    refuse_unsupported(found, lambda: _ported(model, model_class_name, models_dir))
    for name in _KWARGS:
        value = found.pop(name, None)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{name} is a dict of arguments, not {type(value).__name__}")
        found[name] = dict(value or {})
    return {name: value for name, value in found.items() if name not in FEATURES}


def load_model(od_config: OmniDiffusionConfig, device: torch.device, models_dir: str | Path | None) -> LoadedModel:
    """Load in the way that ``od_config.diffusion_load_format`` says.

    Raises:
        ModelNotFoundError: no such model, or no port of its pipeline.
        CheckpointError: its weights do not fit the port.
        ConfigError: a setting that the model cannot honour.
    """
    return _LOAD_FORMATS[od_config.diffusion_load_format](od_config, device, models_dir)


def _load_port(od_config: OmniDiffusionConfig, device: torch.device, models_dir: str | Path | None) -> LoadedModel:
    from porter.runtime.diffusion.models.diffusers_adapter.load_settings import check_port

    od_config.enrich_config()
    name = od_config.model_class_name
    assert name is not None
    registry = ModelRegistry(models_dir)
    try:
        port = registry.load(name)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}. {DIFFUSERS_INSTEAD}") from error
    if models_dir is None and registry.models_dir is not None:
        _require_verified(name)
    # Hooks first: they are cheap to build, so what is wrong with them shows before the weights are read.
    pre = port.pre_process_factory(od_config) if port.pre_process_factory else None
    post = port.post_process_factory(od_config) if port.post_process_factory else None
    pipeline = DiffusersPipelineLoader(od_config).load_model(port.pipeline_cls, device)
    check_port(pipeline, od_config)
    # A port that runs step by step takes the call's arguments where it prepares a request.
    takes = getattr(pipeline, "prepare_encode", pipeline.forward)
    parameters = {key: item for key, item in inspect.signature(takes).parameters.items() if key not in ("req", "state")}
    return LoadedModel(pipeline, name, kind_of_port(port.post_process_factory), parameters, pre, post)


def _load_diffusers(od_config: OmniDiffusionConfig, device: torch.device, models_dir: str | Path | None) -> LoadedModel:
    from porter.runtime.diffusion.models.diffusers_adapter import DiffusersAdapterPipeline

    del models_dir
    adapter = DiffusersAdapterPipeline(od_config=od_config, device=device)
    adapter.load_weights()
    adapter.eval()
    name = type(adapter.pipeline).__name__
    parameters = {key: value for key, value in adapter.parameters.items() if key != "return_dict"}
    return LoadedModel(adapter, name, kind_of_diffusers(adapter.pipeline), parameters)


# One entry per way of loading a model; a new way needs an entry here and nothing else.
_LOAD_FORMATS: dict[str, Callable[[OmniDiffusionConfig, torch.device, str | Path | None], LoadedModel]] = {
    "default": _load_port,
    "diffusers": _load_diffusers,
}


def verdict_of(name: str) -> str:
    """What the committed results say about the port of a pipeline; ``parity`` where there are no results at all."""
    try:
        found = json.loads(RESULTS.read_text("utf-8"))
    except (OSError, ValueError):
        return "parity"
    return str(found.get(name, {}).get("verdict", "not tested"))


def _require_verified(name: str) -> None:
    """Committed ports are served only where the committed results say that they are at parity."""
    verdict = verdict_of(name)
    if verdict != "parity":
        raise ModelNotFoundError(
            f"the port of {name} is not verified ({verdict}): make your own with `porter convert {name} -o DIR`, check "
            f"it with `porter parity {name} --models-dir DIR`, and pass models_dir=DIR. {DIFFUSERS_INSTEAD}"
        )


def _ported(model: str | os.PathLike[str], name: str | None, models_dir: str | Path | None) -> str | None:
    """The pipeline class of a checkpoint, if it has a native port."""
    try:
        found = name or (get_hf_file_to_dict("model_index.json", os.fspath(model)) or {}).get("_class_name")
        return found if found in ModelRegistry(models_dir).names() else None
    except (ValueError, OSError):
        return None
