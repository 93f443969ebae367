"""vLLM's RMSNorm, native arithmetic."""

from __future__ import annotations

import torch
from torch import nn


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32.

    The normalised value is cast to the weight's dtype before the weight multiplies it.

    Args:
        hidden_size: length of the last dimension.
        eps: added to the mean square.
        has_weight: without it there is no parameter.
        dtype: of the weight; the default dtype if None.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        var_hidden_size: int | None = None,
        has_weight: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if var_hidden_size not in (None, hidden_size):
            raise ValueError("RMSNorm over a part of the hidden size (var_hidden_size) is not available here")
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.has_weight = has_weight
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=dtype)) if has_weight else None

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Norm of ``x`` (…, hidden_size); with ``residual``, norm of their sum, and that sum."""
        dtype = x.dtype
        x = x.to(torch.float32)
        if residual is not None:
            x = x + residual
            residual = x.to(dtype)
        x = x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.variance_epsilon)
        if self.weight is not None:
            x = x.to(self.weight.dtype) * self.weight
        x = x.to(dtype)
        return x if residual is None else (x, residual)
