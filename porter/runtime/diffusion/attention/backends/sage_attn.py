"""SAGE_ATTN: SageAttention's quantised kernels. Never chosen automatically: results differ visibly."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from porter.runtime.diffusion.attention.backends.abstract import AttentionBackend, AttentionImpl, AttentionMetadata

_HALF = (torch.float16, torch.bfloat16)


@cache
def _find_kernel() -> tuple[Callable[..., torch.Tensor] | None, str]:
    try:
        return importlib.import_module("sageattention").sageattn, "sageattention"
    # As with flash-attn: a package built for another torch fails in its own way.
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


class SageAttentionBackend(AttentionBackend):
    """SageAttention 1 or 2."""

    @staticmethod
    def get_name() -> str:
        return "SAGE_ATTN"

    @staticmethod
    def get_impl_cls() -> type[SageAttentionImpl]:
        return SageAttentionImpl

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size in (64, 96, 128)

    @classmethod
    def why_unavailable(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"it needs a CUDA device, and the model is on {device.type}"
        if dtype not in _HALF:
            return f"it computes in float16 or bfloat16, and the model is in {dtype}"
        kernel, note = _find_kernel()
        if kernel is None:
            return f"the package sageattention cannot be imported ({note})"
        return super().why_unavailable(head_size, dtype, device)


class SageAttentionImpl(AttentionImpl):
    """Attention by SageAttention; no mask."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kernel, _ = _find_kernel()

    def refusal(self, query: torch.Tensor, key: torch.Tensor, attn_metadata: AttentionMetadata | None) -> str | None:
        if attn_metadata is not None and attn_metadata.attn_mask is not None:
            return "it takes no attn_mask"
        if query.dtype not in _HALF:
            return f"it computes in float16 or bfloat16, not in {query.dtype}"
        if self.causal and query.shape[1] != key.shape[1]:
            return "its causal mask is defined for equal query and key lengths only"
        return None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_metadata: AttentionMetadata | None = None,
    ) -> torch.Tensor:
        """Attention over ``[B, S, H, D]`` half-precision CUDA tensors."""
        assert self._kernel is not None
        return self._kernel(query, key, value, tensor_layout="NHD", is_causal=self.causal, sm_scale=self.softmax_scale)
