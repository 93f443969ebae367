"""Requests that take turns through a port's steps: each must come out as if it were alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from porter.parity.flatten import to_numpy
from porter.parity.request import to_request
from porter.parity.sides import Port, final_leaves, seed_globals
from porter.runtime.diffusion.models.interface import supports_step_execution
from porter.runtime.diffusion.worker.request_batch import DiffusionRequestBatch
from porter.runtime.diffusion.worker.utils import StepRequestState


def can_take_turns(port: Port) -> bool:
    """Whether the port runs requests step by step."""
    return supports_step_execution(port.pipeline)


def in_turns(port: Port, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run several calls step by step, one step of each in turn, each joining a step after the one before it.

    Those whose latents have the same form are predicted together, as an engine does that batches continuously.

    Returns:
        The arrays of each call's output, as :func:`porter.parity.sides.final_leaves` gives them.
    """
    omni, pipeline = port.omni, port.pipeline
    waiting: list[Any] = []
    running: list[Any] = []
    results: dict[int, dict[str, Any]] = {}
    for index, call in enumerate(calls):
        [(request, original)] = omni._requests(*to_request(call))
        waiting.append((index, request, original))
    with omni.active():
        while waiting or running:
            if waiting:
                index, request, original = waiting.pop(0)
                request = omni.prepare(request)
                seed_globals()
                state = StepRequestState(request.request_id, request.sampling_params, request.prompt)
                running.append((index, request, original, pipeline.prepare_encode(state)))
            for states in _batches([state for *_, state in running]):
                _step(pipeline, states)
            for item in list(running):
                index, request, original, state = item
                if state.denoise_completed or not state.total_steps:
                    running.remove(item)
                    output = pipeline.post_decode(state)
                    results[index] = final_leaves(omni.finish(request, output, original).media())
    return [results[index] for index in range(len(calls))]


def _batches(states: Sequence[StepRequestState]) -> list[list[StepRequestState]]:
    """Those that have a step to do, by the form of their latents."""
    found: dict[Any, list[StepRequestState]] = {}
    for state in states:
        if not state.denoise_completed:
            latents = state.latents
            form = id(state) if latents is None else (latents.shape[1:], latents.dtype)
            found.setdefault(form, []).append(state)
    return list(found.values())


def _step(pipeline: Any, states: Sequence[StepRequestState]) -> None:
    """One step of several requests, each with its rows of the prediction, as vLLM-Omni's runner hands them out."""
    prediction = pipeline.denoise_step(None, states=states)
    rows = [len(latents) for state in states if (latents := state.latents) is not None]
    for state, part in zip(states, [prediction] if len(states) == 1 else prediction.split(rows), strict=True):
        pipeline.step_scheduler(state, part)


def takes_batches(port: Port) -> bool:
    """Whether the port says that several requests may be one call."""
    return bool(getattr(port.pipeline, "supports_request_batch", False))


def in_a_batch(port: Port, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Hand several calls to the port as one batch of requests; the arrays of each one's output."""
    omni = port.omni
    with omni.active():
        made = [omni._requests(*to_request(call))[0] for call in calls]
        requests = [omni.prepare(request) for request, _ in made]
        outputs = port.pipeline.forward(DiffusionRequestBatch(requests))
        finished = [omni.finish(request, output) for request, output in zip(requests, outputs, strict=True)]
    return [final_leaves(result.media()) for result in finished]


def same_leaves(mine: Mapping[str, Any], its: Mapping[str, Any]) -> bool:
    """Whether two outputs are equal, bit for bit."""
    if mine.keys() != its.keys():
        return False
    pairs = ((to_numpy(mine[name]), to_numpy(its[name])) for name in mine)
    return all(a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all()) for a, b in pairs)
