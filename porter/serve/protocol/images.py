"""``/v1/images/generations`` and ``/v1/images/edits``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from porter.serve.protocol.common import Body, Count, Guidance, JsonObject, Number, Seed, Steps, checked_size

LAYERED_RESOLUTIONS = (640, 1024)


class ImageFields(Body):
    """What both endpoints take."""

    prompt: str
    model: str | None = None
    n: Count = 1
    negative_prompt: str | None = None
    num_inference_steps: Steps = None
    guidance_scale: Guidance = None
    guidance_scale_2: Guidance = None
    true_cfg_scale: Guidance = None
    strength: Annotated[float | None, Field(ge=0.0, le=1.0)] = None
    seed: Seed = None
    generator_device: str | None = None
    layers: Annotated[int | None, Field(ge=2, le=10)] = None
    lora: JsonObject = None
    bot_task: str | None = None
    system_prompt: str | None = None
    extra_params: JsonObject = None
    extra_args: JsonObject = None
    output_format: Literal["png", "jpeg", "jpg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] = 100
    return_stage_metrics: bool | None = None
    # OpenAI's, with the values that ask for nothing.
    user: str | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    quality: Literal["auto", "standard"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int | None, Field(ge=0, le=0)] = None


class ImageGenerationRequest(ImageFields):
    """A picture from a text."""

    size: str | None = None
    response_format: Literal["b64_json", "file"] = "b64_json"
    use_system_prompt: str | None = None
    flow_shift: Number = None
    vae_use_slicing: bool | None = None
    vae_use_tiling: bool | None = None
    moderation: Literal["auto", "low"] | None = None

    _check_size = field_validator("size")(checked_size)


class ImageEditRequest(ImageFields):
    """A picture from pictures and a text; the pictures themselves come as parts of the form."""

    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    resolution: int | None = None
    sys_type: str | None = None
    input_fidelity: Literal["low"] | None = None

    @field_validator("size")
    @classmethod
    def _check_size(cls, value: str) -> str:
        return value if value.lower() == "auto" else str(checked_size(value))

    @field_validator("resolution")
    @classmethod
    def _check_resolution(cls, value: int | None) -> int | None:
        if value is not None and value not in LAYERED_RESOLUTIONS:
            raise ValueError(f"one of {', '.join(map(str, LAYERED_RESOLUTIONS))}")
        return value


class ImageData(BaseModel):
    """One picture of an answer."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class ImageGenerationResponse(BaseModel):
    """The answer of both endpoints."""

    created: int
    data: list[ImageData]
    output_format: str | None = None
    size: str | None = None
    cot_output: str | None = None
    metrics: dict[str, Any] | None = None
