"""Requests that run side by side, a denoising step at a time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from porter.runtime import Omni, PorterRuntimeError
from porter.runtime.diffusion.worker.input_batch import InputBatch
from porter.runtime.diffusion.worker.utils import StepRequestState
from porter.runtime.entrypoints.omni import refusals
from porter.serve.job import Job
from porter.serve.lockstep import Lockstep


@dataclass
class Running:
    """A request between two of its steps."""

    job: Job
    state: StepRequestState


class StepRunner:
    """Runs the requests of a pipeline with step execution.

    Each tick takes one step of every request. Requests whose states look alike take it together: in one
    ``denoise_step`` if the pipeline says ``supports_step_batching``, else in one call of its denoiser (see
    :mod:`porter.serve.lockstep`). What a request computes does not depend on which others run beside it, but for
    rounding: each has its own state, scheduler and generator.

    Args:
        omni: the model.
        max_batch: requests of one ``denoise_step``.
    """

    def __init__(self, omni: Omni, max_batch: int) -> None:
        self.omni, self.max_batch = omni, max_batch
        self.pipeline: Any = omni.pipeline
        self.running: list[Running] = []
        self.is_batching = bool(getattr(self.pipeline, "supports_step_batching", False))
        self.lockstep = Lockstep(self.pipeline, omni.active, 1 if self.is_batching else max_batch)
        self.batch_sizes: list[int] = []
        """Sizes of the batches of the last tick."""

    def add(self, job: Job) -> None:
        """Prepare a request; one that the pipeline refuses fails, the others do not notice."""
        try:
            with self.omni.active(), refusals():
                request = job.request = self.omni.prepare(job.request)
                state = StepRequestState(request.request_id, request.sampling_params, request.prompt)
                state = self.pipeline.prepare_encode(state)
            job.advance(0, state.total_steps)
        except BaseException as error:
            job.fail(error)
            return
        self.running.append(Running(job, state))

    def tick(self) -> list[Job]:
        """Take one step of every request; returns those that are done, their results handed over."""
        done = [item.job for item in self.running if item.job.is_cancelled]
        self.running = [item for item in self.running if not item.job.is_cancelled]
        self.batch_sizes = []
        with self.omni.active():
            for batch in self._batches():
                self._step(batch)
        for item in self.running:
            if item.state.denoise_completed and not item.job.future.done():
                self._decode(item)
        done += [item.job for item in self.running if item.job.future.done()]
        self.running = [item for item in self.running if not item.job.future.done()]
        return done

    def _batches(self) -> list[list[Running]]:
        groups: dict[Hashable, list[Running]] = {}
        for item in self.running:
            # The lockstep finds out by itself what looks alike; without it, each is on its own.
            alone = None if self.lockstep.is_possible else item.job.id
            groups.setdefault(structure(item.state) if self.is_batching else alone, []).append(item)
        size = self.max_batch
        return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]

    def _step(self, batch: list[Running]) -> None:
        predictions = self._predict([item.state for item in batch])
        for item, prediction in zip(batch, predictions, strict=True):
            try:
                with refusals():
                    if isinstance(prediction, BaseException):
                        raise prediction
                    self.pipeline.step_scheduler(item.state, prediction)
                item.job.advance(item.state.step_index, item.state.total_steps)
            except BaseException as error:
                item.job.fail(_plain(error))

    def _predict(self, states: Sequence[StepRequestState]) -> list[Any]:
        """The prediction of each state, or what its step failed with."""
        if len(states) > 1 and not self.is_batching:
            predictions = self.lockstep.predict(states)
            self.batch_sizes += self.lockstep.batch_sizes
            return predictions
        try:
            prediction = self.pipeline.denoise_step(InputBatch.make_batch(states), states=states)
            if len(states) > 1:  # rows, as many of each request as its latents have
                rows = [int(state.latents.shape[0]) for state in states if state.latents is not None]
                predictions = list(torch.split(prediction, rows))
            else:
                predictions = [prediction]
        except BaseException as error:
            # One may spoil it for the others: find out which.
            return [error] if len(states) == 1 else [self._predict([state])[0] for state in states]
        self.batch_sizes.append(len(states))
        return predictions

    def _decode(self, item: Running) -> None:
        try:
            with self.omni.active(), refusals():
                output = self.pipeline.post_decode(item.state)
                item.job.finish(self.omni.finish(item.job.request, output, item.job.original))
        except BaseException as error:
            item.job.fail(_plain(error))


def structure(state: StepRequestState) -> Hashable:
    """What two states must have alike to take a step together: shapes but for the batch, types, settings.

    Tensors count by their shapes, numbers and strings by their values, whatever else by its type.
    """
    return tuple((name, _shape(value)) for name, value in sorted(vars(state).items()) if name not in _OWN)


# What differs between requests and does not matter to a batch.
_OWN = frozenset({"request_id", "sampling", "prompt", "step_index", "timesteps", "scheduler", "stage_durations"})


def _shape(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape[1:]), value.dtype, value.device)
    if isinstance(value, dict):
        return tuple((str(name), _shape(item)) for name, item in sorted(value.items(), key=lambda pair: str(pair[0])))
    if isinstance(value, list | tuple):
        return tuple(_shape(item) for item in value)
    return value if isinstance(value, bool | int | float | str | None) else type(value).__qualname__


def _plain(error: BaseException) -> BaseException:
    """An error without the frames it came through: they would hold the tensors of the step."""
    return error if isinstance(error, PorterRuntimeError) else error.with_traceback(None)
