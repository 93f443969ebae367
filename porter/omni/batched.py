"""Requests that vLLM-Omni's worker runs together, against each alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from porter.omni.turns import apart, prepare, results, seed_each

# What predicts in a pipeline without a transformer of its own.
UNETS = ("unet", "prior")
TEXTS = ("a cat", "two dogs that run over a green hill at night")


def batched(work: Path, name: str) -> dict[str, Any]:
    """Two requests one by one, then as the engine's scheduler puts them together."""
    from porter.omni.worker import OneWorker
    from porter.parity.areas import small_areas
    from porter.parity.sides import align

    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    with tempfile.TemporaryDirectory() as folder:
        worker = OneWorker(prepare(work, name, folder), together=len(TEXTS))
        try:
            align(worker.pipeline)
            for denoiser in worker.pipeline._dit_modules or UNETS:
                model = getattr(worker.pipeline, denoiser, None)
                if model is not None:
                    model.register_forward_pre_hook(count)
            with small_areas(worker.pipeline):
                seed_each(worker.pipeline)
                alone = [results(found) for number in (0, 1) for found in run(worker, name, [number])]
                one_by_one, calls = calls, 0
                both = [results(found) for found in run(worker, name, [0, 1])]
        finally:
            worker.close()
    relative = max(apart(expected, found) for expected, found in zip(alone, both, strict=True))
    entry: dict[str, Any] = {"relative": relative, "calls": [one_by_one, calls]}
    if calls >= one_by_one and not relative:
        entry["error"] = "a request brings more than texts: each is a call of its own"
    return entry


def run(worker: Any, name: str, numbers: list[int]) -> list[Any]:
    """What some requests get, scheduled together.

    Raises:
        RuntimeError: a request failed.
    """
    from vllm_omni.diffusion.sched.request_scheduler import RequestScheduler

    from porter.omni.side import engine_params
    from porter.parity import checkpoint
    from porter.parity.request import to_request

    scheduler: Any = RequestScheduler()
    scheduler.initialize(worker.config)
    made = []
    for number in numbers:
        call = {**checkpoint.load_inputs(name), "prompt": TEXTS[number]}
        call["generator"] = torch.Generator().manual_seed(number)
        prompt, params = to_request(call)
        made.append(worker.request(prompt, engine_params(params)))
        scheduler.add_request(made[-1])
    found: dict[str, Any] = {}
    while scheduler.has_requests():
        scheduled = scheduler.schedule()
        if not scheduled.scheduled_request_ids:
            break
        output = worker.run_scheduled(scheduled)
        for request_id in scheduled.scheduled_request_ids:
            result = output.get_request_output(request_id).result
            if result.error is not None:
                raise RuntimeError(f"a request failed: {result.error}")
            found[request_id] = result.output
        scheduler.update_from_output(scheduled, output)
    return [found[request.request_id] for request in made]
