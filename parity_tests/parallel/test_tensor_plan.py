"""What is derived for tensor parallelism: by diffusers' own plans, and by small modules of every kind."""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from pathlib import Path

import libcst as cst
import pytest
import torch

from porter.facts.parallel.file import plan_file
from porter.model_port import build_model, find_model, load_model, port_model, write_models
from porter.parity import model_spec
from porter.rules.model.head_parameters import head_axes, of_rank
from porter.runtime.diffusion.data import TransformerConfig
from porter.runtime.diffusion.utils.tf_utils import get_transformer_config_kwargs
from porter.runtime.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    RowParallelLinear,
)
from porter.source import SourceTree
from porter.targets import get_target


@cache
def tree() -> SourceTree:
    return SourceTree(None)


def with_tp_plan() -> list[str]:
    """Classes for which diffusers says itself how they are split."""
    found = []
    for file in sorted((tree().root / "models" / "transformers").glob("*.py")):
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and their_plan(node):
                found.append(node.name)
    return [name for name in found if name in model_spec.available()]


def their_plan(node: ast.ClassDef) -> dict[str, str]:
    for item in node.body:
        if (
            isinstance(item, ast.Assign)
            and ast.unparse(item.targets[0]) == "_tp_plan"
            and isinstance(item.value, ast.Dict)
        ):
            return {key.value: ast.unparse(value) for key, value in zip(item.value.keys, item.value.values)}
    return {}


def built(name: str, folder: Path) -> torch.nn.Module:
    """A port of a model class, in its first small configuration."""
    cls = load_model(write_models(folder, [port_model(tree(), get_target("porter"), name)])[name], name)
    config = TransformerConfig.from_dict(model_spec.read(name)[0].config)
    return cls(**get_transformer_config_kwargs(config, cls))


def holder(model: torch.nn.Module, path: str) -> str:
    """The layer that holds a projection: itself, or the one that it was merged into."""
    for layer, part, _ in getattr(model, "stacked_params_mapping", ()):
        if f"{path}.".endswith(part):
            return f"{path}.".removesuffix(part) + layer.removesuffix(".")
    return path


@pytest.mark.parametrize("name", with_tp_plan())
def test_what_is_derived_agrees_with_diffusers_own_plan(name, tmp_path):
    node = find_model(tree(), name).node
    model = built(name, tmp_path)
    expected = {}
    for path, kind in their_plan(node).items():
        parts = path.split(".*.")
        for place in range(len(model.get_submodule(parts[0]))):
            expected[holder(model, f"{parts[0]}.{place}.{parts[1]}")] = kind
    for path, kind in expected.items():
        layer = model.get_submodule(path)
        assert isinstance(layer, ColumnParallelLinear if "col" in kind.lower() else RowParallelLinear), path
        if "Packed" in kind:
            assert isinstance(layer, MergedColumnParallelLinear) or type(layer).__name__ == "PackedRowParallelLinear", (
                path
            )
    split = {path for path, m in model.named_modules() if isinstance(m, ColumnParallelLinear | RowParallelLinear)}
    assert split == set(expected)


def test_there_are_classes_with_a_plan_to_agree_with():
    assert len(with_tp_plan()) >= 3


BLOCKS = """
class Model(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.blocks = nn.ModuleList([Module(dim)])
"""


def plan(text: str):
    definitions = ast.parse(textwrap.dedent(text) + BLOCKS).body
    return plan_file(definitions)[0]["Module"]


def attention(forward: str, more: str = "") -> str:
    head = """
class Module(nn.Module):
    def __init__(self, dim, heads=4):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.norm = nn.RMSNorm(dim)
"""
    layer = "        self.attn = Attention(num_heads=self.heads, head_size=dim // heads)\n"
    return (
        head
        + textwrap.indent(textwrap.dedent(more), " " * 8)
        + layer
        + textwrap.indent(textwrap.dedent(forward), " " * 4)
    )


PLAIN = """
def forward(self, x, table=None):
    q = self.to_q(x)
    k = self.to_k(x)
    {change}
    q = q.unflatten(-1, (self.heads, -1))
    k = k.unflatten(-1, (self.heads, -1))
    v = self.to_v(x).unflatten(-1, (self.heads, -1))
    return self.to_out(self.attn(q, k, v).flatten(2, 3))
"""


