"""vLLM-Omni's sequence-parallel group, of which this process is all there is."""

from __future__ import annotations


def get_sequence_parallel_world_size() -> int:
    """1: this runtime has one process."""
    return 1


def get_sequence_parallel_rank() -> int:
    """0."""
    return 0
