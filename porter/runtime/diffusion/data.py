"""Configuration of the engine, and what a pipeline returns."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from porter.runtime.errors import ConfigError, ModelNotFoundError
from porter.runtime.transformers_utils.config import get_hf_file_to_dict


@dataclass
class TransformerConfig:
    """The denoiser's ``config.json``: keys are also attributes."""

    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Wrap a copy of ``data``."""
        return cls(params=dict(data))

    def to_dict(self) -> dict[str, Any]:
        """A copy of the raw dictionary."""
        return dict(self.params)

    def get(self, key: str, default: Any = None) -> Any:
        return self.params.get(key, default)

    def __getattr__(self, item: str) -> Any:
        # ``params`` itself may be missing while the object is being unpickled.
        params = self.__dict__.get("params", {})
        if item in params:
            return params[item]
        raise AttributeError(item)


@dataclass
class DiffusionParallelConfig:
    """Degrees of parallelism: always 1 in this runtime.

    Raises:
        ConfigError: more than one process is asked for.
    """

    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    tensor_parallel_size: int = 1
    sequence_parallel_size: int = 1
    ulysses_degree: int = 1
    ring_degree: int = 1
    allgather_degree: int = 1
    cfg_parallel_size: int = 1
    vae_patch_parallel_size: int = 1
    text_encoder_tp_size: int = 1
    hsdp_replicate_size: int = 1
    hsdp_shard_size: int = -1
    ulysses_mode: str = "strict"
    vae_parallel_mode: str = "tile"
    enable_expert_parallel: bool = False
    use_hsdp: bool = False
    mask_sp_padding: bool = False

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name.endswith(("_size", "_degree")) and value is None:
                setattr(self, f.name, 1)
            elif value is True or (type(value) is int and value > 1):
                raise ConfigError(
                    f"{f.name}={value} needs more than one process, and porter.runtime has one: "
                    "convert with --target vllm-omni and run the port on vllm-omni"
                )


@dataclass
class AttentionSpec:
    """The attention backend of one role, by name (TORCH_SDPA, FLASH_ATTN, SAGE_ATTN)."""

    backend: str


@dataclass
class AttentionConfig:
    """Backends by role: ``per_role[role]``, then ``per_role[role_category]``, then ``default``, then automatic.

    Specs may be given as names; ``"auto"`` (any case) means automatic.
    """

    default: AttentionSpec | str | None = None
    per_role: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.default = _attention_spec(self.default)
        specs = {role: _attention_spec(spec) for role, spec in (self.per_role or {}).items()}
        self.per_role = {role: spec for role, spec in specs.items() if spec is not None}

    def resolve(self, role: str = "self", role_category: str | None = None) -> AttentionSpec | None:
        """The spec in force for a role; None means automatic."""
        default = self.default
        assert not isinstance(default, str)
        return self.per_role.get(role) or self.per_role.get(role_category or "") or default


def _attention_spec(spec: Any) -> AttentionSpec | None:
    if isinstance(spec, Mapping):
        spec = AttentionSpec(**spec)
    elif isinstance(spec, str):
        spec = AttentionSpec(backend=spec)
    if spec is not None and not isinstance(spec, AttentionSpec):
        raise ConfigError(f"an attention backend is a name or an AttentionSpec, not {type(spec).__name__}")
    return None if spec is None or spec.backend.lower() == "auto" else spec


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A torch dtype from itself or from its name (``"float32"``, ``"torch.bfloat16"``).

    Raises:
        ConfigError: no floating dtype of that name.
    """
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype {dtype!r} is not one of float32, bfloat16, float16, float64")
    return found


