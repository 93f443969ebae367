"""Loads what is large without the garbage collector looking at it again and again."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

# Modules that a block must have imported for its objects to be put aside: what dies between two pipelines must not be.
_MANY = 300


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No collections in the block; if it imported much, what was made so far is left out of later ones.

    Importing torch, transformers and diffusers makes a million objects that stay. A collection every few hundred of
    them takes a sixth of the time, and finds nothing.
    """
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - before > _MANY:
            gc.freeze()
        if enabled:
            gc.enable()
