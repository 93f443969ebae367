"""Linear layers on the CPU, as torch computes them.

After loading, vLLM hands the weight of a linear layer to oneDNN in a packed form and leaves an empty tensor behind; in
half precision, on a processor that has kernels for it, small ones to a packing of its own. The results then differ from
torch's in the last bits, and nobody can read the weights any more. This platform is there to
hold ports against diffusers, so its layers use torch's own kernel, as they do on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def keep_weights() -> None:
    """Turn the packing off, for layers that are loaded from now on."""
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    _custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda n, k, dtype: False


def keep_products_apart() -> None:
    """Let layers that hold several projections make a product for each, as ``outputs_of`` in ports asks them to.

    One product for all would differ from diffusers' several in the last bits for some sizes. Layers that are quantized,
    and those that an adapter is wrapped around, are called as they are.
    """
    for kind in _merged_layers():
        kind.forward_parts = _forward_parts


@contextlib.contextmanager
def one_product() -> Iterator[None]:
    """Inside, such layers make one product for all their projections, as they do on a GPU."""
    for kind in _merged_layers():
        del kind.forward_parts
    try:
        yield
    finally:
        keep_products_apart()


def _merged_layers() -> tuple[type[torch.nn.Module], ...]:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear

    return QKVParallelLinear, MergedColumnParallelLinear


def _forward_parts(layer: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    sizes = layer.output_partition_sizes
    if type(layer.quant_method) is not UnquantizedLinearMethod or layer.skip_bias_add:
        return layer(x).split(sizes, dim=-1)
    x = x.contiguous()
    biases = [None] * len(sizes) if layer.bias is None else layer.bias.split(sizes)
    parts = zip(layer.weight.split(sizes), biases, strict=True)
    return tuple(torch.nn.functional.linear(x, weight, bias) for weight, bias in parts)
