"""FLASH_ATTN: flash-attn 3 on Hopper where it is installed, flash-attn 2 elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from porter.runtime.diffusion.attention.backends.abstract import AttentionBackend, AttentionImpl, AttentionMetadata

_HALF = (torch.float16, torch.bfloat16)
_FLASH_3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")


@cache
def _find_kernel(major: int) -> tuple[Callable[..., Any] | None, str]:
    """The kernel for a device of compute capability ``major``, and its name or what was tried."""
    modules = (*_FLASH_3_MODULES, "flash_attn") if major == 9 else ("flash_attn",)
    tried = []
    for module in modules:
        try:
            return importlib.import_module(module).flash_attn_func, module
        # A kernel package built for another torch fails with whatever its loader raises.
        except Exception as error:
            tried.append(f"{module}: {type(error).__name__}: {error}")
    return None, "; ".join(tried)


class FlashAttentionBackend(AttentionBackend):
    """flash-attn 2 or 3."""

    @staticmethod
    def get_name() -> str:
        return "FLASH_ATTN"

    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        return FlashAttentionImpl

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size <= 256 and head_size % 8 == 0

    @classmethod
    def why_unavailable(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"it needs a CUDA device, and the model is on {device.type}"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"it needs compute capability 8.0, and the device has {major}.{minor}"
        if dtype not in _HALF:
            return f"it computes in float16 or bfloat16, and the model is in {dtype}"
        kernel, note = _find_kernel(major)
        if kernel is None:
            return f"no flash-attn package can be imported ({note})"
        return super().why_unavailable(head_size, dtype, device)


class FlashAttentionImpl(AttentionImpl):
    """Attention by flash-attn; no mask."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from porter.runtime.diffusion.distributed.utils import get_local_device

        self._kernel, _ = _find_kernel(torch.cuda.get_device_capability(get_local_device())[0])

    def refusal(self, query: torch.Tensor, key: torch.Tensor, attn_metadata: AttentionMetadata | None) -> str | None:
        if attn_metadata is not None and attn_metadata.attn_mask is not None:
            return "it takes no attn_mask"
        if query.dtype not in _HALF:
            return f"it computes in float16 or bfloat16, not in {query.dtype}"
        # PyTorch aligns a causal mask with the first key, flash-attn with the last: the same only for equal lengths.
        if self.causal and query.shape[1] != key.shape[1]:
            return "its causal mask differs from PyTorch's when query and key lengths differ"
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
        output = self._kernel(query, key, value, softmax_scale=self.softmax_scale, causal=self.causal)
        # flash-attn 3 also returns the log-sum-exp, depending on its version.
        return output[0] if isinstance(output, tuple) else output
