"""``/v1/audio/generate``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from porter.serve.protocol.common import Body, JsonObject, Seed


class AudioGenerateRequest(Body):
    """Sound from a text."""

    input: str
    model: str | None = None
    response_format: Literal["wav", "pcm", "flac", "mp3", "opus"] = "wav"
    speed: Annotated[float | None, Field(ge=0.25, le=4.0)] = 1.0
    stream_format: Literal["audio"] | None = "audio"
    audio_length: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    audio_start: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = 0.0
    negative_prompt: str | None = None
    guidance_scale: Annotated[float | None, Field(ge=0, le=1000)] = None
    num_inference_steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    seed: Seed = None
    extra_params: JsonObject = None
    extra_args: JsonObject = None

    @field_validator("input")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("input cannot be empty")
        return value
