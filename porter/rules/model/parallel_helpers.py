"""What the modules of a file need once they are split over ranks, as text that is put into the file."""

from __future__ import annotations

import re

DISTRIBUTED = "vllm.distributed"
LINEAR = "vllm.model_executor.layers.linear"
WORLD = "get_tensor_model_parallel_world_size"
RANK = "get_tensor_model_parallel_rank"
GATHER = "tensor_model_parallel_all_gather"
REDUCE = "tensor_model_parallel_all_reduce"

SHARE = '''
def rank_share(total: int, what: str) -> int:
    """This rank's part of a number of heads or features.

    Raises:
        ValueError: it cannot be divided evenly.
    """
    ranks = get_tensor_model_parallel_world_size()
    if total % ranks:
        raise ValueError(f"{what} = {total} cannot be divided by tensor_parallel_size = {ranks}.")
    return total // ranks
'''

NORM = '''
def norm_over_ranks(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A norm over all heads together, of which this rank holds a part: ``x`` (..., width of this rank)."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return norm(x)
    width = x.shape[-1]
    start = get_tensor_model_parallel_rank() * width
    if isinstance(norm, nn.RMSNorm) and norm.weight is not None:
        # One number a token travels. As in torch, what is squared is float32 at least.
        wide = x.float()
        mean = tensor_model_parallel_all_reduce(wide.pow(2).sum(-1, keepdim=True)) / (width * ranks)
        eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
        return (wide * torch.rsqrt(mean + eps) * norm.weight[start : start + width]).to(x.dtype)
    whole = norm(tensor_model_parallel_all_gather(x.contiguous()))
    return whole[..., start : start + width].contiguous()
'''

TABLE = '''
def rank_table(table):
    """This rank's columns of the tables of a position embedding that is as wide as all heads together."""
    if isinstance(table, (tuple, list)):
        return type(table)(rank_table(part) for part in table)
    if not isinstance(table, torch.Tensor):
        return table
    axis = 1 if table.dim() == 4 else -1  # (batch, heads, sequence, size), or heads and sizes in one
    width = rank_share(table.shape[axis], "width of a position table")
    return table.narrow(axis, get_tensor_model_parallel_rank() * width, width)
'''

PART = '''
def rank_part(parameter: torch.Tensor, axis: int) -> torch.Tensor:
    """This rank's heads of a parameter that has those of all ranks along ``axis``."""
    heads = rank_share(parameter.shape[axis], "number of heads")
    return parameter.narrow(axis, get_tensor_model_parallel_rank() * heads, heads)
'''

MASK = '''
def rank_heads(mask: torch.Tensor, batch_size: int, heads: int) -> torch.Tensor:
    """This rank's heads of a mask (batch * heads of all ranks, ...); one that is made for its own stays as it is."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1 or mask.shape[0] != batch_size * heads * ranks:
        return mask
    return mask.unflatten(0, (batch_size, ranks, heads))[:, get_tensor_model_parallel_rank()].flatten(0, 1)
'''

PACKED_ROW = '''
class PackedRowParallelLinear(RowParallelLinear):
    """A projection of several inputs that lie one after the other, each of which is split over the ranks.

    Args:
        input_sizes: widths of the inputs; a rank holds the same part of each.
    """

    def __init__(self, input_sizes: list[int], output_size: int, **kwargs: Any) -> None:
        self.input_sizes = input_sizes
        super().__init__(sum(input_sizes), output_size, **kwargs)

    def _by_rank(self, param: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The columns in the order in which the ranks take them."""
        if param is self.bias or weight.dim() != 2:
            return weight
        ranks = get_tensor_model_parallel_world_size()
        parts = [part.chunk(ranks, dim=1) for part in weight.split(self.input_sizes, dim=1)]
        return torch.cat([part[rank] for rank in range(ranks) for part in parts], dim=1)

    def weight_loader(self, param, loaded_weight):
        return super().weight_loader(param, self._by_rank(param, loaded_weight))

    def weight_loader_v2(self, param, loaded_weight):
        return super().weight_loader_v2(param, self._by_rank(param, loaded_weight))
'''

FEED_FORWARD = '''
class ParallelFeedForward(FeedForward):
    """diffusers' ``FeedForward``, split over the ranks: its first projection by outputs, its last by inputs."""

    def __init__(self, *args: Any, quant_config: Any = None, prefix: str = "", **kwargs: Any) -> None:
        with torch.device("meta"):  # the projections are made anew below
            super().__init__(*args, **kwargs)
        up, down = self.net[0].proj, self.net[2]
        halves = 2 if up.out_features > down.in_features else 1  # a gate lies behind what it gates
        kept = {"return_bias": False, "quant_config": quant_config}
        rank_share(down.in_features, "width of a feed-forward")
        self.net[0].proj = MergedColumnParallelLinear(
            up.in_features, [down.in_features] * halves, up.bias is not None, prefix=f"{prefix}.net.0.proj", **kept
        )
        self.net[2] = RowParallelLinear(
            down.in_features, down.out_features, down.bias is not None, prefix=f"{prefix}.net.2", **kept
        )
'''

