"""What the engine expects of a model's class besides what a port says itself."""

from __future__ import annotations

from typing import Any

from porter.omni.card import Card
from porter.omni.warm_up import survive


def adapt(cls: Any, card: Card) -> Any:
    """The class of a port, told what comes out of it, and with a warm-up that may be refused."""
    if card.kind == "audio" and not hasattr(cls, "support_audio_output"):
        cls.support_audio_output = True
    survive(cls)
    return cls
