"""What the endpoints share: the model, its engine, limits, and the way of a request through them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile

from porter.runtime import Omni, OmniDiffusionSamplingParams
from porter.runtime.entrypoints.rates import fill_rates
from porter.runtime.outputs import OmniRequestOutput
from porter.serve.arguments import CallBuilder
from porter.serve.engine import Engine
from porter.serve.errors import CLIENT_CLOSED, ApiError, as_api_error, bad_request
from porter.serve.job import Job
from porter.serve.media_in import PictureReader
from porter.serve.metrics import Metrics
from porter.serve.settings import ServerSettings

BodyT = TypeVar("BodyT", bound=BaseModel)
_MAX_PARTS = 200
_WHAT = {
    "image": "pictures: see /v1/images",
    "video": "videos: see /v1/videos",
    "audio": "sound: see /v1/audio/generate",
}


class Context:
    """One served model.

    Args:
        omni: the model.
        settings: limits and names.
    """

    def __init__(self, omni: Omni, settings: ServerSettings) -> None:
        self.omni, self.settings = omni, settings
        self.metrics = Metrics()
        self.engine = Engine(omni, settings.max_num_seqs, settings.max_queue, self.metrics.tick)
        self.metrics.watch(self.engine)
        self.calls = CallBuilder(omni, settings)
        self.pictures = PictureReader(settings)

    @property
    def model(self) -> str:
        """What the model is called in answers."""
        return self.settings.model_names[0]

    def check(self, *kinds: str) -> None:
        """Refuse a request before its body is looked at.

        Raises:
            ApiError: the model makes something else.
            QueueFull: there is no room.
            Closing: the server shuts down.
        """
        if self.omni.kind not in kinds:
            raise ApiError(404, f"{self.model} makes {_WHAT[self.omni.kind]}")
        self.engine.check_room()

    def check_model(self, name: str | None, status: int = 400) -> None:
        """Refuse a request for another model."""
        if name is not None and name not in self.settings.model_names:
            raise ApiError(status, f"model: this server runs {self.model!r}, not {name[:200]!r}", "model")

    async def read_pictures(self, sources: list[Any], field: str) -> list[Any]:
        """Pictures from uploads, URLs and base64, decoded in threads."""
        if len(sources) > self.settings.max_input_images:
            raise bad_request(f"{field}: more than {self.settings.max_input_images} pictures", field)
        loaded = [await item.read() if isinstance(item, UploadFile) else item for item in sources]
        return [await asyncio.to_thread(self.pictures.read, item, field) for item in loaded]

    def submit(self, prompt: Any, params: OmniDiffusionSamplingParams, request_id: str) -> Job:
        """Put a call into the queue; errors are those of the API."""
        try:
            return self.engine.submit(prompt, params, request_id)
        except Exception as error:
            raise as_api_error(error, self.calls.names) from error

    async def result(self, job: Job, given: Mapping[str, Any], request: Request | None = None) -> OmniRequestOutput:
        """Wait for a call; give it up if the client goes away, or the waiting itself is given up.

        Raises:
            ApiError: how it ended.
        """
        future = asyncio.wrap_future(job.future)
        waiting: set[asyncio.Future[Any]] = {future}
        watcher = asyncio.create_task(_disconnected(request)) if request is not None else None
        if watcher is not None:
            waiting.add(watcher)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                self.metrics.cancelled.inc()
                raise ApiError(CLIENT_CLOSED, "the client went away")
            result = future.result()
        except Exception as error:
            answer = as_api_error(error, self.calls.names)
            if answer.param in ("height", "width") and given.get("size") is not None:
                answer.param = "size"
            raise answer from error
        finally:
            if watcher is not None:
                watcher.cancel()
            if not job.future.done():
                self.engine.cancel(job)
                future.cancel()
        fill_rates(result, self.omni, {"fps": given.get("fps")})
        return result


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def context_of(request: Request) -> Context:
    """The context of the app that a request came to."""
    return request.app.state.context


async def read_body(request: Request, body: type[BodyT], files: tuple[str, ...], limit: int) -> tuple[BodyT, FormData]:
    """A form, or a JSON object, as a body and its files.

    Args:
        request: the request.
        body: what its fields are.
        files: parts that hold pictures, as files or as text; each may come several times, with or without ``[]``.
        limit: bytes of one part.

    Raises:
        ApiError: it is neither.
        ValidationError: of the fields.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        try:
            fields = await request.json()
        except ValueError as error:
            raise bad_request(f"the body is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise bad_request("the body is no JSON object")
        parts = [(name, item) for name in files if name in fields for item in _as_list(fields.pop(name))]
        return body.model_validate(fields), FormData(parts)
    form = await request.form(max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=limit)
    parts, texts = [], {}
    for name, value in form.multi_items():
        plain = name.removesuffix("[]")
        if plain in files:
            parts.append((plain, value))
        elif isinstance(value, UploadFile):
            raise bad_request(f"{name}: unknown file; there are {', '.join(files)}", name)
        elif plain in texts:
            raise bad_request(f"{plain}: given twice", plain)
        elif value != "":
            texts[plain] = value
    return body.model_validate(texts), FormData(parts)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
