"""Pictures from texts, and from pictures."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from porter.runtime.outputs import OmniRequestOutput
from porter.serve.context import Context, context_of, read_body
from porter.serve.errors import ApiError, bad_request
from porter.serve.job import Job, new_id
from porter.serve.media_out import IMAGE_TYPES, b64, encode_picture, pictures_of
from porter.serve.protocol.images import (
    ImageData,
    ImageEditRequest,
    ImageFields,
    ImageGenerationRequest,
    ImageGenerationResponse,
)

router = APIRouter(prefix="/v1/images")

# Fields of the body that are arguments of the pipeline.
ARGUMENTS = (
    "prompt",
    "n",
    "size",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "true_cfg_scale",
    "flow_shift",
    "strength",
    "seed",
    "generator_device",
    "layers",
    "resolution",
    "bot_task",
    "system_prompt",
    "use_system_prompt",
    "sys_type",
)
# OpenAI's mask is diffusers' mask_image.
_OTHER_PICTURES = {"mask": "mask_image", "mask_image": "mask_image", "reference_image": "reference_image"}
PICTURES = ("image", "url", *_OTHER_PICTURES)


@router.post("/generations", response_model=None)
async def generate(body: ImageGenerationRequest, request: Request) -> ImageGenerationResponse | Response:
    """Pictures from a text."""
    context = context_of(request)
    context.check("image")
    context.check_model(body.model)
    return await _answer(context, request, body, {}, "img_gen")


@router.post("/edits", response_model=None)
async def edit(request: Request) -> ImageGenerationResponse | Response:
    """Pictures from pictures and a text: a form, as OpenAI has it, or JSON with URLs or base64."""
    context = context_of(request)
    context.check("image")
    body, parts = await read_body(request, ImageEditRequest, PICTURES, context.settings.max_body_bytes)
    context.check_model(body.model)
    if body.resolution is not None and body.size.lower() != "auto":
        raise bad_request("resolution: give it or size, not both", "resolution")
    sources = [*parts.getlist("image"), *parts.getlist("url")]
    if not sources:
        raise ApiError(422, "image: give a picture, in image or url", "image")
    takes = context.calls.takes
    name = next((item for item in ("image", "images") if takes(item)), "image")
    if not takes(name):
        raise bad_request(f"image: {context.omni.name} takes no picture; see /v1/images/generations", "image")
    loaded = await context.read_pictures(sources, "image")
    media: dict[str, Any] = {name: loaded[0] if len(loaded) == 1 else loaded}
    for field, argument in _OTHER_PICTURES.items():
        if given := parts.getlist(field):
            media[argument] = (await context.read_pictures(given, field))[0]
    return await _answer(context, request, body, media, "img_edit")


async def _answer(
    context: Context, request: Request, body: ImageFields, media: dict[str, Any], prefix: str
) -> ImageGenerationResponse | Response:
    _refuse(body)
    # A field that has its default because nobody gave it leaves the pipeline's.
    fields = {name: getattr(body, name) for name in ARGUMENTS if name in body.model_fields_set}
    if str(fields.get("size")).lower() == "auto":
        fields["size"] = None
    prompt, params = context.calls.build(fields, merged_extra(body.extra_params, body.extra_args), media)
    job = context.submit(prompt, params, new_id(prefix))
    result = await context.result(job, fields, request)
    form = body.output_format or "png"
    pictures = pictures_of(result)
    files = await asyncio.to_thread(
        lambda: [encode_picture(picture, form, body.output_compression) for picture in pictures]
    )
    if getattr(body, "response_format", None) == "file":
        return _files(files, form)
    size = pictures[0].size if pictures else None
    return ImageGenerationResponse(
        created=int(time.time()),
        data=[ImageData(b64_json=b64(file)) for file in files],
        output_format=form,
        size=f"{size[0]}x{size[1]}" if size else None,
        metrics=stage_metrics(job, result) if body.return_stage_metrics else None,
    )


def _refuse(body: ImageFields) -> None:
    """What the fields are there for in vLLM-Omni or OpenAI, and this server does not do."""
    if body.stream:
        raise bad_request("stream: pictures come in one answer", "stream")
    refuse_lora(body.lora)
    if body.background == "transparent":
        raise bad_request("background: the model decides what lies behind a picture", "background")


def refuse_lora(lora: Any) -> None:
    """Adapters of single requests are the distributed engine's."""
    if lora is not None:
        raise bad_request("lora: adapters by request need --engine vllm-omni", "lora")


def merged_extra(params: dict[str, Any] | None, args: dict[str, Any] | None) -> dict[str, Any]:
    """``extra_params`` and ``extra_args``, which are two names of one field."""
    twice = sorted((params or {}).keys() & (args or {}).keys())
    if twice:
        raise bad_request(f"extra_args.{twice[0]} is given in extra_params too", f"extra_args.{twice[0]}")
    return {**(params or {}), **(args or {})}


def stage_metrics(job: Job, result: OmniRequestOutput) -> dict[str, Any]:
    """How long a request waited and ran."""
    started = job.started or job.created
    return {
        "queue_seconds": round(started - job.created, 6),
        "inference_seconds": round(time.monotonic() - started, 6),
        "steps": job.steps_done,
        "stage_durations": result.stage_durations,
        "peak_memory_mb": result.peak_memory_mb,
    }


def _files(files: list[bytes], form: str) -> Response:
    """One picture as it is, several as a ZIP archive."""
    if len(files) == 1:
        name = f"{new_id('image')[:14]}.{form}"
        return Response(files[0], media_type=IMAGE_TYPES[form], headers=_attachment(name))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, file in enumerate(files):
            archive.writestr(f"image_{number}.{form}", file)
    return Response(
        buffer.getvalue(), media_type="application/zip", headers=_attachment(f"{new_id('images')[:15]}.zip")
    )


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}
