"""Pipelines of ports in vLLM-Omni's worker: whole, step by step with others, and guided on two ranks."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch

STEPS = ("num_inference_steps", "prior_num_inference_steps")
SCALES = ("guidance_scale", "true_cfg_scale")


def alone(work: Path, name: str) -> dict[str, Any]:
    """A request whole, and two requests in turns: how far apart, and how many steps they shared."""
    from porter.omni.stepwise import run_interleaved
    from porter.omni.worker import OneWorker
    from porter.parity.areas import small_areas
    from porter.parity.sides import align

    entry: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = prepare(work, name, folder)
        worker = OneWorker(checkpoint)
        try:
            align(worker.pipeline)
            with small_areas(worker.pipeline):
                wholes = [results(worker.run(*request(name, worker, number))[0]) for number in (0, 1)]
            torch.save(wholes[0], work / f"{name}.pt")
            stepwise = bool(getattr(worker.pipeline, "supports_step_execution", False))
        finally:
            worker.close()
        if stepwise:
            worker = OneWorker(checkpoint, step_execution=2)
            try:
                align(worker.pipeline)
                with small_areas(worker.pipeline):
                    requests = [request(name, worker, number) for number in (0, 1)]
                    seed_each(worker.pipeline)
                    found, turns = run_interleaved(worker, requests)
                entry["relative"] = max(apart(a, results(b)) for a, b in zip(wholes, found))
                entry["steps_shared"] = sum(len(turn) > 1 for turn in turns)
            finally:
                worker.close()
    return entry


def shared(work: Path, name: str, rank: int, port: int) -> dict[str, Any]:
    """The request whose result one rank left, with a rank for each branch of its guidance."""
    from porter.omni.ranks import Traffic
    from porter.omni.worker import OneWorker
    from porter.parity.areas import small_areas
    from porter.parity.sides import align

    held = work / f"{name}.pt"
    if not held.is_file():
        return {"error": "did not run on one rank"}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = prepare(work, name, folder)
        worker = OneWorker(checkpoint, rank=rank, parallel={"cfg_parallel_size": 2}, port=port)
        try:
            align(worker.pipeline)
            traffic = Traffic()
            with small_areas(worker.pipeline):
                found = results(worker.run(*request(name, worker, 0))[0])
            return {"relative": apart(torch.load(held), found), "collectives": dict(traffic.calls)}
        finally:
            worker.close()


def prepare(work: Path, name: str, folder: str, configs: dict[str, dict[str, Any]] | None = None) -> Path:
    """The tiny checkpoint of a pipeline, its port registered; ``configs`` as for ``checkpoint.build``."""
    from porter.omni.plugin import use_port
    from porter.parity import checkpoint

    use_port(name, work / "ports")
    return checkpoint.build(name, folder, configs=configs)


def request(name: str, worker: Any, number: int, count: int = 0) -> tuple[Any, Any]:
    """The small call of a pipeline as a request, guided; the second takes a step more and draws other noise.

    Args:
        name: of the pipeline.
        worker: that is to run it.
        number: 0 or 1.
        count: of steps; 0: as in the call.
    """
    import inspect

    from porter.omni.side import engine_params
    from porter.parity import checkpoint
    from porter.parity.request import to_request

    pipeline = type(worker.pipeline)
    takes = inspect.signature(getattr(pipeline, "prepare_encode", pipeline.forward)).parameters
    call = checkpoint.load_inputs(name)
    steps = {step: (count or call[step]) + number for step in STEPS if step in call}
    call |= with_steps(takes, steps) if number or count else {}
    for scale in SCALES:
        if scale in takes:
            call[scale] = 3.5
    if "negative_prompt" in takes and isinstance(call.get("prompt"), str) and "negative_prompt_embeds" not in call:
        call["negative_prompt"] = "a dog"
    if isinstance(call.get("generator"), torch.Generator):
        call["generator"] = torch.Generator().manual_seed(number)
    torch.manual_seed(number)
    prompt, params = to_request(call)
    made = engine_params(params)
    if "num_inference_steps" not in takes and made.num_inference_steps is None:
        made.num_inference_steps = 1  # the engine's scheduler wants a number, also where the checkpoint says how many
    return prompt, made


def with_steps(takes: Any, steps: dict[str, int]) -> dict[str, Any]:
    """Arguments for another number of steps: without the timesteps that a pipeline has for its default number.

    Args:
        takes: parameters of the pipeline, by name.
        steps: numbers, by parameter.
    """
    stated = [name for name in takes if name.endswith("timesteps") and not name.startswith(("max_", "min_", "num_"))]
    return steps | {name: None for name in stated if isinstance(takes[name].default, (int, float, list, tuple))}


def seed_each(pipeline: Any) -> None:
    """Let what two requests draw without a generator be what they draw alone, each time that they come."""
    prepare, numbers = pipeline.prepare_encode, itertools.cycle((0, 1))

    def seeded(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(next(numbers))
        return prepare(*args, **kwargs)

    pipeline.prepare_encode = seeded


def results(output: Any) -> dict[str, torch.Tensor]:
    """The arrays of an output, by where they stand in it: tensors, or numpy's where a port makes pictures itself."""
    import numpy as np

    from porter.parity.flatten import flatten

    found = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in flatten(output).items()}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def apart(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """The largest difference, as a part of the expected values' scale.

    Raises:
        ValueError: they hold different things, or nothing.
    """
    if not expected or {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in found.items()}:
        raise ValueError("the results have different shapes")
    worst = 0.0
    for name, value in expected.items():
        if value.numel():
            scale = max(float(value.double().abs().max()), 1e-30)
            worst = max(worst, float((found[name].double() - value.double()).abs().max()) / scale)
    return worst
