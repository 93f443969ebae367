"""Make one layer of projections that always read the same input."""

from __future__ import annotations

from functools import cache
from typing import Any

import libcst as cst

from porter.facts.parallel.merged import Merge, find_merges
from porter.rules.engine import SAME, Rule, bare, code, identifiers, make_call, method, statements, visit, with_method
from porter.rules.fold import dotted
from porter.rules.model.load_weights import LOAD_MERGED_WEIGHTS, LOAD_WEIGHTS, mappings
from porter.rules.model.merged_calls import MergedCalls
from porter.rules.model.parallel_helpers import LINEAR as LAYERS
from porter.rules.model.tensor_parallel import SplitFile, TensorParallel


class MergeProjections(Rule):
    """Make query, key and value one ``QKVParallelLinear``, and pairs of projections of one input one layer.

    Which ones follows from the code (:mod:`porter.facts.parallel.merged`): wherever one is applied, the others are,
    to the same value. Keys and values alone, and the two projections of a gated feed-forward, become a
    ``MergedColumnParallelLinear``. One table of the model says which layer holds which projections: it loads the
    checkpoint, which has them apart, and adapters and lists of layers that are not quantized find them under their
    diffusers names by it. ``outputs_of`` gives the outputs apart again.
    """

    name = "merge-projections"
    safety = SAME
    VALID = (
        """
        class ExampleAttention(nn.Module):
            def __init__(self, dim, heads):
                super().__init__()
                self.heads = heads
                self.to_q = nn.Linear(dim, dim)
                self.to_gate = nn.Linear(dim, dim)

            def forward(self, hidden_states, context):
                return self.to_q(hidden_states) * self.to_gate(context)


        class ExampleTransformer2DModel(nn.Module):
            def __init__(self, dim, heads):
                super().__init__()
                self.blocks = nn.ModuleList([ExampleAttention(dim, heads)])
        """,
    )
    INVALID = (
        (
            """
            class ExampleFeedForward(nn.Module):
                def __init__(self, dim, hidden_dim):
                    super().__init__()
                    self.w1 = nn.Linear(dim, hidden_dim, bias=False)
                    self.w2 = nn.Linear(hidden_dim, dim, bias=False)
                    self.w3 = nn.Linear(dim, hidden_dim, bias=False)

                def forward(self, x):
                    return self.w2(F.silu(self.w1(x)) * self.w3(x))


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim, hidden_dim):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleFeedForward(dim, hidden_dim)])
            """,
            """
            class ExampleFeedForward(nn.Module):
                def __init__(self, dim, hidden_dim):
                    super().__init__()
                    rank_share(hidden_dim, "hidden_dim")
                    self.w13 = MergedColumnParallelLinear(
                        dim, [hidden_dim, hidden_dim], bias=False, return_bias=False
                    )
                    self.w2 = RowParallelLinear(hidden_dim, dim, bias=False, return_bias=False)

                def forward(self, x):
                    w1, w3 = outputs_of(self.w13, x)
                    return self.w2(F.silu(w1) * w3)


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim, hidden_dim):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleFeedForward(dim, hidden_dim)])
            """,
        ),
    )

    def apply(self, split: SplitFile) -> tuple[list[int], list[tuple[Any, ...]]]:
        """Merge what was split; the places of what changed, and the table: layer, projections, parts.

        Args:
            split: the file after :class:`TensorParallel`; changed in place.
        """
        if not split.trees or not all(_loads_plainly(node) for node in split.nodes):
            return [], []
        search = find_merges(list(split.trees.values()), split.modules, split.plans)
        found, split.apart = search.merges, search.apart
        table = {merge.name: (merge.members, merge.shards) for merges in found.values() for merge in merges}
        if not table:
            return [], []
        members = {member for merges in found.values() for merge in merges for member in merge.members}
        changed = []
        for place, node in enumerate(split.nodes):
            if place not in split.trees or not members & identifiers(node):
                continue
            name = node.name.value
            new = visit(node, MergedCalls(name, search))
            if name in found:
                new = _built(new, found[name])
            if new is not node:
                split.nodes[place] = new
                changed.append(place)
        for merges in found.values():
            split.imports |= {merge.layer.kind: (LAYERS, merge.layer.kind) for merge in merges}
        rows = [(name, *table[name]) for name in sorted(table)]
        for place, node in enumerate(split.nodes):
            if isinstance(node, cst.ClassDef) and method(node, "load_weights") is not None:
                split.nodes[place] = _with_table(node, rows)
                changed.append(place)
        TensorParallel().help(split, "outputs_of")
        if any(merge.layer.sizes for merges in found.values() for merge in merges):
            TensorParallel().help(split, "rank_share")
        return sorted(set(changed)), rows


