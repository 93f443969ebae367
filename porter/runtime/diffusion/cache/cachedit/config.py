"""How Cache-DiT wraps a model's blocks: what a port declares for the engine. Nothing is cached in this runtime."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ForwardPattern(Enum):
    """Which states a block takes and returns, and in which order (``cache_dit.ForwardPattern``)."""

    Pattern_0 = "hidden and encoder states in; hidden and encoder states out"
    Pattern_1 = "hidden and encoder states in; encoder and hidden states out"
    Pattern_2 = "hidden and encoder states in; hidden states out"
    Pattern_3 = "hidden states in and out"
    Pattern_4 = "hidden states in; hidden and encoder states out"
    Pattern_5 = "hidden states in; encoder and hidden states out"


@dataclass
class CacheDiTAdapterConfig:
    """Attributes of a model that hold its blocks, with the pattern of each, and how guidance calls the model."""

    block_forward_patterns: dict[str, ForwardPattern]
    has_separate_cfg: bool = False
    cached_adapter_cls: type | None = None
    check_forward_pattern: bool = True
