"""vLLM-Omni's groups of ranks, of which this process is all there is."""

from __future__ import annotations

from typing import NoReturn


def get_sequence_parallel_world_size() -> int:
    """1: this runtime has one process."""
    return 1


def get_sequence_parallel_rank() -> int:
    """0."""
    return 0


def get_classifier_free_guidance_rank() -> int:
    """0."""
    return 0


def get_cfg_group() -> NoReturn:
    """The ranks that share guidance: there are none to talk to.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("porter.runtime is one process: there is no group of ranks for guidance")
