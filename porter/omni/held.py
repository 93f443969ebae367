"""What requests hold over their steps in vLLM-Omni's worker: how often it is used, and that it changes nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from porter.omni.turns import apart, prepare, request, results
from porter.parity.held import held_by_requests, hoisting

# Steps, where the small call has too few for a second use.
COUNT = 6


def held(work: Path, name: str) -> dict[str, Any]:
    """The largest relative difference between a request that holds results and one that computes all in each step.

    Raises:
        ValueError: nothing is held and used again in the tiny configuration, which says nothing about others.
    """
    from porter.omni.worker import OneWorker
    from porter.parity.areas import small_areas
    from porter.parity.sides import align

    with tempfile.TemporaryDirectory() as folder:
        worker = OneWorker(prepare(work, name, folder))
        try:
            align(worker.pipeline)
            with small_areas(worker.pipeline):
                entry = compared(worker, name, 0)
                return entry if entry["used"] else compared(worker, name, COUNT)
        finally:
            worker.close()


def compared(worker: Any, name: str, count: int) -> dict[str, Any]:
    """One request both ways; ``count`` of steps, 0 for as many as the small call of the pipeline has."""

    def run(limit: str | None) -> tuple[dict[str, Any], list[Any]]:
        with held_by_requests(worker.pipeline) as made, hoisting(limit):
            return results(worker.run(*request(name, worker, 0, count))[0]), made

    (expected, none), (found, made) = run("0"), run(None)
    used = sum(invariants.hits for invariants in made)
    if none:
        raise RuntimeError("results are held though it is switched off")
    if count and not used:
        raise ValueError("nothing was held and used again")
    return {
        "relative": apart(expected, found),
        "held": sum(invariants.results for invariants in made),
        "used": used,
        "bytes": sum(invariants.nbytes for invariants in made),
    }
