"""What a port's requests hold over their steps: how much they may, and what they were given to hold it in."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

# The variable that says how much a port's request may hold for its steps.
HOISTING = "PORTER_HOISTING"


@contextlib.contextmanager
def hoisting(limit: str | None) -> Iterator[None]:
    """The word of the environment on how much a request may hold, for the block; None: the default."""
    before = os.environ.pop(HOISTING, None)
    if limit is not None:
        os.environ[HOISTING] = limit
    try:
        yield
    finally:
        os.environ.pop(HOISTING, None)
        if before is not None:
            os.environ[HOISTING] = before


@contextlib.contextmanager
def held_by_requests(pipeline: Any, limit: int | None = None) -> Iterator[list[Any]]:
    """The ``Invariants`` that requests of a ported pipeline are given in the block; none if it has no such thing.

    Args:
        pipeline: the port.
        limit: bytes that each may hold; None: as many as it says itself.
    """
    module, made = _stepwise(pipeline), list[Any]()
    if not can_hold(pipeline):
        yield made
        return
    original = module.Invariants

    def noted(*args: Any) -> Any:
        invariants = original(*args)
        if limit is not None:
            invariants.limit = limit
        made.append(invariants)
        return invariants

    module.Invariants = noted
    try:
        yield made
    finally:
        module.Invariants = original


def can_hold(pipeline: Any) -> bool:
    """Whether requests of a ported pipeline can hold anything."""
    return hasattr(_stepwise(pipeline), "Invariants")


def _stepwise(pipeline: Any) -> Any:
    return sys.modules.get(f"{type(pipeline).__module__.rpartition('.')[0]}.stepwise")
