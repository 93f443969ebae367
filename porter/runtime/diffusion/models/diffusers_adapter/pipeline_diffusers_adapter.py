"""A pipeline of the engine that hands every request to the diffusers pipeline of the same checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from packaging.version import Version
from torch import nn

from porter.runtime.diffusion.data import DiffusionOutput, OmniDiffusionConfig
from porter.runtime.diffusion.models.diffusers_adapter.attention_backends import set_attention_backend
from porter.runtime.diffusion.models.diffusers_adapter.call_arguments import call_arguments, check_call_kwargs
from porter.runtime.diffusion.models.diffusers_adapter.load_settings import boundary_ratio_argument, set_flow_shift
from porter.runtime.diffusion.models.diffusers_adapter.signature import call_parameters
from porter.runtime.diffusion.profiler.diffusion_pipeline_profiler import DiffusionPipelineProfilerMixin
from porter.runtime.diffusion.worker.request_batch import DiffusionRequestBatch
from porter.runtime.errors import ConfigError, ModelNotFoundError
from porter.runtime.logger import init_logger

logger = init_logger(__name__)

# Fields of diffusers' output classes, and what the engine calls them.
MEDIA = {"images": "images", "frames": "frames", "audios": "audios", "audio": "audios"}
_DTYPE_ARGUMENTS = ("torch_dtype", "dtype")


class DiffusersAdapterPipeline(nn.Module, DiffusionPipelineProfilerMixin):
    """Runs a diffusers pipeline as it is.

    It has no step execution, no parallelism and no caching: diffusers holds the denoising loop.

    Args:
        od_config: settings; ``diffusers_load_kwargs`` win over those that ``from_pretrained`` has a name for too,
            ``diffusers_call_kwargs`` are what a request leaves open.
        device: where the pipeline runs.
    """

    supports_request_batch = False

    def __init__(self, *, od_config: OmniDiffusionConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.od_config = od_config
        self.device = device or torch.device("cpu")
        self.attention_backend = ""
        self.pipeline: Any = None
        self.parameters: dict[str, inspect.Parameter] = {}

    @property
    def _pipeline(self) -> Any:
        """The pipeline under the name that vllm-omni's adapter has for it."""
        return self.pipeline

    def load_weights(self) -> None:
        """Load the pipeline with ``from_pretrained`` and apply the engine's settings to it.

        Raises:
            ModelNotFoundError: there is no such checkpoint, or it is none of diffusers.
            ConfigError: a setting or a load argument that the pipeline does not take.
        """
        config = self.od_config
        cls = pipeline_class(config)
        arguments = {**dtype_argument(config.dtype), **boundary_ratio_argument(cls, config)}
        if config.revision is not None:
            arguments["revision"] = config.revision
        if config.trust_remote_code:
            arguments["trust_remote_code"] = True
        arguments = merge_load_kwargs(arguments, config.diffusers_load_kwargs)
        loader = cls if config.model_class_name is not None else diffusers.DiffusionPipeline
        logger.info("loading %s with diffusers %s: %s", config.model, diffusers.__version__, sorted(arguments))
        try:
            self.pipeline = loader.from_pretrained(config.model, **arguments)
        except (OSError, ValueError, TypeError, ImportError, AttributeError) as error:
            raise ConfigError(f"diffusers cannot load {config.model!r}: {' '.join(str(error).split())}") from error
        set_flow_shift(self.pipeline, config)
        if "device_map" not in arguments:
            self.pipeline.to(self.device)
        self.parameters = call_parameters(type(self.pipeline).__call__)
        check_call_kwargs(config.diffusers_call_kwargs, self.parameters, type(self.pipeline).__name__)
        for wanted, method in ((config.vae_use_slicing, "slicing"), (config.vae_use_tiling, "tiling")):
            if wanted:
                self._enable(method)
        spec = config.diffusion_attention_config.resolve()
        self.attention_backend = set_attention_backend(self.pipeline, spec.backend if spec else None, self.device)
        self.setup_diffusion_pipeline_profiler(
            [], enable_diffusion_pipeline_profiler=config.enable_diffusion_pipeline_profiler
        )

    def _enable(self, what: str) -> None:
        method = getattr(getattr(self.pipeline, "vae", None), f"enable_{what}", None)
        if method is None:
            raise ConfigError(f"vae_use_{what}: {type(self.pipeline).__name__} has no VAE that can do that")
        method()

    def forward(self, req: DiffusionRequestBatch) -> DiffusionOutput:
        """Call the pipeline.

        Returns:
            The pictures, frames or sound as diffusers returns them; all fields by name if there are several of those.

        Raises:
            RequestError: the request names something that the pipeline does not take.
        """
        [request] = req.requests
        arguments = call_arguments(request, self.parameters, self.od_config.diffusers_call_kwargs, self.device)
        result = self.pipeline(**arguments)
        fields = output_fields(result)
        media = [value for name, value in fields.items() if name in MEDIA.values() and value is not None]
        raw = media[0] if len(media) == 1 else fields
        return DiffusionOutput(output=raw, post_process_func=lambda _: fields)


