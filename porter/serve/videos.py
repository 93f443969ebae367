"""Video jobs: what was asked for, how far it is, and the files."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from porter.runtime.outputs import OmniRequestOutput
from porter.serve.context import Context
from porter.serve.errors import ApiError, as_api_error
from porter.serve.job import Job
from porter.serve.media_out import encode_videos
from porter.serve.protocol.videos import DEFAULT_FPS, VideoError, VideoResponse, VideoStatus

_DONE = (VideoStatus.COMPLETED, VideoStatus.FAILED)


class Stored:
    """A job and its files."""

    def __init__(self, record: VideoResponse, job: Job) -> None:
        self.record = record
        self.job: Job | None = job
        """None when it is done: its result, all frames of it, is not kept beside the file."""
        self.files: list[Path] = []
        self.task: asyncio.Task[None] | None = None

    def current(self) -> VideoResponse:
        """The record, with how far the job is by now."""
        if self.job is not None:
            started = self.job.started is not None
            self.record.status = VideoStatus.IN_PROGRESS if started else VideoStatus.QUEUED
            self.record.progress = min(99, self.job.progress)
        return self.record


class VideoStore:
    """The jobs of one server, the oldest of which make room.

    Args:
        context: the served model.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._jobs: dict[str, Stored] = {}
        self._own_folder = context.settings.video_dir is None
        given = context.settings.video_dir
        self.folder = Path(tempfile.mkdtemp(prefix="porter-videos-")) if given is None else given
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(self, record: VideoResponse, job: Job, given: Mapping[str, Any]) -> VideoResponse:
        """Remember a job and wait for it in the background."""
        stored = self._jobs[record.id] = Stored(record, job)
        stored.task = asyncio.create_task(self._run(stored, job, given))
        done = [item for item in self._jobs.values() if item.record.status in _DONE]
        for item in done[: max(0, len(self._jobs) - self.context.settings.max_stored_videos)]:
            self._remove(item)
        return stored.current()

    def get(self, identity: str) -> Stored:
        """A job by its id.

        Raises:
            ApiError: there is none of that id.
        """
        if identity not in self._jobs:
            raise ApiError(404, "Video not found", "video_id")
        return self._jobs[identity]

    def records(self, newest_first: bool) -> list[VideoResponse]:
        """All jobs in the order of their creation."""
        found = [stored.current() for stored in self._jobs.values()]
        return found[::-1] if newest_first else found

    async def delete(self, identity: str) -> None:
        """Cancel a job if it is not done, and forget it."""
        stored = self.get(identity)
        if stored.job is not None:
            self.context.engine.cancel(stored.job)
        if stored.task is not None:
            await asyncio.wait([stored.task], timeout=60)
        self._remove(stored)

    async def close(self) -> None:
        """Wait for what is in the background, and remove a temporary folder."""
        tasks = [stored.task for stored in self._jobs.values() if stored.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=60)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _remove(self, stored: Stored) -> None:
        self._jobs.pop(stored.record.id, None)
        for path in stored.files:
            path.unlink(missing_ok=True)

    async def _run(self, stored: Stored, job: Job, given: Mapping[str, Any]) -> None:
        record = stored.record
        try:
            result = await self.context.result(job, given)
            data = await asyncio.to_thread(encode, result, record, given)
            for number, video in enumerate(data):
                # The name is made here of an id that was made here: nothing of a request is part of it.
                path = self.folder / (f"{record.id}.mp4" if number == 0 else f"{record.id}_{number}.mp4")
                stored.files.append(path)
                await asyncio.to_thread(path.write_bytes, video)
            record.file_name = stored.files[0].name
            record.progress, record.status = 100, VideoStatus.COMPLETED
        except Exception as error:
            failure = as_api_error(error)
            record.status = VideoStatus.FAILED
            record.error = VideoError(code=failure.status, message=failure.message)
        record.completed_at = int(time.time())
        record.inference_time_s = round(time.monotonic() - (job.started or job.created), 3)
        stored.job = None


def encode(result: OmniRequestOutput, record: VideoResponse, given: Mapping[str, Any]) -> list[bytes]:
    """The videos of a result as files, what they are noted in the record."""
    # The rate that was asked for is the file's, whatever the model was made for.
    result.fps = given.get("fps") or result.fps or DEFAULT_FPS
    record.stage_durations, record.peak_memory_mb = result.stage_durations, result.peak_memory_mb
    data = encode_videos(result, {"prompt": record.prompt, "model": record.model})
    record.fps = float(result.fps)
    record.num_frames = _frames(result.frames)
    if record.num_frames:
        record.duration_s = round(record.num_frames / record.fps, 3)
    return data


def _frames(frames: Any) -> int | None:
    """Frames of the first video."""
    if hasattr(frames, "shape"):
        return int(frames.shape[1] if len(frames.shape) == 5 else frames.shape[0])
    if not isinstance(frames, list | tuple) or not frames:
        return None
    first: Any = frames[0]
    is_video = isinstance(first, list | tuple) or len(getattr(first, "shape", ())) == 4
    return len(first) if is_video else len(frames)
