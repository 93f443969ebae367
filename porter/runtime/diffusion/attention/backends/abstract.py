"""What an attention backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class AttentionMetadata:
    """What a call passes beside query, key and value.

    Attributes:
        attn_mask: bool ``[B, S_kv]`` (True: attend), or anything that broadcasts to ``[B, H, S_q, S_kv]``: bool, or
            floating and added to the scores.
        joint_attn_mask, joint_query, joint_key, joint_value, joint_strategy: replicated text tokens under sequence
            parallelism. In one process the caller concatenates them itself; passing them is an error.
        extra: parameters for one backend; backends ignore keys that they do not know.
    """

    attn_mask: torch.Tensor | None = None
    joint_attn_mask: torch.Tensor | None = None
    joint_query: torch.Tensor | None = None
    joint_key: torch.Tensor | None = None
    joint_value: torch.Tensor | None = None
    joint_strategy: str = "front"
    extra: dict[str, Any] = field(default_factory=dict)


class AttentionImpl(ABC):
    """One layer's attention function. Not a module: it holds no parameters."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        softmax_scale: float | None,
        causal: bool = False,
        num_kv_heads: int | None = None,
        prefix: str = "",
        **extra_impl_args: Any,
    ) -> None:
        del extra_impl_args
        self.num_heads = num_heads
        self.head_size = head_size
        self.softmax_scale = softmax_scale
        self.causal = causal
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.prefix = prefix

    def refusal(self, query: torch.Tensor, key: torch.Tensor, attn_metadata: AttentionMetadata | None) -> str | None:
        """Why this call cannot run here, or None. It may look at shapes and dtypes, never at values."""
        del query, key, attn_metadata
        return None

    @abstractmethod
    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_metadata: AttentionMetadata | None = None,
    ) -> torch.Tensor:
        """Attention over ``[B, S, H, D]`` tensors; the result has the query's shape."""


class AttentionBackend(ABC):
    """A family of kernels, chosen by name."""

    @staticmethod
    @abstractmethod
    def get_name() -> str:
        """The name by which the backend is chosen."""

    @staticmethod
    @abstractmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """The class that a layer instantiates."""

    @classmethod
    def supports_attention_mask(cls, attention_spec: object | None = None) -> bool:
        """Whether a call may carry ``attn_mask``."""
        del attention_spec
        return False

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        """Whether heads of this size are possible."""
        del head_size
        return True

    @classmethod
    def why_unavailable(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why the backend cannot serve such a layer on this machine, or None if it can."""
        del dtype, device
        return None if cls.supports_head_size(head_size) else f"it does not support head size {head_size}"