OUTPUTS = '''
def outputs_of(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What each of the projections that are one layer makes of ``x``, in their order."""
    one_by_one = getattr(type(layer), "forward_parts", None)
    if one_by_one is not None:  # where one product for all would not be bit for bit that of each
        return one_by_one(layer, x)
    return layer(x).split(layer.output_partition_sizes, dim=-1)
'''

# Name: (text, imports of the text).
HELPERS: dict[str, tuple[str, dict[str, tuple[str, str | None]]]] = {
    "rank_share": (SHARE, {WORLD: (DISTRIBUTED, WORLD)}),
    "norm_over_ranks": (
        NORM,
        {name: (DISTRIBUTED, name) for name in (WORLD, RANK, GATHER, REDUCE)}
        | {"nn": ("torch", "nn"), "torch": ("torch", None)},
    ),
    "rank_table": (TABLE, {RANK: (DISTRIBUTED, RANK), "torch": ("torch", None)}),
    "rank_part": (PART, {RANK: (DISTRIBUTED, RANK), "torch": ("torch", None)}),
    "rank_heads": (
        MASK,
        {WORLD: (DISTRIBUTED, WORLD), RANK: (DISTRIBUTED, RANK), "torch": ("torch", None)},
    ),
    "outputs_of": (OUTPUTS, {"nn": ("torch", "nn"), "torch": ("torch", None)}),
    "PackedRowParallelLinear": (
        PACKED_ROW,
        {
            WORLD: (DISTRIBUTED, WORLD),
            "RowParallelLinear": (LINEAR, "RowParallelLinear"),
            "torch": ("torch", None),
            "Any": ("typing", "Any"),
        },
    ),
    "ParallelFeedForward": (
        FEED_FORWARD,
        {
            "MergedColumnParallelLinear": (LINEAR, "MergedColumnParallelLinear"),
            "RowParallelLinear": (LINEAR, "RowParallelLinear"),
            "torch": ("torch", None),
            "Any": ("typing", "Any"),
        },
    ),
}
NEEDS = {"rank_table": ("rank_share",), "rank_part": ("rank_share",), "ParallelFeedForward": ("rank_share",)}
PARALLEL_STATE = "vllm_omni.diffusion.distributed.parallel_state"
SP_PLAN = "vllm_omni.diffusion.distributed.sp_plan"
SP_WORLD, SP_RANK = "get_sequence_parallel_world_size", "get_sequence_parallel_rank"

ATTENTION = '''
class SequenceBoundary(nn.Module):
    """Where attention is divided among ranks, or put together: the engine's hooks work on a module's result."""

    def forward(self, *tensors: torch.Tensor) -> Any:
        return tensors if len(tensors) > 1 else tensors[0]


class SequenceParallelAttention(nn.Module):
    """The engine's ``Attention`` between two boundaries: (batch, sequence, heads, head size) in and out.

    Each rank attends over the whole sequence with some of the heads, as after Ulysses' exchange; there is nothing to
    exchange, since every rank has all queries, keys and values. Heads that cannot be divided evenly stay together.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.split = SequenceBoundary()
        self.layer = Attention(**kwargs, skip_sequence_parallel=True)
        self.join = SequenceBoundary()

    def forward(self, query, key, value, attn_metadata=None):
        ranks = get_sequence_parallel_world_size()
        mask = getattr(attn_metadata, "attn_mask", None)
        is_plain = mask is None or (isinstance(mask, torch.Tensor) and mask.dim() <= 4)
        if ranks == 1 or not is_plain or query.shape[2] % ranks or key.shape[2] % ranks:
            return self.layer(query, key, value, attn_metadata=attn_metadata)
        if mask is not None and mask.dim() == 4 and mask.shape[1] > 1:
            part = mask.chunk(ranks, dim=1)[get_sequence_parallel_rank()]
            attn_metadata = dataclasses.replace(attn_metadata, attn_mask=part)
        query, key, value = self.split(query, key, value)
        return self.join(self.layer(query, key, value, attn_metadata=attn_metadata))


def attention_plan(model: nn.Module) -> dict[str, Any]:
    """The sequence-parallel plan of a model: what goes into each of its attention layers, and what comes out."""
    divided = SequenceParallelInput(split_dim=2, expected_dims=4, split_output=True)
    plan: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, SequenceParallelAttention):
            plan[f"{name}.split"] = {0: divided, 1: divided, 2: divided}
            plan[f"{name}.join"] = SequenceParallelOutput(gather_dim=2, expected_dims=4)
    return plan
'''
ATTENTION_IMPORTS: dict[str, tuple[str, str | None]] = {
    "Any": ("typing", "Any"),
    "Attention": ("vllm_omni.diffusion.attention.layer", "Attention"),
    "SequenceParallelInput": (SP_PLAN, "SequenceParallelInput"),
    "SequenceParallelOutput": (SP_PLAN, "SequenceParallelOutput"),
    SP_RANK: (PARALLEL_STATE, SP_RANK),
    SP_WORLD: (PARALLEL_STATE, SP_WORLD),
    "dataclasses": ("dataclasses", None),
    "nn": ("torch", "nn"),
    "torch": ("torch", None),
}


def helper_names() -> set[str]:
    """Names of all definitions that are put into files here."""
    texts = [ATTENTION, *(text for text, _ in HELPERS.values())]
    return {name for text in texts for name in re.findall(r"^(?:class|def) (\w+)", text, re.MULTILINE)}
