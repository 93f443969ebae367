"""A request on its way through the server."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import Future
from typing import Any

from porter.runtime.diffusion.request import OmniDiffusionRequest
from porter.runtime.outputs import OmniRequestOutput


class Cancelled(Exception):
    """Nobody waits for this request any more."""


class Job:
    """One request: what to make, and where its result goes.

    Attributes:
        request: the request as the engine takes it.
        future: its result; a :class:`Cancelled` if it was cancelled.
        steps_done: denoising steps taken so far.
        total_steps: steps to take, where that is known.
    """

    def __init__(self, request: OmniDiffusionRequest) -> None:
        self.request = request
        self.original: Any = request.prompt
        self.future: Future[OmniRequestOutput] = Future()
        self.future.set_running_or_notify_cancel()  # whoever waits may go away; only the engine ends it
        self.created = time.monotonic()
        self.started: float | None = None
        self.steps_done = 0
        self.total_steps: int | None = None
        self.is_cancelled = False

    @property
    def id(self) -> str:
        return self.request.request_id

    @property
    def progress(self) -> int:
        """Percent of the steps taken."""
        return min(100, 100 * self.steps_done // self.total_steps) if self.total_steps else 0

    def advance(self, done: int, total: int | None) -> None:
        """Note that a step was taken.

        Raises:
            Cancelled: the request was cancelled meanwhile.
        """
        self.steps_done, self.total_steps = done, total
        if self.is_cancelled:
            raise Cancelled(self.id)

    def finish(self, result: OmniRequestOutput) -> None:
        """Hand the result over; once."""
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Hand an error over; once."""
        if not self.future.done():
            self.future.set_exception(error)


def new_id(prefix: str) -> str:
    """An id for a request or a stored file."""
    return f"{prefix}-{uuid.uuid4().hex}"
