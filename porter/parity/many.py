"""Compares many pipelines, several side by side."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from porter import cores
from porter.parity.beside import LOST
from porter.parity.results import ParityReport
from porter.parity.sides import rejection
from porter.workers import end_with_parent

T = TypeVar("T")


def each(work: Callable[[str], T], names: Sequence[str], jobs: int) -> Iterator[tuple[str, T | Exception]]:
    """What ``work`` returned for each name, or the exception that it raised, as they come.

    Args:
        work: what to run in the processes; it and what it returns are pickled.
        names: of pipelines.
        jobs: number of processes; with one, the work is done here. What was under way when one of them was killed is
            done again, one after the other.
    """
    if jobs == 1 or len(names) < 2:
        yield from ((name, _attempt(work, name)) for name in names)
        return
    left = list(names)
    jobs = min(jobs, len(left))
    while left:
        lost = []
        # Processes start afresh: a fork would copy the locks of threads that torch or a progress bar may have started.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(jobs,)) as pool:
            futures = {pool.submit(_attempt, work, name): name for name in left}
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except BrokenProcessPool:
                    lost.append(futures[future])
        left = [name for name in left if name in lost]
        if left and jobs == 1:  # they are done in order: it was the first that ended the process
            yield left.pop(0), RuntimeError(LOST)
        jobs = 1


def compare_many(
    names: Sequence[str], jobs: int = 1, progress: Callable[[ParityReport], None] | None = None, **options: Any
) -> list[ParityReport]:
    """Reports on pipelines, in the order of ``names``; what :func:`run_parity` raises on one is its verdict.

    Args:
        names: of pipelines.
        jobs: number of processes.
        progress: called with each report as it comes.
        **options: of :func:`run_parity`.
    """
    found: dict[str, ParityReport] = {}
    for name, outcome in each(functools.partial(_compare, options=options), names, jobs):
        if isinstance(outcome, Exception):
            reason = f"{type(outcome).__name__}: {rejection(outcome)}"
            outcome = ParityReport(pipeline=name, verdict="does not run", reason=reason)
        found[name] = outcome
        if progress is not None:
            progress(outcome)
    return [found[name] for name in names]


def _compare(name: str, options: dict[str, Any]) -> ParityReport:
    from porter.parity.run import run_parity

    return run_parity(name, **options)


def _attempt(work: Callable[[str], T], name: str) -> T | Exception:
    """Whatever goes wrong concerns this pipeline alone; the others go on."""
    try:
        return work(name)
    except Exception as error:  # noqa: BLE001
        return error


def _start(jobs: int) -> None:
    """Load what every comparison needs, once."""
    from porter.cli.common import hush_libraries, hush_warnings
    from porter.parity.imports import uncollected

    end_with_parent()
    cores.share(jobs)
    with uncollected():
        hush_libraries()
    hush_warnings()