def _loads_plainly(node: Any) -> bool:
    """Whether a class has no loading of its own, which would look for the projections one by one."""
    loading = method(node, "load_weights") if isinstance(node, cst.ClassDef) else None
    return loading is None or bare(loading) == bare(_loading(LOAD_WEIGHTS))


@cache
def _loading(text: str) -> Any:
    return statements(text)[0]


def _with_table(node: cst.ClassDef, rows: list[tuple[Any, ...]]) -> cst.ClassDef:
    loading = method(node, "load_weights")
    assert loading is not None
    new = _loading(LOAD_MERGED_WEIGHTS).with_changes(leading_lines=loading.leading_lines)
    node = with_method(node, new, "load_weights")
    body = list(node.body.body)
    at = next(i for i, item in enumerate(body) if isinstance(item, cst.FunctionDef))
    body[at:at] = statements(mappings(rows))
    return node.with_changes(body=node.body.with_changes(body=body))


def _built(node: cst.ClassDef, merges: list[Merge]) -> cst.ClassDef:
    init = method(node, "__init__")
    assert init is not None
    return with_method(node, visit(init, _Constructions(merges)), "__init__")


class _Constructions(cst.CSTTransformer):
    """Builds one layer where its first projection was built; the others are gone."""

    def __init__(self, merges: list[Merge]) -> None:
        self.merges = {member: merge for merge in merges for member in merge.members}
        self.done: set[str] = set()

    def leave_SimpleStatementLine(self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine) -> Any:
        small = updated.body[0]
        if len(updated.body) != 1 or not isinstance(small, cst.Assign):
            return updated
        held = [self.merges.get(_member(target.target)) for target in small.targets]
        if not any(held):
            return updated
        if isinstance(small.value, cst.Call):
            merge = held[0]
            assert merge is not None
            if merge.name in self.done:
                return cst.RemoveFromParent()
            self.done.add(merge.name)
            call = make_call(merge.layer.kind, [*merge.layer.arguments, "return_bias=False"])
            target = small.targets[0].with_changes(target=cst.parse_expression(f"self.{merge.name}"))
            line = updated.with_changes(body=[small.with_changes(targets=[target], value=call)])
            return cst.FlattenSentinel([*statements(_shares(merge)), line])
        renamed = dict.fromkeys(f"self.{m.name}" if m else code(t.target) for t, m in zip(small.targets, held))
        targets: list[Any] = [cst.parse_expression(name) for name in renamed]
        targets = [cst.AssignTarget(target) for target in targets]
        return updated.with_changes(body=[small.with_changes(targets=targets)])

    def leave_IndentedBlock(self, original: cst.IndentedBlock, updated: cst.IndentedBlock) -> cst.IndentedBlock:
        """``self.add_qkv_proj = None`` is said once."""
        if updated is original:
            return updated
        body: list[Any] = []
        for item in updated.body:
            if not (body and item not in original.body and bare(item) == bare(body[-1])):
                body.append(item)
        return updated.with_changes(body=body)


def _shares(merge: Merge) -> str:
    """Lines that refuse, in words, a width that ranks cannot share."""
    lines = []
    for size in merge.layer.sizes:
        plain = size.replace(".", "").isidentifier()
        what = size.rpartition(".")[2] if plain else f"outputs of {merge.name}"
        lines.append(f'rank_share({size}, "{what}")\n')
    return "".join(lines)


def _member(node: cst.BaseExpression) -> str:
    name = dotted(node) or ""
    return name.removeprefix("self.") if name.startswith("self.") and name.count(".") == 1 else ""
