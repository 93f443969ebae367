"""``load_weights`` of a model: the tensors of a checkpoint, by their diffusers names."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

_START = """
def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
    tensors = dict(self.state_dict(keep_vars=True))
    loaded: set[str] = set()
"""
_PLAIN = """
    for name, weight in weights:
        if name not in tensors:
            raise ValueError(f"{type(self).__name__} has no parameter or buffer {name!r}")
        tensor = tensors[name]
        if isinstance(tensor, nn.Parameter):
            weight_loader = getattr(tensor, "weight_loader", default_weight_loader)
            weight_loader(tensor, weight)
"""
_MERGED = """
    merged: set[str] = set()  # tensors of layers that hold several projections
    parts: set[str] = set()  # what they were loaded from
    for source, weight in weights:
        name, shard = source, ()
        if name not in tensors:
            found = [(name.replace(part, layer), (key,)) for layer, part, key in self.stacked_params_mapping]
            name, shard = next((held for held in found if held[0] in tensors), (name, shard))
        if name not in tensors:
            raise ValueError(f"{type(self).__name__} has no parameter or buffer {name!r}")
        tensor = tensors[name]
        if shard:
            merged.add(name)
            parts.add(source)
        if isinstance(tensor, nn.Parameter):
            weight_loader = getattr(tensor, "weight_loader", default_weight_loader)
            weight_loader(tensor, weight, *shard)
"""
_BUFFERS = """
        elif tensor.shape != weight.shape:
            raise ValueError(f"{name}: the checkpoint has {tuple(weight.shape)}, the model {tuple(tensor.shape)}")
        else:  # a persistent buffer: tables made in float64 take the model's dtype, as in diffusers
            tensor.data = weight.to(tensor.device, self.dtype if weight.is_floating_point() else weight.dtype)
        loaded.add(name)
    # The engine asks for parameters only. A buffer that two modules share is saved under one name.
    buffers = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter)}
    filled = {id(tensors[name]) for name in loaded}
    missing = [name for name, tensor in buffers.items() if id(tensor) not in filled]
"""
_PLAIN_END = """
    if missing:
        raise ValueError(f"the checkpoint lacks buffers of {type(self).__name__}: {', '.join(missing)}")
    return loaded
"""
_MERGED_END = """
    mapping = self.stacked_params_mapping
    wanted = {name.replace(layer, part) for name in merged for layer, part, _ in mapping if layer in name}
    missing += sorted(wanted - parts)
    if missing:
        raise ValueError(f"the checkpoint lacks tensors of {type(self).__name__}: {', '.join(missing)}")
    return loaded
"""


def _text(*parts: str) -> str:
    return "\n" + "".join(part.removeprefix("\n") for part in parts)


LOAD_WEIGHTS = _text(_START, _PLAIN, _BUFFERS, _PLAIN_END)
LOAD_MERGED_WEIGHTS = _text(_START, _MERGED, _BUFFERS, _MERGED_END)


def mappings(table: Iterable[tuple[str, tuple[str, ...], tuple[str | int, ...]]]) -> str:
    """The two class attributes that say which layer holds which projections.

    Args:
        table: for each layer its name, those of the projections in it, and what the engine calls its parts.
    """
    packed, stacked = [], []
    for name, members, keys in table:
        packed.append(f'"{name}": [{", ".join(_quoted(member) for member in members)}],')
        stacked += [f'(".{name}.", ".{m}.", {_quoted(k) if isinstance(k, str) else k}),' for m, k in zip(members, keys)]
    return (
        "packed_modules_mapping = {\n" + textwrap.indent("\n".join(packed), "    ") + "\n}\n"
        "stacked_params_mapping = [\n    # (layer, projection, its part of the layer)\n"
        + textwrap.indent("\n".join(stacked), "    ")
        + "\n]\n"
    )


def _quoted(text: str) -> str:
    return f'"{text}"'
