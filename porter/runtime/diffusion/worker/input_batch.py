"""The requests of one denoising step, with the names of vllm-omni's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from porter.runtime.diffusion.worker.utils import StepRequestState


@dataclass
class InputBatch:
    """Requests that take a step together; a port reads what it needs off their states."""

    states: Sequence[StepRequestState]

    @property
    def request_ids(self) -> list[str]:
        return [state.request_id for state in self.states]

    @classmethod
    def make_batch(cls, states: Sequence[StepRequestState]) -> InputBatch:
        """A batch of these requests."""
        return cls(tuple(states))
