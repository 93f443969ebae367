"""Steps of several requests with one call of the transformer, for ports that take a step of one request at a time.

Each request's step runs until it calls the transformer, and waits there. When all wait, calls that look alike become
one call over all their samples. Whether a model really computes its samples by themselves is not believed but tried:
the first time calls of some shapes come together they are computed both ways, and put together from then on only if
the results agree, and if it is not slower.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch

from porter.runtime.diffusion.worker.input_batch import InputBatch
from porter.runtime.diffusion.worker.utils import StepRequestState
from porter.runtime.logger import init_logger
from porter.serve import rows

logger = init_logger(__name__)

# By how much sums may differ that were added up in another order, relative to the largest value.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# Calls that take this much longer together than one after the other are left alone.
SLOWER = 1.2
# Shapes that are remembered.
_MOST_VERDICTS = 1024


@dataclass
class _Call:
    """A call of a denoiser that waits for its output."""

    denoiser: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class _Seat:
    """One request's place in a step: what it waits for, and what it ends with."""

    calls: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    answers: SimpleQueue[Any] = field(default_factory=SimpleQueue)


@dataclass
class _End:
    """A step's prediction, or what it failed with."""

    prediction: Any = None
    error: BaseException | None = None


class _GaveUp(BaseException):
    """The step is not finished because the engine failed elsewhere."""


class _Waiting:
    """Stands where a denoiser stands: its attributes are the denoiser's, its calls wait to be put together."""

    def __init__(self, denoiser: Any, name: str, seat: _Seat) -> None:
        self._denoiser, self._name, self._seat = denoiser, name, seat

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._seat.calls.put(_Call(self._name, args, kwargs))
        answer = self._seat.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


class Lockstep:
    """Takes steps of several requests together.

    Args:
        pipeline: a port with step execution; its ``_dit_modules`` are the denoisers.
        active: what its methods run in.
        most: requests of one step.
    """

    def __init__(self, pipeline: Any, active: Callable[[], AbstractContextManager[None]], most: int) -> None:
        self.pipeline, self.active = pipeline, active
        self.denoisers = [name for name in getattr(pipeline, "_dit_modules", ()) if hasattr(pipeline, name)]
        self.batch_sizes: list[int] = []
        """Calls that were put together, in the last step."""
        self._pool = ThreadPoolExecutor(most, "porter-step") if most > 1 and self.denoisers else None
        self._verdicts: dict[Hashable, int] = {}
        """Samples of a call by the call's structure; 0: such calls are not put together."""

    @property
    def is_possible(self) -> bool:
        """Whether there is a denoiser to wait at."""
        return self._pool is not None

    def predict(self, states: Sequence[StepRequestState]) -> list[Any]:
        """The prediction of each request, or the exception that its step ended with."""
        assert self._pool is not None
        self.batch_sizes = []
        seats = [_Seat() for _ in states]
        now: list[Any] = []
        try:
            for seat, state in zip(seats, states, strict=True):
                self._pool.submit(self._work, self._view(seat), state, seat)
                now.append(seat.calls.get())  # one at a time: what runs beside another only gets in its way
            while any(isinstance(item, _Call) for item in now):
                waiting = [n for n, item in enumerate(now) if isinstance(item, _Call)]
                for n, answer in self._answers([(n, now[n]) for n in waiting]):
                    now[n] = None
                    seats[n].answers.put(answer)
                    now[n] = seats[n].calls.get()
        finally:
            for seat, item in zip(seats, now, strict=False):
                if isinstance(item, _Call):
                    seat.answers.put(_GaveUp())
        return [end.prediction if end.error is None else end.error for end in now]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _view(self, seat: _Seat) -> Any:
        """The pipeline as one request sees it: all shared but the denoisers, and what is set on it while it works."""
        view = copy.copy(self.pipeline)
        modules = dict(vars(self.pipeline)["_modules"])
        for name in self.denoisers:
            modules[name] = _Waiting(getattr(self.pipeline, name), name, seat)
        vars(view)["_modules"] = modules
        return view

    def _work(self, view: Any, state: StepRequestState, seat: _Seat) -> None:
        try:
            with self.active():
                end = _End(view.denoise_step(InputBatch.make_batch([state]), states=[state]))
        except BaseException as error:
            end = _End(error=error)
        seat.calls.put(end)

    def _answers(self, calls: list[tuple[int, _Call]]) -> Iterator[tuple[int, Any]]:
        groups: dict[Hashable, list[tuple[int, _Call]]] = {}
        for n, call in calls:
            look = (call.denoiser, rows.structure(call.args), rows.structure(call.kwargs))
            groups.setdefault(look, []).append((n, call))
        for key, group in groups.items():
            outputs = self._together(key, [call for _, call in group])
            yield from zip((n for n, _ in group), outputs, strict=True)

    def _together(self, key: Hashable, calls: list[_Call]) -> list[Any]:
        """The outputs of calls that look alike; an exception for a call that failed."""
        samples = self._verdicts.get(key)
        if len(calls) > 1 and samples:
            try:
                outputs = self._merged(calls, samples)
            except Exception as error:  # too many for the memory, say
                logger.warning("%d calls of %s fail together: %s", len(calls), calls[0].denoiser, error)
                self._verdicts[key] = 0
            else:
                self.batch_sizes.append(len(calls))
                return outputs
        began = _clock()
        outputs = [self._alone(call) for call in calls]
        self.batch_sizes += [1] * len(calls)
        if len(calls) > 1 and samples is None and not any(isinstance(item, BaseException) for item in outputs):
            self._try(key, calls, outputs, _clock() - began)
        return outputs

    def _alone(self, call: _Call) -> Any:
        try:
            return getattr(self.pipeline, call.denoiser)(*call.args, **call.kwargs)
        except BaseException as error:
            return error

    def _merged(self, calls: list[_Call], samples: int) -> list[Any]:
        args = rows.merge([call.args for call in calls], samples)
        kwargs = rows.merge([call.kwargs for call in calls], samples)
        output = getattr(self.pipeline, calls[0].denoiser)(*args, **kwargs)
        return rows.split(output, len(calls), samples)

    def _try(self, key: Hashable, calls: list[_Call], outputs: list[Any], seconds: float) -> None:
        """Decide whether calls of these shapes may be put together from now on: do they agree, and does it pay?"""
        name, samples, reason = calls[0].denoiser, 0, ""
        try:
            samples = rows.samples_of(outputs[0])
            began = _clock()
            together = self._merged(calls, samples)
            took = _clock() - began
            worst = max(map(rows.difference, together, outputs))
            if worst > TOLERANCE.get(_dtype(outputs[0]), 0.0):
                reason = f"they differ by {worst:.2g} from what each computes alone"
            elif took > SLOWER * seconds:
                reason = f"it takes {took:.3g} s instead of {seconds:.3g} s"
        except Exception as error:
            reason = str(error) or type(error).__name__
        if len(self._verdicts) >= _MOST_VERDICTS:
            self._verdicts.clear()
        self._verdicts[key] = 0 if reason else samples
        if reason:
            logger.warning("calls of %s are not put together: %s", name, reason)


def _clock() -> float:
    """Seconds that count: on an accelerator those of its work, else those of this thread, whatever else runs here."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()


def _dtype(output: Any) -> torch.dtype | None:
    """The type of the first tensor of an output."""
    if isinstance(output, torch.Tensor):
        return output.dtype
    items = list(output.values()) if hasattr(output, "values") else output
    return _dtype(items[0]) if isinstance(items, list | tuple) and items else None
