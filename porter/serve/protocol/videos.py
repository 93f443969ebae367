"""``/v1/videos`` and what hangs below it."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from porter.serve.job import new_id
from porter.serve.protocol.common import INT64, Body, Count, Guidance, JsonObject, Number, Seed, Side, Steps, _object

DEFAULT_FPS = 24.0
Fps = Annotated[float | None, Field(ge=1, le=1000, allow_inf_nan=False)]
Frames = Annotated[int | None, Field(ge=1, lt=INT64)]


class VideoStatus(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class ImageReference(Body):
    """A picture that a video begins with."""

    image_url: str


class VideoParams(Body):
    """The size of a video, in a block of its own."""

    width: Side = None
    height: Side = None
    num_frames: Frames = None
    fps: Fps = None


class VideoGenerationRequest(Body):
    """A video from a text and, possibly, a picture."""

    prompt: str
    model: str | None = None
    seconds: Annotated[str | None, Field(pattern=r"^[1-9]\d{0,5}$")] = None
    size: Annotated[str | None, Field(pattern=r"^[1-9]\d{0,8}x[1-9]\d{0,8}$")] = None
    image_reference: Annotated[ImageReference | list[ImageReference] | None, BeforeValidator(_object)] = None
    video_params: Annotated[VideoParams | None, BeforeValidator(_object)] = None
    user: str | None = None
    width: Side = None
    height: Side = None
    fps: Fps = None
    num_frames: Frames = None
    num_outputs_per_prompt: Count = 1
    quality: Literal["lossless", "high"] | None = None
    negative_prompt: str | None = None
    num_inference_steps: Steps = None
    guidance_scale: Guidance = None
    guidance_scale_2: Guidance = None
    boundary_ratio: Annotated[float | None, Field(ge=0.0, le=1.0)] = None
    flow_shift: Number = None
    true_cfg_scale: Guidance = None
    seed: Seed = None
    generate_sound: bool = False
    sound_duration: Annotated[float | None, Field(gt=0.0)] = None
    enable_frame_interpolation: bool = False
    lora: JsonObject = None
    extra_params: JsonObject = None
    extra_args: JsonObject = None
    return_stage_metrics: bool | None = None

    @field_validator("seconds", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class VideoError(BaseModel):
    """Why a job failed."""

    code: int | str
    message: str


class VideoResponse(BaseModel):
    """A job."""

    id: str = Field(default_factory=lambda: new_id("video_gen"))
    object: Literal["video"] = "video"
    model: str
    prompt: str
    status: VideoStatus = VideoStatus.QUEUED
    progress: int = 0
    size: str | None = None
    seconds: str = "4"
    quality: str = "default"
    created_at: int = Field(default_factory=lambda: int(time.time()))
    completed_at: int | None = None
    expires_at: int | None = None
    remixed_from_video_id: str | None = None
    error: VideoError | None = None
    media_type: Literal["video/mp4"] = "video/mp4"
    file_name: str | None = None
    inference_time_s: float | None = None
    fps: float | None = None
    num_frames: int | None = None
    duration_s: float | None = None
    metrics: dict[str, Any] | None = None
    stage_durations: dict[str, float] = Field(default_factory=dict)
    peak_memory_mb: float = 0.0


class VideoDeleteResponse(BaseModel):
    """A job that is gone."""

    id: str
    deleted: bool = True
    object: Literal["video.deleted"] = "video.deleted"


class VideoListResponse(BaseModel):
    """Jobs, a page of them."""

    data: list[VideoResponse]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"
