"""Adaptive layer norms: scale and shift computed from an embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from porter.runtime.diffusion.layers.norm import LayerNorm
from porter.runtime.model_executor.layers.linear import ReplicatedLinear


class AdaLayerNorm(nn.Module):
    """``layernorm(x) * (1 + scale) + shift`` with scale and shift given (diffusers' class of this name differs)."""

    def __init__(self, hidden_size: int, elementwise_affine: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.hidden_size = hidden_size
        self.layernorm = LayerNorm(hidden_size, elementwise_affine=elementwise_affine, eps=eps)

    def forward(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """``x`` (…, hidden_size); ``scale`` and ``shift`` broadcast to it."""
        return self.layernorm(x) * (1 + scale) + shift


class AdaLayerNormZero(nn.Module):
    """Norm modulated for attention, with gates and the MLP's modulation."""

    def __init__(
        self, embedding_dim: int, bias: bool = True, quant_config: Any | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.emb = None
        self.silu = nn.SiLU()
        self.linear = _modulation(embedding_dim, 6 * embedding_dim, bias, quant_config, prefix)
        self.norm = nn.LayerNorm(embedding_dim, elementwise_affine=False, eps=1e-6)

    def forward(
        self, x: torch.Tensor, emb: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """``x`` ``[B, S, D]`` and ``emb`` ``[B, D]`` to (x, gate_msa, shift_mlp, scale_mlp, gate_mlp)."""
        modulation = self.linear(self.silu(emb))
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)
        x = self.norm(x) * (1 + scale_msa[:, None]) + shift_msa[:, None]
        return x, gate_msa, shift_mlp, scale_mlp, gate_mlp


class AdaLayerNormZeroSingle(nn.Module):
    """Norm modulated for a single-stream block, with its gate."""

    def __init__(
        self, embedding_dim: int, bias: bool = True, quant_config: Any | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = _modulation(embedding_dim, 3 * embedding_dim, bias, quant_config, prefix)
        self.norm = nn.LayerNorm(embedding_dim, elementwise_affine=False, eps=1e-6)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` ``[B, S, D]`` and ``emb`` ``[B, D]`` to (x, gate)."""
        shift_msa, scale_msa, gate_msa = self.linear(self.silu(emb)).chunk(3, dim=1)
        x = self.norm(x) * (1 + scale_msa[:, None]) + shift_msa[:, None]
        return x, gate_msa


class AdaLayerNormContinuous(nn.Module):
    """Norm before the output projection, scale first, then shift."""

    def __init__(
        self,
        embedding_dim: int,
        conditioning_embedding_dim: int,
        elementwise_affine: bool = False,
        eps: float = 1e-6,
        bias: bool = True,
        quant_config: Any | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = _modulation(conditioning_embedding_dim, 2 * embedding_dim, bias, quant_config, prefix)
        self.norm = nn.LayerNorm(embedding_dim, eps=eps, elementwise_affine=elementwise_affine)

    def forward(self, x: torch.Tensor, conditioning_embedding: torch.Tensor) -> torch.Tensor:
        """``x`` ``[B, S, D]`` and a conditioning ``[B, C]`` to ``[B, S, D]``."""
        scale, shift = torch.chunk(self.linear(self.silu(conditioning_embedding).to(x.dtype)), 2, dim=1)
        return self.norm(x) * (1 + scale)[:, None, :] + shift[:, None, :]


def _modulation(
    input_size: int, output_size: int, bias: bool, quant_config: Any | None, prefix: str
) -> ReplicatedLinear:
    return ReplicatedLinear(
        input_size,
        output_size,
        bias=bias,
        return_bias=False,
        quant_config=quant_config,
        prefix=f"{prefix}.linear",
    )
