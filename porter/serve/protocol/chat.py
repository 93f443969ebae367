"""``/v1/chat/completions``: pictures in and out of a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from porter.serve.protocol.common import Body, Count, Guidance, JsonObject, Seed, Side, Steps, checked_size

# Fields of OpenAI's that steer a language model and mean nothing to a diffusion model.
LANGUAGE_FIELDS = frozenset(
    """audio frequency_penalty logit_bias logprobs max_completion_tokens max_tokens metadata modalities n
    parallel_tool_calls prediction presence_penalty reasoning_effort response_format service_tier stop store
    stream_options temperature top_k top_logprobs top_p user verbosity""".split()
)


class Message(BaseModel):
    """One turn; only those of the user are read."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[Any] | None = None


class Generation(BaseModel):
    """The fields of a generation, at a request's root or in its ``extra_body``; others may be the pipeline's own."""

    model_config = ConfigDict(extra="allow")

    height: Side = None
    width: Side = None
    size: str | None = None
    num_outputs_per_prompt: Count | None = None
    seed: Seed = None
    generator_device: str | None = None
    num_inference_steps: Steps = None
    guidance_scale: Guidance = None
    guidance_scale_2: Guidance = None
    true_cfg_scale: Guidance = None
    cfg_scale: Guidance = None
    num_frames: Side = None
    layers: Annotated[int | None, Field(ge=2, le=10)] = None
    resolution: Side = None
    strength: Annotated[float | None, Field(ge=0.0, le=1.0)] = None
    negative_prompt: str | None = None
    quality: Literal["lossless", "high"] | None = None
    lora: JsonObject = None
    modalities: list[str] | None = None
    extra_args: JsonObject = None
    extra_params: JsonObject = None
    return_stage_metrics: bool | None = None

    _check_size = field_validator("size")(checked_size)


class ChatCompletionRequest(Generation):
    """A conversation whose last picture is to be made."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    extra_body: Generation | None = None


__all__ = ["LANGUAGE_FIELDS", "Body", "ChatCompletionRequest", "Generation", "Message"]
