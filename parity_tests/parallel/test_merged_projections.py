"""Which projections become one layer, how their code is rewritten, and how a checkpoint that has them apart loads."""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import libcst as cst
import pytest
import torch

from porter.facts.parallel.merged import merged_name
from porter.model_port import build_model, find_model, load_model, port_model, write_models
from porter.parity import model_spec
from porter.parity.models import random_original
from porter.parity.weight_check import compare_tensors
from porter.rules.model.merged_projections import MergeProjections
from porter.rules.model.tensor_parallel import TensorParallel
from porter.runtime.diffusion.data import TransformerConfig
from porter.runtime.diffusion.utils.tf_utils import get_transformer_config_kwargs
from porter.runtime.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear
from porter.source import SourceTree
from porter.targets import get_target

BLOCKS = """

class Model(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.blocks = nn.ModuleList([Module(dim)])
"""


def merged(text: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The text after merging, the table, and why projections of ``Module`` stayed apart."""
    split = TensorParallel().apply(list(cst.parse_module(textwrap.dedent(text) + BLOCKS).body))
    _, table = MergeProjections().apply(split)
    code = cst.Module(body=split.nodes).code
    return code, {name: members for name, members, _ in table}, split.apart.get("Module", {})


def attention(body: str, sizes: str = "dim, dim", more: str = "", end: str = "") -> str:
    """A module whose forward begins with ``body``, which makes ``q``, ``k`` and ``v``."""
    return f"""
class Module(nn.Module):
    def __init__(self, dim, heads=4):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear({sizes})
        self.to_v = nn.Linear({sizes})
{textwrap.indent(textwrap.dedent(more), " " * 8)}
        self.to_out = nn.Linear(dim, dim)
        self.attn = Attention(num_heads=self.heads, head_size=dim // heads)

    def forward(self, x, context=None):
{textwrap.indent(textwrap.dedent(body), " " * 8)}
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        return self.to_out(self.attn(q, k, v).flatten(2, 3))
{textwrap.indent(textwrap.dedent(end), "    ")}
"""


PLAIN = "q = self.to_q(x)\nk = self.to_k(x)\nv = self.to_v(x)"
CROSS = "q = self.to_q(x)\nk = self.to_k(context)\nv = self.to_v(context)"
QKV, KV = {"to_qkv": ("to_q", "to_k", "to_v")}, {"to_kv": ("to_k", "to_v")}


def test_query_key_and_value_of_one_input_are_one_layer():
    code, table, apart = merged(attention(PLAIN))
    assert (table, apart) == (QKV, {})
    assert "q, k, v = outputs_of(self.to_qkv, x)" in code
    assert (
        "QKVParallelLinear(hidden_size=dim, head_size=dim // heads, total_num_heads=heads, return_bias=False)" in code
    )
    assert not any(f"self.{name}{after}" in code for name in QKV["to_qkv"] for after in " (")


def test_the_order_of_the_calls_does_not_matter():
    code, table, _ = merged(attention("v = self.to_v(x)\nq = self.to_q(x)\nk = self.to_k(x)"))
    assert table == QKV
    assert "q, k, v = outputs_of(self.to_qkv, x)" in code


def test_keys_and_values_of_another_input_are_one_layer():
    code, table, apart = merged(attention(CROSS))
    assert table == KV
    assert "k, v = outputs_of(self.to_kv, context)" in code
    assert apart == {"to_q": "reads another value, or in another place"}


def test_calls_inside_expressions_and_apart_from_each_other():
    body = "q = self.to_q(x).float()\ny = x + 1\nk = self.to_k(x) * 2\nv = self.to_v(x)"
    code, table, _ = merged(attention(body))
    assert table == QKV
    lines = [line.strip() for line in code.splitlines()]
    at = lines.index("query, key, value = outputs_of(self.to_qkv, x)")
    assert lines[at + 1 : at + 5] == ["q = query.float()", "y = x + 1", "k = key * 2", "v = value"]


def test_grouped_queries_say_how_many_heads_keys_have():
    text = attention(PLAIN, sizes="dim, kv_heads * (dim // heads)").replace("heads=4", "heads=4, kv_heads=2")
    code, table, _ = merged(text)
    assert table == QKV
    assert (
        "total_num_kv_heads=kv_heads * (dim // heads) // (dim // heads)" in code
        or "total_num_kv_heads=kv_heads" in code
    )


@pytest.mark.parametrize(
    ("body", "more", "end"),
    [
        ("q = self.to_q(x)\nk = self.to_k(x)\nx = x + 1\nv = self.to_v(x)", "", ""),  # another value by then
        ("q = self.to_q(x)\nk = self.to_k(x)\nx.mul_(2)\nv = self.to_v(x)", "", ""),
        ("q = self.to_q(x)\nk = self.to_k(x)\nx[:, 0] = 0\nv = self.to_v(x)", "", ""),
        ("q = self.to_q(x)\nk = self.to_k(x)\nv = self.to_v(x) if context is None else k", "", ""),
        ("q = self.to_q(x)\nk = self.to_k(x.clone())\nv = self.to_v(x.clone())", "", ""),  # clones may differ
    ],
)
def test_what_does_not_always_read_one_value_stays_apart(body, more, end):
    _, table, apart = merged(attention(body, more=more, end=end))
    assert not any("to_v" in members for members in table.values())
    assert apart or table


def test_use_of_a_weight_keeps_projections_apart():
    body = PLAIN + "\nx = x.to(self.to_q.weight.dtype)"
    _, table, apart = merged(attention(body))
    assert "to_qkv" not in table
    assert "another way" in apart["to_q"] if "to_q" in apart else apart


def test_a_list_of_names_keeps_projections_apart():
    text = attention(PLAIN).replace("    def __init__", "    _keep_in_fp32_modules = ['to_k']\n\n    def __init__", 1)
    assert not merged(text)[1]


def test_a_projection_that_another_class_replaces_stays_apart():
    more = "\nclass Other(nn.Module):\n    def __init__(self, module):\n        self.module = module\n"
    more += "        self.module.to_q = None\n"
    assert "to_qkv" not in merged(attention(PLAIN, end="") + more)[1]


def test_another_bias_keeps_projections_apart():
    text = attention(PLAIN).replace("self.to_q = nn.Linear(dim, dim)", "self.to_q = nn.Linear(dim, dim, bias=False)")
    _, table, apart = merged(text)
    assert table == KV
    assert apart == {"to_q": "has another bias"}


def test_a_size_that_changes_in_between_keeps_projections_apart():
    text = attention(PLAIN).replace("        self.to_k =", "        dim = dim + 0\n        self.to_k =", 1)
    _, table, _ = merged(text)
    assert "to_qkv" not in table


def test_a_name_that_is_taken_keeps_projections_apart():
    _, table, apart = merged(attention(PLAIN, more="self.to_qkv = None"))
    assert not table
    assert apart == {"to_q, to_k, to_v": "there is a to_qkv already"}


def test_tests_for_a_missing_projection_ask_for_the_layer():
    more = """
    self.add_k = self.add_v = None
    if heads > 2:
        self.add_k = nn.Linear(dim, dim)
        self.add_v = nn.Linear(dim, dim)
    """
    body = PLAIN + textwrap.dedent(
        """
        if self.add_k is not None and hasattr(self, "add_v"):
            k2 = self.add_k(context)
            v2 = self.add_v(context)
            k2, v2 = (part.unflatten(-1, (self.heads, -1)) for part in (k2, v2))
            q2 = q.unflatten(-1, (self.heads, -1))
            x = self.to_out(self.attn(q2, k2, v2).flatten(2, 3))
        """
    )
    code, table, _ = merged(attention(body, more=more))
    assert table == QKV | {"add_kv": ("add_k", "add_v")}
    assert "self.add_kv = None" in code
    assert 'if self.add_kv is not None and hasattr(self, "add_kv"):' in code
    assert "k2, v2 = outputs_of(self.add_kv, context)" in code


SHARED = """
def project(attn, x):
    q = attn.to_q(x)
    k = attn.to_k(x)
    v = attn.to_v(x)
    return q, k, v

"""


def test_a_function_is_rewritten_for_the_classes_that_come_to_it():
    text = SHARED + attention("q, k, v = project(self, x)")
    code, table, _ = merged(text)
    assert table == QKV
    assert "q, k, v = outputs_of(attn.to_qkv, x)" in code
    other = (
        text.replace("class Module(", "class Other(")
        .removeprefix(SHARED)
        .replace("nn.Linear(dim, dim)\n        self.to_k", "nn.Linear(dim, dim, bias=False)\n        self.to_k")
    )
    both = (
        text
        + other
        + "\n\nclass Holder(nn.Module):\n    def __init__(self):\n        self.list = nn.ModuleList([Other(8)])\n"
    )
    code, table, _ = merged(both)
    assert table == KV  # one code for both: what only one of them can is done for none
    assert "k, v = outputs_of(attn.to_kv, x)" in code
    assert "q = attn.to_q(x)" in code


def test_the_projections_of_a_gated_feed_forward_are_one_layer():
    text = """
    class Module(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.up_proj = nn.Linear(dim, 2 * dim, bias=False)
            self.down_proj = nn.Linear(2 * dim, dim)
            self.gate_proj = nn.Linear(dim, 2 * dim, bias=False)

        def forward(self, gate):
            if self.training: return self.down_proj(F.silu(self.gate_proj(gate)) * self.up_proj(gate))
            return self.down_proj(F.silu(self.gate_proj(gate)) * self.up_proj(gate))
    """
    code, table, _ = merged(text)
    assert table == {"up_gate_proj": ("up_proj", "gate_proj")}
    assert "MergedColumnParallelLinear(dim, [2 * dim, 2 * dim], bias=False, return_bias=False)" in code
    assert code.count("up, gate_proj = outputs_of(self.up_gate_proj, gate)") == 1
    ast.parse(code)


@pytest.mark.parametrize(
    ("members", "name"),
    [
        (("to_q", "to_k", "to_v"), "to_qkv"),
        (("add_q_proj", "add_k_proj", "add_v_proj"), "add_qkv_proj"),
        (("to_k_t", "to_v_t"), "to_kv_t"),
        (("w1", "w3"), "w13"),
        (("linear_1", "linear_2"), "linear_12"),
        (("wq", "wk", "wv"), "wqkv"),
        (("gate_proj", "up_proj"), "gate_up_proj"),
        (("to_key", "to_value"), "to_key_value"),
        (("proj", "gate_layer"), "proj_gate_layer"),
    ],
)
def test_names(members, name):
    assert merged_name(list(members)) == name


# --- whole models


@cache
def tree() -> SourceTree:
    return SourceTree(None)


@cache
def port(name: str, folder: Path) -> type[torch.nn.Module]:
    return load_model(write_models(folder, [port_model(tree(), get_target("porter"), name)])[name], name)


def model_and_checkpoint(name: str, folder: Path) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    cls, case = port(name, folder), model_spec.read(name)[0]
    original = random_original(getattr(__import__("diffusers"), name), case.config, 0)
    kwargs = get_transformer_config_kwargs(TransformerConfig.from_dict(case.config), cls)
    return cls(**kwargs), original.state_dict()


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Merged layers, one of each name."""
    kinds = (QKVParallelLinear, MergedColumnParallelLinear)
    table = getattr(model, "packed_modules_mapping", {})
    named = {path.rpartition(".")[2]: layer for path, layer in model.named_modules() if isinstance(layer, kinds)}
    return {name: layer for name, layer in named.items() if name in table}


@pytest.mark.parametrize("name", ["Krea2Transformer2DModel", "ZImageTransformer2DModel"])
def test_a_checkpoint_that_has_them_apart_is_loaded_whole(name, tmp_path):
    model, state = model_and_checkpoint(name, tmp_path)
    reported = model.load_weights(iter(state.items()))
    assert reported == set(model.state_dict())
    packing = [(layer, part) for layer, part, _ in model.stacked_params_mapping]
    assert compare_tensors(state, model.state_dict(), packing).passed
    assert {layer.strip(".") for layer, _, _ in model.stacked_params_mapping} == set(model.packed_modules_mapping)
    parts = [part.strip(".") for _, part, _ in model.stacked_params_mapping]
    assert parts == [part for held in model.packed_modules_mapping.values() for part in held]
    for layer in layers(model).values():  # one product for all is the same but for the order of its sums
        x = torch.randn(2, 7, layer.input_size)
        for mine, its in zip(layer.forward_parts(x), layer(x).split(layer.output_partition_sizes, dim=-1), strict=True):
            assert (mine - its).abs().max() <= 1e-5 * mine.abs().max()
    assert len(layers(model)) == len(model.packed_modules_mapping)


def test_a_checkpoint_that_lacks_a_part_is_refused_by_its_name(tmp_path):
    model, state = model_and_checkpoint("ZImageTransformer2DModel", tmp_path)
    lost = next(name for name in state if name.endswith("to_k.weight"))
    del state[lost]
    with pytest.raises(ValueError, match=f"lacks tensors of ZImageTransformer2DModel: {lost}$"):
        model.load_weights(iter(state.items()))


def test_an_unknown_name_is_refused(tmp_path):
    model, state = model_and_checkpoint("ZImageTransformer2DModel", tmp_path)
    with pytest.raises(ValueError, match=r"no parameter or buffer 'layers.0.attention.to_x.weight'"):
        model.load_weights(iter({"layers.0.attention.to_x.weight": torch.ones(1)}.items()))


def test_the_feature_says_what_stays_apart():
    _, found = build_model(tree(), get_target("porter"), find_model(tree(), "WanTransformer3DModel"))
    feature = found.features["merged_projections"]
    assert feature.state == "derived"
    assert feature.reason == "to_q: reads another value, or in another place"
