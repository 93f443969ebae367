"""Conversations: a text and pictures in, what the model makes of them out."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request

from porter.runtime.outputs import OmniRequestOutput
from porter.serve.context import Context, context_of
from porter.serve.errors import bad_request
from porter.serve.job import new_id
from porter.serve.media_out import b64, encode_picture, encode_sound, encode_videos, pictures_of
from porter.serve.protocol.chat import LANGUAGE_FIELDS, ChatCompletionRequest, Generation
from porter.serve.protocol.videos import DEFAULT_FPS
from porter.serve.routes_images import merged_extra, refuse_lora

router = APIRouter(prefix="/v1/chat")
ARGUMENTS = (
    "height",
    "width",
    "num_outputs_per_prompt",
    "seed",
    "generator_device",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "true_cfg_scale",
    "num_frames",
    "layers",
    "resolution",
    "strength",
    "negative_prompt",
)


@router.post("/completions", response_model=None)
async def complete(body: ChatCompletionRequest, request: Request) -> dict[str, Any]:
    """What the user's texts and pictures ask for, as the assistant's answer."""
    context = context_of(request)
    context.check("image", "video", "audio")
    context.check_model(body.model, 404)
    if body.stream:
        raise bad_request("stream: the answer comes whole", "stream")
    text, sources = read_messages(body)
    fields, extra = _fields(context, body)
    media: dict[str, Any] = {}
    if sources:
        name = next((item for item in ("image", "images") if context.calls.takes(item)), None)
        if name is None:
            raise bad_request(f"messages: {context.omni.name} takes no picture", "messages")
        loaded = await context.read_pictures(sources, "messages")
        media[name] = loaded[0] if len(loaded) == 1 else loaded
    fields["prompt"] = text
    prompt, params = context.calls.build(fields, extra, media, "extra_args")
    identity = new_id("chatcmpl")
    result = await context.result(context.submit(prompt, params, identity), fields, request)
    message = await asyncio.to_thread(_message, result)
    tokens = len(text.split())
    return {
        "id": identity,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": context.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1},
    }


def read_messages(body: ChatCompletionRequest) -> tuple[str, list[Any]]:
    """The texts of the user's messages, joined, and where their pictures are.

    Raises:
        ApiError: a part is neither; the error names it.
    """
    texts: list[str] = []
    sources: list[Any] = []
    for number, message in enumerate(body.messages):
        if message.role != "user":
            continue
        parts = message.content if isinstance(message.content, list) else [message.content or ""]
        for place, part in enumerate(parts):
            where = f"messages.{number}.content.{place}"
            if isinstance(part, str):
                texts.append(part)
            elif not isinstance(part, dict):
                raise bad_request(f"{where}: a text or an object", where)
            elif isinstance(part.get("text"), str) and part.get("type", "text") == "text":
                texts.append(part["text"])
            elif part.get("type") == "image_url":
                link = part.get("image_url")
                url = link.get("url") if isinstance(link, dict) else link
                if not isinstance(url, str):
                    raise bad_request(f"{where}.image_url.url: a URL", f"{where}.image_url.url")
                sources.append(url)
            elif isinstance(part.get("image"), str):
                sources.append(part["image"])
            else:
                raise bad_request(f"{where}: texts and pictures can be read, not {str(part.get('type'))[:50]!r}", where)
    return " ".join(texts).strip(), sources


def _fields(context: Context, body: ChatCompletionRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the generation, and arguments of the pipeline's own, from the root and from ``extra_body``."""
    levels = [("", body), *([("extra_body.", body.extra_body)] if body.extra_body is not None else [])]
    fields: dict[str, Any] = {}
    extra: dict[str, Any] = {}

    def put(into: dict[str, Any], name: str, value: Any, where: str) -> None:
        if name in fields or name in extra:
            raise bad_request(f"{where} is given twice", where)
        into[name] = value

    for prefix, level in levels:
        refuse_lora(level.lora)
        for name in ARGUMENTS:
            if (value := getattr(level, name)) is not None:
                put(fields, name, value, prefix + name)
        if level.cfg_scale is not None:
            put(fields, "true_cfg_scale", level.cfg_scale, f"{prefix}cfg_scale")
        if level.size is not None and (level.height is None or level.width is None):
            put(fields, "size", level.size, f"{prefix}size")
            fields.pop("height", None), fields.pop("width", None)
        for name, value in (level.model_extra or {}).items():
            _own(context, level, prefix, name, value, put, extra)
        for name, value in merged_extra(level.extra_params, level.extra_args).items():
            put(extra, name, value, f"{prefix}extra_args.{name}")
    return fields, extra


def _own(context: Context, level: Generation, prefix: str, name: str, value: Any, put: Any, extra: Any) -> None:
    """A field that is not among those of every model: an argument of this one, or a language model's."""
    if context.calls.takes(name):
        if value is not None:
            put(extra, name, value, prefix + name)
    elif name not in LANGUAGE_FIELDS:
        raise bad_request(f"{prefix}{name}: unknown field", prefix + name)


def _message(result: OmniRequestOutput) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    if result.frames is not None:
        result.fps = result.fps or DEFAULT_FPS
        files = [f"data:video/mp4;base64,{b64(data)}" for data in encode_videos(result, {})]
        message["content"] = [{"type": "video_url", "video_url": {"url": url}} for url in files]
    elif result.audios is not None:
        audio = {"id": new_id("audio"), "data": b64(encode_sound(result, "wav")), "transcript": ""}
        message["audio"] = {**audio, "expires_at": int(time.time()) + 24 * 3600}
    else:
        files = [f"data:image/png;base64,{b64(encode_picture(item, 'png'))}" for item in pictures_of(result)]
        shared = {"stage_durations": result.stage_durations, "peak_memory_mb": result.peak_memory_mb}
        message["content"] = [{"type": "image_url", "image_url": {"url": url}, **shared} for url in files]
    return message
