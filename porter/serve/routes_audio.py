"""Sound from texts."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from porter.serve.arguments import SOUND_ENDS, SOUND_LENGTHS
from porter.serve.context import Context, context_of
from porter.serve.errors import bad_request
from porter.serve.job import new_id
from porter.serve.media_out import AUDIO_TYPES, encode_sound
from porter.serve.protocol.audio import AudioGenerateRequest
from porter.serve.routes_images import merged_extra

router = APIRouter(prefix="/v1/audio")
ARGUMENTS = ("negative_prompt", "guidance_scale", "num_inference_steps", "seed")


@router.post("/generate", response_model=None)
async def generate(body: AudioGenerateRequest, request: Request) -> Response:
    """Sound from a text, as a file."""
    context = context_of(request)
    context.check("audio")
    context.check_model(body.model, 404)
    fields = {"prompt": body.input, **{name: getattr(body, name) for name in ARGUMENTS}}
    fields |= _length(context, body)
    prompt, params = context.calls.build(fields, merged_extra(body.extra_params, body.extra_args))
    result = await context.result(context.submit(prompt, params, new_id("audiogen")), {}, request)
    data = await asyncio.to_thread(encode_sound, result, body.response_format, body.speed or 1.0)
    return Response(data, media_type=AUDIO_TYPES[body.response_format])


def _length(context: Context, body: AudioGenerateRequest) -> dict[str, float]:
    """Where the sound begins and ends, in the pipeline's words."""
    if body.audio_length is None:
        return {}
    start = body.audio_start or 0.0
    names = [name for name in (*SOUND_ENDS, *SOUND_LENGTHS) if context.calls.takes(name)]
    if not names:
        raise bad_request(f"audio_length: {context.omni.name} takes no length", "audio_length")
    if names[0] not in SOUND_ENDS:
        return {names[0]: body.audio_length}
    found = {names[0]: start + body.audio_length}
    return found | ({"audio_start_in_s": start} if context.calls.takes("audio_start_in_s") else {})
