"""The thread that owns the model: a bounded queue in, results out."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from porter.runtime import Omni, OmniDiffusionSamplingParams
from porter.runtime.diffusion.models.interface import supports_step_execution
from porter.runtime.entrypoints.omni import make_request
from porter.runtime.logger import init_logger
from porter.serve.job import Cancelled, Job
from porter.serve.step_runner import StepRunner

logger = init_logger(__name__)


class QueueFull(Exception):
    """As many requests wait as may.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


class Closing(Exception):
    """The server shuts down."""


class Engine:
    """Runs requests on one model, in a thread of its own.

    A pipeline with step execution runs up to ``max_num_seqs`` requests side by side, a step of each in turn, new ones
    joining as others finish. Any other runs them one after the other. Either way they start in the order of arrival.

    Args:
        omni: the model.
        max_num_seqs: requests that run side by side.
        max_queue: requests that wait; more are refused.
        on_tick: called after every tick with the sizes of its batches, and after a whole call with nothing.
    """

    def __init__(
        self,
        omni: Omni,
        max_num_seqs: int = 8,
        max_queue: int = 64,
        on_tick: Callable[[list[int]], None] | None = None,
    ) -> None:
        self.omni, self.max_queue = omni, max_queue
        self.is_stepwise = supports_step_execution(omni.pipeline)
        self.max_num_seqs = max_num_seqs if self.is_stepwise else 1
        self.on_tick = on_tick or (lambda sizes: None)
        self._runner = StepRunner(omni, self.max_num_seqs) if self.is_stepwise else None
        self._waiting: deque[Job] = deque()
        self._current: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._seconds = 1.0  # of a request, on average
        self._thread = threading.Thread(target=self._loop, name="porter-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests can be taken."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._current)

    def check_room(self) -> None:
        """Refuse early: before a body is parsed or a picture is fetched.

        Raises:
            QueueFull: there is no room.
            Closing: the server shuts down.
        """
        if self._closing:
            raise Closing
        if len(self._waiting) >= self.max_queue:
            raise QueueFull(self.retry_after())

    def retry_after(self) -> int:
        """Seconds until a place in the queue will be free, guessed from how long requests take."""
        return max(1, min(600, math.ceil(self._seconds / self.max_num_seqs)))

    def submit(self, prompt: Any, params: OmniDiffusionSamplingParams, request_id: str | None = None) -> Job:
        """Put a request into the queue.

        Raises:
            RequestError: it is malformed.
            QueueFull: there is no room.
            Closing: the server shuts down.
        """
        job = Job(make_request(prompt, params, request_id))
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """Give a request up: at once if it waits, after its current step if it runs."""
        with self._changed:
            job.is_cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.fail(Cancelled(job.id))

    def close(self, finish: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, and wait for those that are here.

        Args:
            finish: whether they are finished; otherwise, and after ``timeout`` seconds, they are cancelled.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if finish:
            self._thread.join(timeout)
        self.cancel_all()
        self._thread.join(60)

    def cancel_all(self) -> None:
        """Give up all that runs or waits."""
        with self._changed:
            jobs = [*self._waiting, *self._current]
        for job in jobs:
            self.cancel(job)

    def begin_closing(self) -> None:
        """Take no more requests from now on; those that are here go on. May be called from a signal's handler."""
        self._closing = True

    def _loop(self) -> None:
        while self._turn():
            pass
        if self._runner is not None:
            self._runner.lockstep.close()

    def _turn(self) -> bool:
        """Admit who waits and take a step; False when there is nothing left to do, ever.

        Nothing of it outlives it: a thread that waits for work must not hold the last results.
        """
        with self._changed:
            while not self._waiting and not self._current and not self._closing:
                self._changed.wait()
            if not self._waiting and not self._current:
                return False
            admitted = []
            while self._waiting and len(self._current) < self.max_num_seqs:
                job = self._waiting.popleft()
                job.started = time.monotonic()
                self._current.append(job)
                admitted.append(job)
        try:
            done = self._work(admitted)
        except BaseException as error:  # nothing that a request does may end this thread
            logger.error("the engine failed: %r", error)
            for job in self._current:
                job.fail(error)
            done = list(self._current)
            if self._runner is not None:
                self._runner.running = []
        with self._changed:
            for job in done:
                self._retire(job)
        return True

    def _work(self, admitted: list[Job]) -> list[Job]:
        if self._runner is None:
            for job in admitted:
                self._run_whole(job)
            self.on_tick([])
            return admitted
        for job in admitted:
            self._runner.add(job)
        done = self._runner.tick()
        self.on_tick(self._runner.batch_sizes)
        return [*done, *(job for job in admitted if job.future.done() and job not in done)]

    def _run_whole(self, job: Job) -> None:
        try:
            job.advance(0, None)
            job.finish(self.omni.run(job.request, job.original, job.advance))
        except BaseException as error:
            job.fail(error.with_traceback(None))

    def _retire(self, job: Job) -> None:
        if job in self._current:
            self._current.remove(job)
        if job.is_cancelled:
            job.fail(Cancelled(job.id))
        elif job.started is not None:
            self._seconds += 0.2 * (time.monotonic() - job.started - self._seconds)
