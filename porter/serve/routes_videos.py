"""Videos: jobs that are asked about, and one call that waits."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from porter.serve.context import Context, context_of, read_body
from porter.serve.errors import ApiError, bad_request
from porter.serve.job import Job, new_id
from porter.serve.protocol.videos import (
    DEFAULT_FPS,
    VideoDeleteResponse,
    VideoGenerationRequest,
    VideoListResponse,
    VideoResponse,
    VideoStatus,
)
from porter.serve.routes_images import merged_extra, refuse_lora
from porter.serve.videos import VideoStore, encode

router = APIRouter(prefix="/v1/videos")

ARGUMENTS = (
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "true_cfg_scale",
    "boundary_ratio",
    "flow_shift",
    "seed",
)
PICTURES = ("input_reference", "input_references")


def store_of(request: Request) -> VideoStore:
    """The store of the app that a request came to."""
    return request.app.state.videos


@router.post("", response_model=None)
async def create(request: Request) -> VideoResponse:
    """Begin a video; the answer is a job to ask about."""
    body, fields, job = await _submit(request, "video_gen")
    record = VideoResponse(
        id=job.id,
        model=context_of(request).model,
        prompt=body.prompt,
        size=body.size or _written(fields),
        seconds=body.seconds or "4",
        quality=body.quality or "default",
        fps=fields.get("fps"),
        num_frames=fields.get("num_frames"),
    )
    return store_of(request).start(record, job, fields)


@router.post("/sync", response_model=None)
async def create_and_wait(request: Request) -> Response:
    """A video as the answer itself."""
    started = time.perf_counter()
    context = context_of(request)
    body, fields, job = await _submit(request, "video_sync")
    limit = context.settings.sync_seconds
    try:
        result = await asyncio.wait_for(context.result(job, fields, request), limit)
    except TimeoutError:
        raise ApiError(504, f"the video was not done after {limit:g} s; ask for a job at /v1/videos") from None
    record = VideoResponse(id=job.id, model=context.model, prompt=body.prompt)
    data = await asyncio.to_thread(encode, result, record, fields)
    headers = {
        "X-Request-Id": job.id,
        "X-Model": context.model.encode("ascii", "replace").decode(),
        "X-Inference-Time-S": f"{time.perf_counter() - started:.3f}",
        "X-Stage-Durations": json.dumps(record.stage_durations, separators=(",", ":")),
        "X-Peak-Memory-MB": f"{record.peak_memory_mb:.3f}",
    }
    return Response(data[0], media_type="video/mp4", headers=headers)


@router.get("")
async def list_jobs(
    request: Request,
    after: str | None = None,
    limit: Annotated[int | None, Query(ge=0, le=100)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> VideoListResponse:
    """Jobs, a page of them."""
    jobs = store_of(request).records(order == "desc")
    if after is not None:
        place = next((n for n, job in enumerate(jobs) if job.id == after), len(jobs))
        jobs = jobs[place + 1 :]
    page = jobs if limit is None else jobs[:limit]
    return VideoListResponse(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(page) < len(jobs),
    )


@router.get("/{video_id}", response_model=None)
async def retrieve(video_id: str, request: Request) -> VideoResponse | JSONResponse:
    """A job; one that failed is answered with the status of its error."""
    record = store_of(request).get(video_id).current()
    if record.status is VideoStatus.FAILED and record.error is not None:
        return JSONResponse(record.model_dump(mode="json"), int(record.error.code))
    return record


@router.get("/{video_id}/content", response_model=None)
async def content(video_id: str, request: Request) -> Response:
    """The file of a job."""
    stored = store_of(request).get(video_id)
    record = stored.current()
    if record.status is VideoStatus.FAILED:
        raise ApiError(422, "Video generation failed. Check job status for error details.", "video_id")
    if record.status is not VideoStatus.COMPLETED or not stored.files[0].is_file():
        raise ApiError(404, "Generation is still in-progress", "video_id")
    return FileResponse(stored.files[0], media_type=record.media_type, filename=record.file_name)


@router.delete("/{video_id}")
async def delete(video_id: str, request: Request) -> VideoDeleteResponse:
    """Forget a job and its file; one that runs is cancelled."""
    await store_of(request).delete(video_id)
    return VideoDeleteResponse(id=video_id)


async def _submit(request: Request, prefix: str) -> tuple[VideoGenerationRequest, dict[str, Any], Job]:
    context = context_of(request)
    context.check("video")
    body, parts = await read_body(request, VideoGenerationRequest, PICTURES, context.settings.max_body_bytes)
    context.check_model(body.model)
    _refuse(body)
    fields = {name: getattr(body, name) for name in ARGUMENTS}
    fields |= _measures(body)
    if body.num_outputs_per_prompt != 1:
        fields["num_outputs_per_prompt"] = body.num_outputs_per_prompt
    media = await _pictures(context, body, [*parts.getlist("input_reference"), *parts.getlist("input_references")])
    prompt, params = context.calls.build(fields, merged_extra(body.extra_params, body.extra_args), media)
    return body, fields, context.submit(prompt, params, new_id(prefix))


async def _pictures(context: Context, body: VideoGenerationRequest, uploads: list[Any]) -> dict[str, Any]:
    """The pictures that the video begins with: one, or the first and the last."""
    references = body.image_reference if isinstance(body.image_reference, list) else [body.image_reference]
    urls = [item.image_url for item in references if item is not None]
    if uploads and urls:
        raise bad_request("image_reference: give it or input_reference, not both", "image_reference")
    field = "image_reference" if urls else "input_reference"
    sources = uploads or urls
    if not sources:
        return {}
    name = next((item for item in ("image", "images") if context.calls.takes(item)), None)
    if name is None:
        raise bad_request(f"{field}: {context.omni.name} begins with no picture", field)
    loaded = await context.read_pictures(sources, field)
    if len(loaded) == 2 and context.calls.takes("last_image"):
        return {name: loaded[0], "last_image": loaded[1]}
    return {name: loaded[0] if len(loaded) == 1 else loaded}


def _measures(body: VideoGenerationRequest) -> dict[str, Any]:
    """Size, frames and rate, from wherever the request says them."""
    block = body.video_params
    found = {
        name: getattr(body, name) or getattr(block, name, None) for name in ("width", "height", "num_frames", "fps")
    }
    if body.size is not None:
        found["width"], found["height"] = (int(side) for side in body.size.split("x"))
    if found["num_frames"] is None and body.seconds is not None:
        found["num_frames"] = int(float(body.seconds) * (found["fps"] or DEFAULT_FPS))
    return found


def _written(fields: dict[str, Any]) -> str | None:
    return f"{fields['width']}x{fields['height']}" if fields.get("width") and fields.get("height") else None


def _refuse(body: VideoGenerationRequest) -> None:
    """What the fields are there for in vLLM-Omni, and this server does not do."""
    refuse_lora(body.lora)
    for name in ("generate_sound", "sound_duration", "enable_frame_interpolation"):
        if getattr(body, name):
            raise bad_request(f"{name} needs --engine vllm-omni", name)