@dataclass
class OmniDiffusionConfig:
    """How to load and run one model: the fields of vLLM-Omni that mean something in a single process.

    Nested configs may be given as dicts, the dtype by name.

    Raises:
        ConfigError: a setting that this runtime cannot honour.
    """

    model: str | None = None
    model_class_name: str | None = None
    task_type: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    dtype: torch.dtype = torch.bfloat16
    model_config: dict[str, Any] = field(default_factory=dict)
    tf_model_config: TransformerConfig = field(default_factory=TransformerConfig)
    quantization_config: Any | None = None

    diffusion_attention_config: AttentionConfig = field(default_factory=AttentionConfig)
    parallel_config: DiffusionParallelConfig = field(default_factory=DiffusionParallelConfig)

    diffusion_load_format: str = "default"
    diffusers_load_kwargs: dict[str, Any] = field(default_factory=dict)
    diffusers_call_kwargs: dict[str, Any] = field(default_factory=dict)
    custom_pipeline_args: dict[str, Any] | None = None

    output_type: str = "pil"
    vae_use_slicing: bool = False
    vae_use_tiling: bool = False
    boundary_ratio: float | None = None
    flow_shift: float | None = None

    enforce_eager: bool = False
    enable_diffusion_pipeline_profiler: bool = False
    extras: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dtype = parse_dtype(self.dtype)
        if isinstance(self.parallel_config, Mapping):
            self.parallel_config = DiffusionParallelConfig(**self.parallel_config)
        attention = self.diffusion_attention_config
        if attention is None or isinstance(attention, str):
            self.diffusion_attention_config = AttentionConfig(default=attention)
        elif isinstance(attention, Mapping):
            self.diffusion_attention_config = AttentionConfig(**attention)
        if isinstance(self.tf_model_config, Mapping):
            self.tf_model_config = TransformerConfig.from_dict(self.tf_model_config)
        if self.quantization_config is not None:
            raise ConfigError(
                "quantization is not available in porter.runtime; convert with --target vllm-omni to use it"
            )

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> OmniDiffusionConfig:
        """A config from keyword arguments.

        Raises:
            ConfigError: a name that is no field, with the nearest one.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(
                    f"unknown setting {name!r}{hint} (settings for several processes, offloading and caching "
                    "exist on vllm-omni only)"
                )
        return cls(**kwargs)

    def set_tf_model_config(self, tf_config: TransformerConfig) -> None:
        """Set the denoiser's configuration."""
        self.tf_model_config = tf_config

    def enrich_config(self) -> None:
        """Read the pipeline class from ``model_index.json`` and the denoiser's config from its folder.

        The denoiser's folder is ``transformer/``, else ``unet/``; a model with neither keeps an empty config.

        Raises:
            ModelNotFoundError: no such model, no ``model_index.json``, or no ``_class_name`` in it.
        """
        if self.model is None:
            raise ModelNotFoundError("no model is given: pass a checkpoint folder or a hub id")
        index = get_hf_file_to_dict("model_index.json", self.model, revision=self.revision)
        if index is None and self.model_class_name is None:
            raise ModelNotFoundError(
                f"model {self.model!r} has no model_index.json: it is no diffusers pipeline checkpoint "
                "(pass the folder that holds model_index.json, or name the pipeline by model_class_name)"
            )
        if self.model_class_name is None:
            class_name = (index or {}).get("_class_name")
            if not isinstance(class_name, str) or not class_name:
                raise ModelNotFoundError(
                    f"model_index.json of {self.model!r} names no pipeline class under '_class_name'"
                )
            self.model_class_name = class_name
        for folder in ("transformer", "unet"):
            content = get_hf_file_to_dict(f"{folder}/config.json", self.model, revision=self.revision)
            if content is not None:
                self.set_tf_model_config(TransformerConfig.from_dict(content))
                break


@dataclass
class DiffusionOutput:
    """What a pipeline's ``forward`` returns: raw tensors before the post-processing hook.

    Attributes:
        output: a tensor, a tuple or dict of tensors, or whatever the pipeline decodes to.
        error: set instead of ``output`` when the request failed.
        stage_durations: seconds per stage.
    """

    output: Any = None
    trajectory_timesteps: Any = None
    trajectory_latents: Any = None
    trajectory_log_probs: Any = None
    trajectory_decoded: list[Any] | None = None
    error: str | None = None
    error_status_code: int | None = None
    error_type: str | None = None
    aborted: bool = False
    abort_message: str | None = None
    post_process_func: Callable[..., Any] | None = None
    finished: bool = True
    chunk_index: int = 0
    total_chunks: int = 1
    stage_durations: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    to_cpu: bool = False

    def __post_init__(self) -> None:
        if self.to_cpu:
            for name in ("output", "trajectory_timesteps", "trajectory_latents", "trajectory_log_probs"):
                setattr(self, name, _to_cpu(getattr(self, name)))


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(item) for item in value)
    return value
