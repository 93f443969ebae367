"""Prompts and sampling parameters of a diffusion request."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

import torch

from porter.runtime.errors import RequestError

DIFFUSION_QUALITY_LEVELS: tuple[str, ...] = ("lossless", "high")


class OmniTextPrompt(TypedDict, total=False):
    """A prompt dict. Other diffusers parameters may stand in it too, under their own names.

    ``prompt`` may be a list of strings: one batched call. ``multi_modal_data`` holds images, masks, videos and
    audio; ``additional_information`` is where a pre-processing hook leaves what it prepared.
    """

    prompt: str | list[str]
    negative_prompt: str | list[str]
    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor
    multi_modal_data: dict[str, Any]
    mm_processor_kwargs: dict[str, Any]
    modalities: list[str]
    additional_information: dict[str, Any]


OmniPromptType: TypeAlias = str | OmniTextPrompt


def copy_containers(value: Any) -> Any:
    """Copy dicts, lists and tuples at every depth; share everything else.

    A port may pop from or write into a request's containers. Tensors, images and, above all, generators must
    stay the caller's objects: random numbers are drawn from the caller's generator.
    """
    if type(value) is dict:
        return {key: copy_containers(item) for key, item in value.items()}
    if type(value) is list:
        return [copy_containers(item) for item in value]
    if type(value) is tuple:
        return tuple(copy_containers(item) for item in value)
    return value


@dataclass
class OmniDiffusionSamplingParams:
    """Everything about a request that is not its prompt.

    The fields are those of vLLM-Omni 0.30. ``num_frames``, ``guidance_rescale``, ``eta``, ``layers`` and
    ``resolution`` default to None here, where vllm-omni has a value that cannot say "not given": so an explicit
    value counts, whatever it is.

    Raises:
        RequestError: ``quality`` is not one of the known levels.
    """

    max_sequence_length: int | None = None
    prompt_template: dict[str, Any] | None = None
    do_classifier_free_guidance: bool = False
    output_type: str | None = None
    quality: str | None = None

    # How many outputs, and where their noise comes from.
    num_outputs_per_prompt: int = 1
    seed: int | None = None
    seed_provided: bool = field(default=True, init=False, repr=False, compare=False)
    generator: torch.Generator | list[torch.Generator] | None = None
    generator_device: str | None = None

    # Model-specific switches.
    layers: int | None = None
    cfg_normalize: bool = False
    use_en_prompt: bool = False
    resolution: int | None = None
    is_prompt_processed: bool = False

    # Latents handed in by the caller.
    latents: torch.Tensor | None = None
    audio_latents: torch.Tensor | None = None
    raw_latent_shape: torch.Tensor | None = None
    noise_pred: torch.Tensor | None = None
    image_latent: torch.Tensor | None = None

    # Sizes: of the latents, of the video, of the picture.
    height_latents: list[int] | int | None = None
    width_latents: list[int] | int | None = None
    num_frames: int | None = None
    num_frames_round_down: bool = False
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    frame_rate: float | None = None
    height_not_provided: bool = False
    width_not_provided: bool = False
    enable_frame_interpolation: bool = False
    frame_interpolation_exp: int = 1
    frame_interpolation_scale: float = 1.0
    frame_interpolation_model_path: str | None = None

    # The denoising schedule.
    timesteps: Any = None
    timestep: torch.Tensor | float | int | None = None
    step_index: int | None = None
    boundary_ratio: float | None = None
    num_inference_steps: int | None = None
    sigmas: list[float] | None = None

    # Guidance; None means "the pipeline's own default".
    guidance_scale: float | None = None
    guidance_scale_provided: bool = False
    guidance_scale_2: float | None = None
    guidance_scale_2_provided: bool = False
    guidance_rescale: float | None = None
    true_cfg_scale: float | None = None
    strength: float | None = None
    decode_timestep: float | list[float] | None = None
    decode_noise_scale: float | list[float] | None = None
    eta: float | None = None

    n_tokens: int | None = None
    extra_step_kwargs: dict[str, Any] = field(default_factory=dict)

    # Key/value caches handed between stages.
    past_key_values: Any | None = None
    kv_metadata: dict[str, Any] | None = None
    need_kv_receive: bool = True
    cfg_text_past_key_values: Any | None = None
    cfg_img_past_key_values: Any | None = None
    cfg_text_kv_metadata: dict[str, Any] | None = None
    cfg_img_kv_metadata: dict[str, Any] | None = None
    cfg_kv_request_ids: dict[str, str] | None = None
    cfg_active_branch: str | None = None
    cfg_branch_roles: list[str] | None = None
    cfg_branch_past_key_values: dict[str, Any] | None = None
    cfg_branch_kv_metadata: dict[str, dict[str, Any]] | None = None

    modules: dict[str, Any] = field(default_factory=dict)

    return_trajectory_latents: bool = False
    return_trajectory_decoded: bool = False
    trajectory_timesteps: list[torch.Tensor] | None = None
    trajectory_latents: torch.Tensor | None = None

    # Every diffusers parameter that has no field of its own.
    extra_args: dict[str, Any] = field(default_factory=dict)

    save_output: bool = True
    return_frames: bool = False

    lora_request: Any | None = None
    lora_scale: float = 1.0

    # Sparse video attention.
    STA_param: list[Any] | None = None
    is_cfg_negative: bool = False
    mask_search_final_result_pos: list[list[Any]] | None = None
    mask_search_final_result_neg: list[list[Any]] | None = None
    VSA_sparsity: float = 0.0

    profile: bool = False
    num_profiled_timesteps: int = 8
    debug: bool = False
    output: torch.Tensor | None = None
    emit_request_lifecycle: bool = False

    def __post_init__(self) -> None:
        if self.quality is not None and self.quality not in DIFFUSION_QUALITY_LEVELS:
            raise RequestError(f"quality must be one of {list(DIFFUSION_QUALITY_LEVELS)}, got {self.quality!r}")

    @property
    def batch_size(self) -> int:
        """Outputs of one prompt."""
        return self.num_outputs_per_prompt

    @property
    def resolved_frame_rate(self) -> float | None:
        """``frame_rate`` if given, else ``fps``, else None ("use the model's own")."""
        for rate in (self.frame_rate, self.fps):
            if isinstance(rate, list):
                rate = rate[0] if rate else None
            if rate is not None:
                return float(rate)
        return None

    def clone(self) -> OmniDiffusionSamplingParams:
        """A copy whose containers are its own and whose tensors, images and generators are the caller's."""
        copied = {f.name: copy_containers(getattr(self, f.name)) for f in dataclasses.fields(self) if f.init}
        return type(self)(**copied)
