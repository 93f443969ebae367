"""vLLM's linear layers for one process: the same constructors, parameters and weight loaders, nothing sharded.

``forward`` returns ``(output, bias or None)`` unless ``return_bias=False``; the bias is handed back instead of
added only with ``skip_bias_add=True``.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from porter.runtime.errors import CheckpointError, ConfigError
from porter.runtime.model_executor.model_loader.weight_utils import default_weight_loader, shape_mismatch


def missing_shards(param: torch.Tensor) -> list[Hashable]:
    """Shards of a fused parameter that the checkpoint has not filled (empty for any other parameter).

    Without this a fused weight would count as loaded as soon as one of its parts is.
    """
    wanted: dict[Hashable, tuple[int, int]] = getattr(param, "shards", {})
    loaded: set[Hashable] = getattr(param, "loaded_shards", set())
    return [shard for shard in wanted if shard not in loaded]


class LinearBase(nn.Module):
    """A weight ``[output_size, input_size]`` and an optional bias ``[output_size]``.

    Raises:
        ConfigError: a quantization config is given; quantization runs on vllm-omni.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: Any | None = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
    ) -> None:
        super().__init__()
        if quant_config is not None:
            raise ConfigError(
                f"linear layer {prefix or type(self).__name__!r}: quantization is not available in porter.runtime; "
                "convert with --target vllm-omni to use it"
            )
        self.input_size = input_size
        self.output_size = output_size
        self.skip_bias_add = skip_bias_add
        self.return_bias = return_bias
        self.quant_config = None
        self.prefix = prefix
        self.disable_tp = disable_tp
        self.tp_size = 1
        self.tp_rank = 0
        # Parameters require gradients, as nn.Linear's do: for inputs with gaps torch chooses its kernel by that.
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=params_dtype))
        self.weight.weight_loader = self.weight_loader
        if bias:
            self.bias = nn.Parameter(torch.zeros(output_size, dtype=params_dtype))
            self.bias.weight_loader = self.weight_loader
        else:
            self.register_parameter("bias", None)

    def weight_loader(self, param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        """Fill ``param`` from a tensor of the same shape.

        Raises:
            CheckpointError: the shapes differ.
        """
        default_weight_loader(param, loaded_weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]:
        """``x`` (…, input_size) to (…, output_size)."""
        output = F.linear(x, self.weight, None if self.skip_bias_add else self.bias)
        if not self.return_bias:
            return output
        return output, self.bias if self.skip_bias_add else None

    def extra_repr(self) -> str:
        return f"in_features={self.input_size}, output_features={self.output_size}, bias={self.bias is not None}"


class ReplicatedLinear(LinearBase):
    """A linear layer that every rank would hold whole."""


class ColumnParallelLinear(LinearBase):
    """A linear layer whose output features would be split over the ranks."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: Any | None = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            bias,
            skip_bias_add,
            params_dtype,
            quant_config,
            prefix,
            return_bias=return_bias,
            disable_tp=disable_tp,
        )
        self.gather_output = gather_output
        self.output_size_per_partition = output_size
        self.output_partition_sizes = [output_size]


class RowParallelLinear(LinearBase):
    """A linear layer whose input features would be split over the ranks."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        reduce_results: bool = True,
        quant_config: Any | None = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            bias,
            skip_bias_add,
            params_dtype,
            quant_config,
            prefix,
            return_bias=return_bias,
            disable_tp=disable_tp,
        )
        self.input_is_parallel = input_is_parallel
        self.reduce_results = reduce_results
        self.input_size_per_partition = input_size


