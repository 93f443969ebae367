"""What requests hold over their steps in vLLM-Omni's worker: how often it is used, and that it changes nothing."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from porter.omni.turns import apart, prepare, request, results
from porter.parity.relations import HOISTING


def held(work: Path, name: str) -> dict[str, Any]:
    """The largest relative difference between a request that holds results and one that computes all in each step."""
    from porter.omni.worker import OneWorker
    from porter.parity.sides import align, small_areas

    with tempfile.TemporaryDirectory() as folder:
        worker = OneWorker(prepare(work, name, folder))
        try:
            align(worker.pipeline)
            with small_areas(worker.pipeline), recorded(worker.pipeline) as made:
                with switched("0"):
                    expected = results(worker.run(*request(name, worker, 0))[0])
                if made:
                    return {"error": "results are held where that is switched off"}
                with switched(""):
                    found = results(worker.run(*request(name, worker, 0))[0])
        finally:
            worker.close()
    return {
        "relative": apart(expected, found),
        "held": sum(invariants.results for invariants in made),
        "used": sum(invariants.hits for invariants in made),
        "bytes": sum(invariants.nbytes for invariants in made),
    }


@contextmanager
def recorded(pipeline: Any) -> Iterator[list[Any]]:
    """The stores of results that requests of a pipeline are given meanwhile."""
    module: Any = sys.modules[f"{type(pipeline).__module__.rpartition('.')[0]}.stepwise"]
    original, made = module.Invariants, []

    def record(*args: Any) -> Any:
        made.append(original(*args))
        return made[-1]

    module.Invariants = record
    try:
        yield made
    finally:
        module.Invariants = original


@contextmanager
def switched(value: str) -> Iterator[None]:
    """The environment's word on how much requests may hold; empty: the default."""
    before = os.environ.get(HOISTING)
    os.environ[HOISTING] = value
    try:
        yield
    finally:
        os.environ.pop(HOISTING)
        if before is not None:
            os.environ[HOISTING] = before
