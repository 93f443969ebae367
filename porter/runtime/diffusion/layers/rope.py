"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import nn


def rotate_half(x: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """Each pair ``(a, b)`` as ``(-b, a)``; pairs are neighbours if ``interleaved``, else the two halves' elements."""
    if not interleaved:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def apply_rotary_emb_torch(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> torch.Tensor:
    """Rotate the first ``2 * cos.shape[-1]`` features of ``x`` ``[B, S, H, D]``; the rest pass through.

    Args:
        x: queries or keys.
        cos, sin: ``[S, R/2]`` or ``[B, S, R/2]``.
        interleaved: how features are paired (see ``rotate_half``).

    Raises:
        ValueError: there are more rotary features than features.
    """
    rotary = cos.shape[-1] * 2
    if rotary > x.shape[-1]:
        raise ValueError(f"{rotary} rotary features, and only {x.shape[-1]} features")
    if interleaved:
        cos, sin = (part.repeat_interleave(2, dim=-1).unsqueeze(-2) for part in (cos, sin))
    else:
        cos, sin = (torch.cat((part, part), dim=-1).unsqueeze(-2) for part in (cos, sin))
    turned, rest = x[..., :rotary], x[..., rotary:]
    return torch.cat((turned * cos + rotate_half(turned, interleaved) * sin, rest), dim=-1)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding with one table for the whole batch.

    Args:
        is_neox_style: pair the two halves' elements rather than neighbours.
        half_head_dim: whether tables come with ``D/2`` entries, or with all ``D`` (each pair's twice).
    """

    def __init__(self, is_neox_style: bool = False, half_head_dim: bool = True) -> None:
        super().__init__()
        self.is_neox_style = is_neox_style
        self.interleaved = not is_neox_style
        self.half_head_dim = half_head_dim

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate ``x`` ``[B, S, H, D]``; of a table with a batch dimension only the first entry is used."""
        cos, sin = self._half_table(cos), self._half_table(sin)
        return apply_rotary_emb_torch(x, cos, sin, interleaved=self.interleaved)

    def _half_table(self, table: torch.Tensor) -> torch.Tensor:
        if table.dim() == 3:
            table = table[0]
        if self.half_head_dim:
            return table
        return table[..., ::2] if self.interleaved else table[..., : table.shape[-1] // 2]