class _FusedLinear(ColumnParallelLinear):
    """Several projections of one input, stacked along the output; each shard id owns a range of rows."""

    _views: tuple[Any, list[tuple[torch.Tensor, torch.Tensor | None]]] | None = None

    def forward_parts(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``x`` (…, input_size) to the outputs of the projections, each (…, its size), without :meth:`forward`'s pair.

        On a CPU each is a product of its own with the rows that it owns: bit for bit what a layer of its own would
        give, which one product for all of them is not (kernels order the sums of small matrices by their width, and
        what reads a part of a wider row may round otherwise). Elsewhere one product is made and divided.
        """
        bias = None if self.skip_bias_add else self.bias
        if self.weight.device.type != "cpu":
            return F.linear(x, self.weight, bias).split(self.output_partition_sizes, dim=-1)
        return tuple([F.linear(x, weight, bias) for weight, bias in self._parts(self.weight, bias)])

    def _parts(self, weight: torch.Tensor, bias: torch.Tensor | None) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """The rows of each projection: views, which are made once for the memory that they lie in."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return self._divided(weight, bias)
        places = weight.data_ptr(), weight.shape, weight.stride(), bias is not None and bias.data_ptr()
        if self._views is None or self._views[0] != places:
            # The views keep the memory, so nothing else comes to lie in the same place.
            self._views = (places, self._divided(weight, bias))
        return self._views[1]

    def _divided(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        weights = weight.split(self.output_partition_sizes)
        biases = [None] * len(weights) if bias is None else bias.split(self.output_partition_sizes)
        return list(zip(weights, biases, strict=True))

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._views = None  # the weight moves, and its old memory is to be free
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_views": None}

    def _set_shards(self, sizes: dict[Hashable, int]) -> None:
        self._shards: dict[Hashable, tuple[int, int]] = {}
        start = 0
        for shard_id, size in sizes.items():
            self._shards[shard_id] = (start, size)
            start += size
        self.output_sizes = list(sizes.values())
        self.output_partition_sizes = list(sizes.values())
        for param in (self.weight, self.bias):
            if param is not None:
                param.shards = self._shards
                param.loaded_shards = set()

    def weight_loader(
        self,
        param: torch.Tensor,
        loaded_weight: torch.Tensor,
        loaded_shard_id: Hashable | None = None,
    ) -> None:
        """Fill the rows of one shard, or the whole parameter if ``loaded_shard_id`` is None.

        Raises:
            CheckpointError: the shape is not the shard's.
            ValueError: there is no such shard.
        """
        if loaded_shard_id is None:
            default_weight_loader(param, loaded_weight)
            param.loaded_shards.update(self._shards)
            return
        if loaded_shard_id not in self._shards:
            raise ValueError(f"{self.prefix}: no shard {loaded_shard_id!r}; there are {list(self._shards)}")
        start, size = self._shards[loaded_shard_id]
        rows = param.data[start : start + size]
        # Marked even if the shape is wrong: the tensor was there, and is reported for its shape.
        param.loaded_shards.add(loaded_shard_id)
        if rows.shape != loaded_weight.shape:
            mismatch = shape_mismatch(loaded_weight.shape, rows.shape)
            raise CheckpointError(misshapen=[f"shard {loaded_shard_id!r}: {mismatch}"])
        rows.copy_(loaded_weight)


class MergedColumnParallelLinear(_FusedLinear):
    """Projections of sizes ``output_sizes`` stacked in that order; shard ids are their indices."""

    def __init__(
        self,
        input_size: int,
        output_sizes: list[int],
        bias: bool = True,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: Any | None = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
    ) -> None:
        super().__init__(
            input_size,
            sum(output_sizes),
            bias,
            gather_output,
            skip_bias_add,
            params_dtype,
            quant_config,
            prefix,
            return_bias=return_bias,
            disable_tp=disable_tp,
        )
        self._set_shards(dict(enumerate(output_sizes)))


class QKVParallelLinear(_FusedLinear):
    """Query, key and value projections stacked in that order; shard ids ``"q"``, ``"k"``, ``"v"``."""

    def __init__(
        self,
        hidden_size: int,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        bias: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: Any | None = None,
        prefix: str = "",
        *,
        return_bias: bool = True,
        disable_tp: bool = False,
        v_head_size: int | None = None,
    ) -> None:
        kv_heads = total_num_heads if total_num_kv_heads is None else total_num_kv_heads
        v_size = head_size if v_head_size is None else v_head_size
        sizes: dict[Hashable, int] = {
            "q": total_num_heads * head_size,
            "k": kv_heads * head_size,
            "v": kv_heads * v_size,
        }
        super().__init__(
            hidden_size,
            sum(sizes.values()),
            bias,
            False,
            skip_bias_add,
            params_dtype,
            quant_config,
            prefix,
            return_bias=return_bias,
            disable_tp=disable_tp,
        )
        self.hidden_size = hidden_size
        self.head_size = head_size
        self.v_head_size = v_size
        self.total_num_heads = self.num_heads = total_num_heads
        self.total_num_kv_heads = self.num_kv_heads = kv_heads
        self._set_shards(sizes)
