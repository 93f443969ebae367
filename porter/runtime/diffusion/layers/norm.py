"""Layer norm and RMS norm computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension, in float32 whatever the dtype of input and weight.

    Args:
        dim: length of the last dimension.
        eps: added to the variance.
        elementwise_affine: whether there are weight and bias.
    """

    def __init__(self, dim: int, eps: float = 1e-6, elementwise_affine: bool = True) -> None:
        super().__init__(normalized_shape=dim, eps=eps, elementwise_affine=elementwise_affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Norm of ``x`` (…, dim), in its own dtype."""
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm over the last dimension; the weight multiplies in float32, before the cast back.

    Args:
        hidden_size: length of the last dimension.
        eps: added to the mean square.
        dtype: of the weight; the default dtype if None.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=dtype))

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Norm of ``x`` (…, hidden_size); with ``residual``, norm of their sum, and that sum."""
        if residual is not None:
            x = residual = residual + x
        dtype = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        x = (self.weight.to(torch.float32) * x).to(dtype)
        return x if residual is None else (x, residual)
