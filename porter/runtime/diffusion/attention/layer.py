"""The attention layer that ports call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from porter.runtime.diffusion.attention.backends.abstract import AttentionImpl, AttentionMetadata
from porter.runtime.diffusion.attention.backends.sdpa import SDPAImpl
from porter.runtime.diffusion.attention.selector import get_attn_backend_for_role
from porter.runtime.diffusion.config import get_current_diffusion_config_or_none
from porter.runtime.errors import ConfigError


class Attention(nn.Module):
    """Scaled dot-product attention by the backend that the current config names, or by the best one that can run.

    Args:
        num_heads, head_size: of the query.
        causal: mask out later keys.
        softmax_scale: factor on the scores; None means ``1 / sqrt(head_size)``, computed by the kernel.
        num_kv_heads: heads of key and value; fewer than ``num_heads`` means grouped-query attention.
        prefix: name of the layer in its model.
        role, role_category: which per-role backend applies.
        custom_attention: a module ``(query, key, value, attn_metadata)`` to use in place of any backend.
        impl_overrides: subclasses of a backend's implementation, by backend name.
        qkv_layout, scatter_idx, gather_idx, use_sync, skip_sequence_parallel, disable_kv_quant, allow_fp32_fallback:
            accepted for vllm-omni's sake; they mean nothing in one process.

    Raises:
        ConfigError: the chosen backend cannot run, or paged key/value caches are asked for.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        causal: bool,
        softmax_scale: float | None,
        num_kv_heads: int | None = None,
        prefix: str = "",
        role: str = "self",
        role_category: str | None = None,
        qkv_layout: str | None = None,
        scatter_idx: int = 2,
        gather_idx: int = 1,
        use_sync: bool = False,
        skip_sequence_parallel: bool = False,
        disable_kv_quant: bool = False,
        paged_kv_cache_role: str | None = None,
        paged_kv_cache_dtype: torch.dtype | None = None,
        custom_attention: nn.Module | None = None,
        allow_fp32_fallback: bool = False,
        impl_overrides: Mapping[str, type[AttentionImpl]] | None = None,
    ) -> None:
        super().__init__()
        del scatter_idx, gather_idx, use_sync, skip_sequence_parallel, disable_kv_quant, allow_fp32_fallback
        del paged_kv_cache_dtype, qkv_layout
        if paged_kv_cache_role is not None:
            raise ConfigError("paged key/value caches are not available in porter.runtime")
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.head_size = head_size
        self.causal = causal
        self.softmax_scale = softmax_scale
        self.prefix = prefix
        self.role = role
        self.role_category = role_category
        self.custom_attention = custom_attention
        self.backend_name: str | None = None
        self.backend_explicit = False
        if custom_attention is not None:
            return

        config = get_current_diffusion_config_or_none()
        attention_config = config.diffusion_attention_config if config is not None else None
        backend, spec = get_attn_backend_for_role(role, head_size, attention_config, role_category)
        self.backend_name = backend.get_name()
        self.backend_explicit = spec is not None
        impl_cls = (impl_overrides or {}).get(self.backend_name, backend.get_impl_cls())
        if not issubclass(impl_cls, backend.get_impl_cls()):
            raise TypeError(f"{impl_cls.__name__} does not derive from {backend.get_impl_cls().__name__}")
        arguments: dict[str, Any] = {
            "num_heads": num_heads,
            "head_size": head_size,
            "softmax_scale": softmax_scale,
            "causal": causal,
            "num_kv_heads": num_kv_heads,
            "prefix": prefix,
        }
        self.attention: AttentionImpl = impl_cls(**arguments)
        self.sdpa_fallback: AttentionImpl = SDPAImpl(**arguments)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_metadata: AttentionMetadata | None = None,
    ) -> torch.Tensor:
        """Attention of ``query`` ``[B, S_q, H, D]`` over ``key`` and ``value`` ``[B, S_kv, H_kv, D]``.

        Which function runs depends on Python values, shapes and dtypes alone, so the call compiles into one graph.

        Raises:
            ValueError: the explicitly chosen backend cannot take this call (a mask, say), or joint tensors are given.
        """
        if self.custom_attention is not None:
            return self.custom_attention(query, key, value, attn_metadata)
        if attn_metadata is not None and (
            attn_metadata.joint_query is not None
            or attn_metadata.joint_key is not None
            or attn_metadata.joint_value is not None
            or attn_metadata.joint_attn_mask is not None
        ):
            raise ValueError("joint tensors belong to sequence parallelism; concatenate them before the call")
        refusal = self.attention.refusal(query, key, attn_metadata)
        if refusal is None:
            return self.attention.forward(query, key, value, attn_metadata)
        if self.backend_explicit:
            raise ValueError(
                f"attention backend {self.backend_name} cannot take this call: {refusal}; "
                "choose TORCH_SDPA, or 'auto', which falls back to it"
            )
        return self.sdpa_fallback.forward(query, key, value, attn_metadata)

    def extra_repr(self) -> str:
        sizes = f"heads={self.num_heads}, kv_heads={self.num_kv_heads}, head_size={self.head_size}"
        return f"{sizes}, causal={self.causal}, backend={self.backend_name}"
