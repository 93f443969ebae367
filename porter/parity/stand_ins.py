"""Components that stand in for what cannot be had for a tiny checkpoint.

A spec names them in its ``model_index.json`` like any other component, so both sides load the same one and it is plain
to see where a comparison does without the real thing.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class ApprovingSafetyChecker(ModelMixin, ConfigMixin):
    """A checker of prompts and frames, called as ``cosmos_guardrail.CosmosSafetyChecker`` is, that lets all pass.

    The real one needs gated weights of several models.
    """

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))

    def check_text_safety(self, prompt: str) -> bool:
        """Whether a prompt may be used."""
        return True

    def check_video_safety(self, frames: Any) -> Any:
        """The frames that may be shown, as they came: (frames, height, width, channels) in [0, 255]."""
        return frames
