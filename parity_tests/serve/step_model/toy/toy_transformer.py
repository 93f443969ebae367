"""A transformer over latent pixels, with a text and a time."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, -1)).transpose(1, 3).unbind(2)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ToyTransformer2DModel(nn.Module):
    channels = 4

    def __init__(self, od_config=None, dim: int = 32, layers: int = 2):
        super().__init__()
        self.dim = dim
        self.proj_in, self.proj_out = nn.Linear(self.channels, dim), nn.Linear(dim, self.channels)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(layers))

    def forward(self, latents, timestep, text):
        frequencies = torch.exp(torch.arange(self.dim // 2) * (-math.log(10000.0) / (self.dim // 2)))
        angles = timestep[:, None] * frequencies
        time = torch.cat([angles.sin(), angles.cos()], dim=-1)
        x = self.proj_in(latents.flatten(2).transpose(1, 2)) + (time + text)[:, None]
        for block in self.blocks:
            x = block(x)
        return self.proj_out(x).transpose(1, 2).unflatten(2, latents.shape[2:])