def test_heads_are_split_and_collected():
    found = plan(attention(PLAIN.format(change="pass")))
    assert found.columns == {"to_q", "to_k", "to_v"}
    assert set(found.rows) == {"to_out"}


def test_a_norm_over_all_heads_shares_its_sum():
    found = plan(attention(PLAIN.format(change="q = self.norm(q)")))
    assert found.edits["Module.forward"] == {("norm", "norm")}


@pytest.mark.parametrize(
    "change",
    [
        "q = q - q.mean(-1, keepdim=True)",  # over a width of which there is a part
        "q = q + table",  # which is as wide as all heads
        "q = q[..., :8]",
        "q = torch.cat([q, x], dim=-1)",
        "q = helper(q)",  # nobody knows what it does
        "self.kept = q",
    ],
)
def test_what_would_differ_between_ranks_stays_whole(change):
    found = plan(attention(PLAIN.format(change=change)))
    assert not found.columns
    assert not found.rows
    assert "to_q" in found.whole


def test_attention_that_leaves_unprojected_is_put_together():
    text = attention(
        PLAIN.format(change="pass").replace(
            "self.to_out(self.attn(q, k, v).flatten(2, 3))", "self.attn(q, k, v).flatten(2, 3)"
        )
    )
    found = plan(text)
    assert found.columns == {"to_q", "to_k", "to_v"}
    assert found.edits["Module.forward"] == {("return", 0, None)}


def test_a_fused_projection_is_split_part_by_part():
    forward = """
    def forward(self, x):
        q, k, v = self.to_q(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        return self.to_out(self.attn(q, k, v).flatten(2, 3))
    """
    found = plan(attention(forward))
    assert found.packed == {"to_q": 3}
    assert found.columns == {"to_q"}


def test_a_gated_feed_forward_is_split():
    text = """
    class Module(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.up, self.gate, self.down = nn.Linear(dim, 8), nn.Linear(dim, 8), nn.Linear(8, dim)

        def forward(self, x):
            return self.down(F.silu(self.gate(x)) * self.up(x))
    """
    found = plan(text)
    assert found.columns == {"up", "gate"}
    assert set(found.rows) == {"down"}


def test_modulation_stays_whole():
    text = """
    class Module(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.linear = nn.Linear(dim, 2 * dim)
            self.proj = nn.Linear(dim, dim)

        def forward(self, x, temb):
            scale, shift = self.linear(temb).chunk(2, dim=-1)
            return self.proj(x * scale + shift)
    """
    assert not plan(text).columns


def test_heads_that_ranks_cannot_share_are_refused_in_words(tmp_path, monkeypatch):
    name = "FluxTransformer2DModel"
    file = write_models(tmp_path, [port_model(tree(), get_target("porter"), name)])[name]
    cls = load_model(file, name)
    module = __import__("sys").modules[cls.__module__]
    monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 7)
    config = TransformerConfig.from_dict(model_spec.read(name)[0].config)
    with pytest.raises(ValueError, match="cannot be divided by tensor_parallel_size = 7"):
        cls(**get_transformer_config_kwargs(config, cls))


def test_what_is_split_is_named_in_the_features_of_a_file():
    _, ported = build_model(tree(), get_target("porter"), find_model(tree(), "FluxTransformer2DModel"))
    assert ported.features["tensor_parallel"].state == "derived"
    assert ported.features["sequence_parallel"].state == "derived"


PER_HEAD = """
class ExampleTransformer3DModel(nn.Module):
    def __init__(self, num_attention_heads, size):
        super().__init__()
        self.frequencies = nn.Parameter(torch.full((3, num_attention_heads, size // 2), 0.0))
        self.both = nn.Parameter(torch.zeros([num_attention_heads, num_attention_heads]))
        self.table = nn.Parameter(torch.zeros(6, size))
        self.count = num_attention_heads

    def forward(self, positions):
        return self.rope(self.frequencies, positions) + self.table, self.count
"""


def test_a_rank_takes_its_heads_of_what_a_model_has_for_each():
    model = cst.ensure_type(cst.parse_statement(PER_HEAD.strip()), cst.ClassDef)
    axes = head_axes(ast.parse(PER_HEAD).body[0])
    assert axes == {"frequencies": 1}
    text = cst.Module([of_rank(model, axes)]).code
    assert "self.rope(rank_part(self.frequencies, 1), positions) + self.table, self.count" in text
    assert text.count("rank_part") == 1
