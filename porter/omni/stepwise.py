"""Requests that take turns in vLLM-Omni: its own step scheduler drives its own runner."""

from __future__ import annotations

from typing import Any

from porter.omni.worker import OneWorker


def run_interleaved(worker: OneWorker, requests: list[tuple[Any, Any]]) -> tuple[list[Any], list[list[str]]]:
    """Run requests step by step, all of them at once where the engine's scheduler lets them.

    Args:
        worker: made with ``step_execution``.
        requests: (prompt, sampling parameters of vllm_omni) each.

    Returns:
        What each request's ``DiffusionOutput`` holds, in order; and which requests each step ran, by number.

    Raises:
        RuntimeError: a request failed; the message is the engine's.
    """
    return run_made(worker, [worker.request(prompt, params) for prompt, params in requests])


def run_made(worker: OneWorker, made: list[Any]) -> tuple[list[Any], list[list[str]]]:
    """As :func:`run_interleaved`, of requests that were pre-processed."""
    from vllm_omni.diffusion.sched.step_scheduler import StepScheduler

    scheduler: Any = StepScheduler()
    scheduler.initialize(worker.config)
    numbers = {request.request_id: str(number) for number, request in enumerate(made)}
    for request in made:
        scheduler.add_request(request)
    results: dict[str, Any] = {}
    turns: list[list[str]] = []
    while scheduler.has_requests():
        scheduled = scheduler.schedule()
        if not scheduled.scheduled_request_ids:
            break
        turns.append([numbers[request_id] for request_id in scheduled.scheduled_request_ids])
        output = worker.step(scheduled)
        for request_id in scheduled.scheduled_request_ids:
            answer = output.get_request_output(request_id)
            if answer is not None and answer.result is not None:
                if answer.result.error is not None:
                    raise RuntimeError(f"request {numbers[request_id]} failed: {answer.result.error}")
                results[request_id] = answer.result.output
        scheduler.update_from_output(scheduled, output)
    return [results[request.request_id] for request in made], turns
