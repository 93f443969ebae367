"""What a sequence-parallel plan says; with one process there is nothing to divide, and nothing reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SequenceParallelInput:
    """A tensor that goes into a module (or comes out of it, ``split_output``) and is divided along ``split_dim``."""

    split_dim: int
    expected_dims: int | None = None
    split_output: bool = False
    auto_pad: bool = False
    shard_group: str | None = None


@dataclass(frozen=True)
class SequenceParallelOutput:
    """A tensor that comes out of a module and is put together along ``gather_dim``."""

    gather_dim: int
    expected_dims: int | None = None
    shard_group: str | None = None
