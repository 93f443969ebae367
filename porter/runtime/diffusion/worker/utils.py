"""State of a request that is run step by step, with the names of vllm-omni's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from porter.runtime.inputs.data import OmniDiffusionSamplingParams, OmniPromptType


@dataclass
class StepRequestState:
    """What a request carries from ``prepare_encode`` through its steps to ``post_decode``.

    Attributes:
        latents: what the steps denoise, batch first.
        timesteps: one entry a step.
        step_index: the next step.
        scheduler: the request's own.
        extra: whatever else the pipeline needs later, by name.
    """

    request_id: str
    sampling: OmniDiffusionSamplingParams
    prompt: OmniPromptType | None = None
    latents: torch.Tensor | None = None
    timesteps: Any = None
    step_index: int = 0
    scheduler: Any = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        """The number of steps; 0 before the request is prepared."""
        return 0 if self.timesteps is None else len(self.timesteps)

    @property
    def denoise_completed(self) -> bool:
        """Whether all steps are done."""
        return 0 < self.total_steps <= self.step_index