def output_fields(result: Any) -> dict[str, Any]:
    """A pipeline's output by the engine's names (images, frames, audios), other fields by their own."""
    if not isinstance(result, Mapping):
        return {"images": result[0] if isinstance(result, tuple) and len(result) == 1 else result}
    fields = {MEDIA.get(str(name), str(name)): value for name, value in result.items()}
    if not set(fields) & set(MEDIA.values()):  # a depth map, say: the first field is what the pipeline makes
        first = next(iter(fields))
        fields = {"images": fields.pop(first), **fields}
    return fields


def pipeline_class(od_config: OmniDiffusionConfig) -> Any:
    """The diffusers class that is asked for, else the one that the checkpoint names.

    Raises:
        ModelNotFoundError: there is no such checkpoint, or diffusers has no such class.
    """
    try:
        held = diffusers.DiffusionPipeline.load_config(od_config.model, revision=od_config.revision)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"model {od_config.model!r} is no checkpoint of a diffusers pipeline: {' '.join(str(error).split())[:300]}"
        ) from error
    name = od_config.model_class_name or held.get("_class_name")
    if isinstance(name, list):  # [module of the checkpoint, class]: code that comes with the weights
        return diffusers.DiffusionPipeline
    found = getattr(diffusers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ModelNotFoundError(f"diffusers {diffusers.__version__} has no pipeline {name!r}")
    return found


def dtype_argument(dtype: torch.dtype) -> dict[str, Any]:
    """The argument by which ``from_pretrained`` of the installed diffusers takes a dtype; its name changed in 0.42."""
    return {_DTYPE_ARGUMENTS[Version(diffusers.__version__) >= Version("0.42")]: dtype}


def merge_load_kwargs(settings: Mapping[str, Any], load_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``from_pretrained``: ``load_kwargs`` win over settings of the same name.

    JSON knows neither dtypes nor quantization classes, so a dtype may be a name (or names by component) and
    ``quantization_config`` a dict of the arguments of ``PipelineQuantizationConfig``.
    """
    merged = dict(settings)
    for name, value in load_kwargs.items():
        if name in _DTYPE_ARGUMENTS:
            for other in _DTYPE_ARGUMENTS:
                merged.pop(other, None)
            value = _dtype(value)
        elif name == "quantization_config" and isinstance(value, dict):
            value = _quantization(value)
        merged[name] = value
    return merged


def _dtype(value: Any) -> Any:
    if isinstance(value, dict):
        return {component: _dtype(item) for component, item in value.items()}
    if not isinstance(value, str) or value == "auto":
        return value
    found = getattr(torch, value.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"diffusers_load_kwargs: {value!r} is no dtype of torch")
    return found


def _quantization(value: dict[str, Any]) -> Any:
    from diffusers import PipelineQuantizationConfig

    try:
        return PipelineQuantizationConfig(**value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"diffusers_load_kwargs: quantization_config: {error}") from error
