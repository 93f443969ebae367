"""Ports in vLLM-Omni's worker with Cache-DiT: how often their blocks run, and what that changes."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from porter.omni.turns import apart, prepare, request, results
from porter.parity import spec as specs

COUNT = 6
# How models call the number of their blocks.
COUNTED = re.compile(r"(\w+_)?num(_\w+)?_(layers|blocks)|depth(_\w+)?")
IDLE = {"max_warmup_steps": 1000}
EAGER = {"max_warmup_steps": 2, "residual_diff_threshold": 1e9, "max_continuous_cached_steps": -1}


def cached(work: Path, name: str) -> dict[str, Any]:
    """The largest relative difference under an idle cache, and the calls of blocks: without, idle, skipping."""
    [*deep, last] = deeper_models(work, name)
    for configs in deep:
        with contextlib.suppress(Exception):  # a number of layers that something else must agree with
            return compared(work, name, configs)
    return compared(work, name, last)


def compared(work: Path, name: str, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """As :func:`cached`, with these settings of models."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = prepare(work, name, folder, configs)
        (plain, calls), (idle, idle_calls), (skipping, fewer) = (
            run(checkpoint, name, cache) for cache in (None, IDLE, EAGER)
        )
    return {
        "relative": apart(plain, idle),
        "blocks": [calls, idle_calls, fewer],
        "relative_when_skipping": apart(plain, skipping),
    }


def deeper_models(work: Path, name: str) -> list[dict[str, dict[str, Any]]]:
    """Settings that give a tiny pipeline's models several blocks of each kind: a list's first is never skipped.

    All kinds first; then, since a setting may be called so and count something else, all but one.
    """
    files = specs.read(name).files
    found = {}
    for component in denoisers(work, name):
        if f"{component}/config.json" in files:
            config = json.loads(files[f"{component}/config.json"])
            found[component] = {key: value for key, value in deeper(config).items() if value != config[key]}
    single = [(component, key) for component, values in found.items() for key in values]
    fewer = [
        {part: {k: v for k, v in values.items() if (part, k) != left} for part, values in found.items()}
        for left in single
    ]
    return [found, *fewer, {}] if single else [{}]


def denoisers(work: Path, name: str) -> list[str]:
    """The components of a port that have blocks, as its class says."""
    pattern = re.compile(rf"^class {name}\(.*?_dit_modules[^=]*= (\[.*?\])", re.MULTILINE | re.DOTALL)
    for file in (work / "ports").glob("*/pipeline_*.py"):
        said = pattern.search(file.read_text("utf-8"))
        if said:
            return list(json.loads(said[1]))
    return []


def deeper(config: dict[str, Any], depth: int = 3) -> dict[str, Any]:
    """A model's configuration with ``depth`` blocks at least of each kind that it has."""
    counts = {key: value for key, value in config.items() if COUNTED.fullmatch(key) and type(value) is int and value}
    return config | {key: max(value, depth) for key, value in counts.items()}


def run(checkpoint: Path, name: str, cache: dict[str, Any] | None) -> tuple[dict[str, torch.Tensor], int]:
    """One request of several steps: its results, and how often a block that may be cached ran."""
    from porter.omni.worker import OneWorker
    from porter.parity.areas import small_areas
    from porter.parity.sides import align

    worker = OneWorker(checkpoint, cache=cache)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    try:
        align(worker.pipeline)
        for dit in worker.pipeline._dit_modules:
            model = getattr(worker.pipeline, dit)
            for attribute in model._cache_dit_adapter_config.block_forward_patterns if model is not None else ():
                for block in getattr(model, attribute):
                    block.register_forward_pre_hook(count)
        prompt, params = request(name, worker, 0, COUNT)
        with small_areas(worker.pipeline):
            raw, _ = worker.run(prompt, params)
        return results(raw), calls
    finally:
        worker.close()
