"""vLLM's tensor-parallel group, of which this process is all there is."""

from __future__ import annotations

import torch


def get_tensor_model_parallel_world_size() -> int:
    """1: this runtime has one process."""
    return 1


def get_tensor_model_parallel_rank() -> int:
    """0."""
    return 0


def tensor_model_parallel_all_gather(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The parts of all ranks, joined along ``dim``: the one that there is."""
    return input_


def tensor_model_parallel_all_reduce(input_: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks: what there is."""
    return input_
