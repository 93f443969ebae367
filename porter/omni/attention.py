"""Scaled dot-product attention on the CPU."""

from __future__ import annotations

import torch
from vllm_omni.diffusion.attention.backends.abstract import AttentionMetadata
from vllm_omni.diffusion.attention.backends.sdpa import SDPABackend, SDPAImpl


class CpuSDPAImpl(SDPAImpl):
    """``AttentionImpl.forward`` chooses by platform and has no branch for a CPU."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_metadata: AttentionMetadata | None = None,
    ) -> torch.Tensor:
        """Attention over ``[batch, sequence, heads, head size]``, in and out."""
        return self._forward_impl(query, key, value, attn_metadata)


class CpuSDPABackend(SDPABackend):
    """The backend that the CPU platform returns, whatever was selected by default."""

    @staticmethod
    def get_impl_cls() -> type[SDPAImpl]:
        """The implementation."""
        return CpuSDPAImpl


def run_on_cpu() -> None:
    """Let models that make the implementation themselves, past the platform's choice, run too."""
    SDPAImpl.forward = CpuSDPAImpl.forward
