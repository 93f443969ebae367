"""Ports in vLLM-Omni's worker with Cache-DiT: how often their blocks run, and what that changes."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from porter.omni.turns import STEPS, apart, prepare, request, results
from porter.parity import spec as specs

COUNT = 6
# How models call the number of their blocks.
COUNTED = re.compile(r"num(_\w+)?_(layers|blocks)|depth(_\w+)?")
IDLE = {"max_warmup_steps": 1000}
EAGER = {"max_warmup_steps": 2, "residual_diff_threshold": 1e9, "max_continuous_cached_steps": -1}


def cached(work: Path, name: str) -> dict[str, Any]:
    """The largest relative difference under an idle cache, and the calls of blocks: without, idle, skipping."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = prepare(work, name, folder, deeper(name))
        (plain, calls), (idle, idle_calls), (skipping, fewer) = (
            run(checkpoint, name, cache) for cache in (None, IDLE, EAGER)
        )
    return {
        "relative": apart(plain, idle),
        "blocks": [calls, idle_calls, fewer],
        "relative_when_skipping": apart(plain, skipping),
    }


def deeper(name: str) -> dict[str, dict[str, Any]]:
    """Settings that give a tiny model several blocks of each kind: the first block of a list is never skipped."""
    files = specs.read(name).files
    found = {}
    for component in ("transformer", "transformer_2", "prior"):
        if f"{component}/config.json" in files:
            config = json.loads(files[f"{component}/config.json"])
            counts = {key: value for key, value in config.items() if COUNTED.fullmatch(key) and isinstance(value, int)}
            found[component] = {key: max(value, 3) for key, value in counts.items() if value}
    return found


def run(checkpoint: Path, name: str, cache: dict[str, Any] | None) -> tuple[dict[str, torch.Tensor], int]:
    """One request of several steps: its results, and how often a block that may be cached ran."""
    from porter.omni.worker import OneWorker
    from porter.parity.sides import align, small_areas

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
        prompt, params = request(name, worker, 0)
        for step in STEPS:
            if hasattr(params, step):
                setattr(params, step, COUNT)
        with small_areas(worker.pipeline):
            raw, _ = worker.run(prompt, params)
        return results(raw), calls
    finally:
        worker.close()
