"""TORCH_SDPA: ``torch.nn.functional.scaled_dot_product_attention``, available everywhere.

The call is the one that diffusers' native backend makes, so that results are equal to the last bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from porter.runtime.diffusion.attention.backends.abstract import AttentionBackend, AttentionImpl, AttentionMetadata

# Keys of AttentionMetadata.extra that stand in for a mask: to ignore them without a mask would attend to padding.
_MASK_IN_OTHER_WORDS = ("cu_seqlens_q", "cu_seqlens_k", "valid_kv_length")


class SDPABackend(AttentionBackend):
    """PyTorch's own attention."""

    @staticmethod
    def get_name() -> str:
        return "TORCH_SDPA"

    @staticmethod
    def get_impl_cls() -> type[SDPAImpl]:
        return SDPAImpl

    @classmethod
    def supports_attention_mask(cls, attention_spec: object | None = None) -> bool:
        return True


class SDPAImpl(AttentionImpl):
    """Attention by PyTorch, any mask, any dtype."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_metadata: AttentionMetadata | None = None,
    ) -> torch.Tensor:
        """Attention over ``[B, S, H, D]`` tensors.

        Raises:
            ValueError: the mask's meaning is not clear (see ``_broadcast_mask``), or padding is described by
                sequence lengths alone.
        """
        mask = None
        if attn_metadata is not None:
            mask = attn_metadata.attn_mask
            if mask is not None:
                mask = _broadcast_mask(query, key, mask)
            elif any(name in attn_metadata.extra for name in _MASK_IN_OTHER_WORDS):
                raise ValueError("TORCH_SDPA needs padding as an attn_mask, not as sequence lengths")

        query, key, value = (tensor.permute(0, 2, 1, 3) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=0.0,
            is_causal=self.causal,
            scale=self.softmax_scale,
            # Under torch.compile with dynamic shapes the comparison is symbolic, and the argument must be a plain bool.
            enable_gqa=True if query.shape[1] != key.shape[1] else False,
        )
        return output.permute(0, 2, 1, 3)


def _broadcast_mask(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A padding mask ``[B, S_kv]`` as bool ``[B, 1, 1, S_kv]``; any other mask as it is.

    A floating padding mask is refused: vllm-omni reads it as "not zero: attend", diffusers adds it to the scores.
    """
    is_padding_mask = mask.ndim == 2 and mask.shape[0] == query.shape[0] and mask.shape[1] == key.shape[1]
    if not is_padding_mask:
        return mask
    if mask.dtype.is_floating_point:
        raise ValueError(
            "a 2-D floating attn_mask is ambiguous; pass a bool mask [B, S_kv], or an additive one as [B, 1, 1, S_kv]"
        )
    return mask.to(torch.bool).unsqueeze(1).unsqueeze(1)
