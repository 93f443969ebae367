"""Split the modules of a model over the ranks of a tensor-parallel group."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

import libcst as cst

from porter.facts.attention import KV_HEADS
from porter.facts.parallel.file import blocks_of, plan_file
from porter.facts.parallel.flow import Edit, Plan
from porter.facts.parallel.module import LINEAR, ModuleFacts, out_features, self_attribute
from porter.facts.parallel.sizes import width_attributes
from porter.rules.engine import SAME, Rule, code, definitions, make_call, method, statements, visit, with_method
from porter.rules.fold import dotted
from porter.rules.model.head_parameters import PART, head_axes, of_rank
from porter.rules.model.parallel_edits import edited
from porter.rules.model.parallel_helpers import HELPERS, NEEDS
from porter.rules.model.parallel_helpers import LINEAR as LAYERS
from porter.rules.trees import nodes, to_ast
from porter.source.walk import walk

FEED_FORWARD = "diffusers.models.attention.FeedForward"


@dataclass
class SplitFile:
    """A file after its modules were split.

    Attributes:
        nodes: the definitions.
        imports: what they need beside what they had.
        helpers: definitions that come before all others.
        changed: indices of definitions that changed.
        whole: projections of repeated blocks that stay whole on every rank, with the reason, by class.
        plan: what is split, in plain values, by class.
        read: attributes that methods and functions read, constructors left out.
        trees: the definitions before they were split, by place.
        modules: the modules of the file, by name.
        plans: how those that are split are.
        apart: why projections that lie beside each other are not one layer, by class and names.
    """

    nodes: list[Any]
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    helpers: list[Any] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, dict[str, str]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    trees: dict[int, ast.stmt] = field(default_factory=dict)
    modules: dict[str, ModuleFacts] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    apart: dict[str, dict[str, str]] = field(default_factory=dict)


class TensorParallel(Rule):
    """Split projections over ranks: column-parallel into heads or a hidden width, row-parallel out of them.

    Which ones follows from the code (:mod:`porter.facts.parallel`): the output of a split projection is followed to
    attention and on to the projection that collects it. The rest stays ``nn.Linear``, the same on every rank:
    embedders, modulation and the last projection take little time and would cost a message each. Norms over all
    heads together share their sum of squares; tables of embeddings as wide as all heads are cut; where attention's
    result leaves a module unprojected it is put together.
    """

    name = "tensor-parallel"
    safety = SAME
    VALID = (
        """
        class ExampleNorm(nn.Module):
            def __init__(self, dim):
                super().__init__()
                self.linear = nn.Linear(dim, 2 * dim)

            def forward(self, hidden_states, temb):
                scale, shift = self.linear(temb).chunk(2, dim=-1)
                return hidden_states * scale + shift


        class ExampleTransformer2DModel(nn.Module):
            def __init__(self, dim):
                super().__init__()
                self.blocks = nn.ModuleList([ExampleNorm(dim)])
        """,
    )
    INVALID = (
        (
            """
            class ExampleAttention(nn.Module):
                def __init__(self, dim, heads):
                    super().__init__()
                    self.heads = heads
                    self.to_q = nn.Linear(dim, dim)
                    self.to_k = nn.Linear(dim, dim)
                    self.to_v = nn.Linear(dim, dim)
                    self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
                    self.attn = Attention(num_heads=self.heads, head_size=dim // self.heads)

                def forward(self, hidden_states):
                    query = self.to_q(hidden_states).unflatten(-1, (self.heads, -1))
                    key = self.to_k(hidden_states).unflatten(-1, (self.heads, -1))
                    value = self.to_v(hidden_states).unflatten(-1, (self.heads, -1))
                    return self.to_out[0](self.attn(query, key, value).flatten(2, 3))


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim, heads):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleAttention(dim, heads)])
            """,
            """
            class ExampleAttention(nn.Module):
                def __init__(self, dim, heads):
                    super().__init__()
                    self.heads = heads
                    self.to_q = ColumnParallelLinear(dim, dim, return_bias=False)
                    self.to_k = ColumnParallelLinear(dim, dim, return_bias=False)
                    self.to_v = ColumnParallelLinear(dim, dim, return_bias=False)
                    self.to_out = nn.ModuleList(
                        [RowParallelLinear(dim, dim, return_bias=False), nn.Dropout(0.0)]
                    )
                    self.attn = Attention(
                        num_heads=rank_share(self.heads, "heads"), head_size=dim // self.heads
                    )
                    self.heads = rank_share(self.heads, "heads")

                def forward(self, hidden_states):
                    query = self.to_q(hidden_states).unflatten(-1, (self.heads, -1))
                    key = self.to_k(hidden_states).unflatten(-1, (self.heads, -1))
                    value = self.to_v(hidden_states).unflatten(-1, (self.heads, -1))
                    return self.to_out[0](self.attn(query, key, value).flatten(2, 3))


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim, heads):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleAttention(dim, heads)])
            """,
        ),
    )

    def apply(self, definitions: list[Any], feed_forward: str | None = None) -> SplitFile:
        """Split the modules of a file.

        Args:
            definitions: its definitions.
            feed_forward: what diffusers' ``FeedForward`` is called in it, if it is there.
        """
        result = SplitFile(list(definitions))
        is_used = feed_forward is not None and any(f"{feed_forward}(" in code(node) for node in definitions)
        if not is_used and not any("Linear(" in code(node) for node in definitions):
            return result
        trees = {index: to_ast(node).body[0] for index, node in enumerate(definitions) if _is_definition(node)}
        every, modules = plan_file(list(trees.values()))
        plans = {name: plan for name, plan in every.items() if plan.columns}
        result.whole = {name: plan.whole for name, plan in every.items() if plan.whole}
        result.read = _attributes_read(list(trees.values()))
        result.trees, result.modules, result.plans = trees, modules, plans
        places = {node.name: index for index, node in trees.items() if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        for name, plan in plans.items():
            place = places[name]
            result.nodes[place] = self._module(result, result.nodes[place], modules[name], plan)
            result.changed.append(place)
            result.plan[name] = _plain(plan)
        for name, edits in _edits(plans).items():
            self._function(result, places, name, edits)
        if any(plan.attended for plan in plans.values()):
            self._head_parameters(result, blocks_of(list(trees.values())))
        if is_used and feed_forward is not None:
            self._feed_forwards(result, feed_forward)
        return result

    def _module(self, result: SplitFile, node: cst.ClassDef, facts: ModuleFacts, plan: Plan) -> cst.ClassDef:
        init = method(node, "__init__")
        assert init is not None
        kinds = _kinds(facts, plan)
        calls = [call for call in nodes(init.body, cst.Call) if dotted(call.func) in LINEAR]
        known = {id(call): name for name, call in facts.linears.items()}
        order = [known.get(id(call)) for call in _linear_calls(facts.methods["__init__"])]
        names = {id(call): name for call, name in zip(calls, order, strict=True) if name is not None and name in kinds}
        new = visit(init, _Layers(self, result, facts, plan, names, kinds))
        if plan.attended:
            new = self._shares(result, new, facts, plan)
        return with_method(node, new, "__init__")

    def layer(
        self, result: SplitFile, call: cst.Call, kind: str, facts: ModuleFacts, plan: Plan, name: str
    ) -> cst.Call:
        """The construction of a split projection."""
        renamed = {"in_features": "input_size", "out_features": "output_size"}
        args = [
            a.with_changes(keyword=cst.Name(renamed[a.keyword.value]))
            if a.keyword is not None and a.keyword.value in renamed
            else a
            for a in call.args
        ]
        if kind == "MergedColumnParallelLinear":
            count, outputs = plan.packed[name], code(args[1].value)
            sizes = f"[{_factor(outputs)} // {count}] * {count}" if count else ast.unparse(facts.blocks[name])
            args[1] = cst.Arg(cst.parse_expression(sizes))
        if kind == "PackedRowParallelLinear":
            args[0] = cst.Arg(cst.parse_expression(_input_sizes(facts, plan, name, code(args[0].value))))
            self.help(result, kind)
        else:
            result.imports[kind] = (LAYERS, kind)
        args = [a.with_changes(comma=cst.MaybeSentinel.DEFAULT) for a in args]
        return make_call(kind, [*args, "return_bias=False"])

    def _shares(self, result: SplitFile, init: cst.FunctionDef, facts: ModuleFacts, plan: Plan) -> cst.FunctionDef:
        """Numbers of heads and widths that other methods read are this rank's."""
        heads = sorted(facts.heads & facts.aliases.keys())
        split_widths = {
            self_attribute(outputs)
            for name in plan.columns
            if (outputs := out_features(facts.linears[name])) is not None
        }
        widths = sorted((width_attributes(facts) & split_widths & result.read | plan.widths) - facts.heads)
        lines = "".join(f'self.{name} = rank_share(self.{name}, "{name}")\n' for name in [*heads, *widths])
        for name in (argument.arg for argument in facts.methods["__init__"].args.args):
            if name in KV_HEADS and name not in facts.heads:
                lines = f'if {name} is not None:\n    rank_share({name}, "{name}")\n' + lines
        if not lines:
            return init
        self.help(result, "rank_share")
        return init.with_changes(body=init.body.with_changes(body=[*init.body.body, *statements(lines)]))

    def _function(self, result: SplitFile, places: dict[str, int], name: str, edits: frozenset[Edit]) -> None:
        owner, _, member = name.rpartition(".")
        place = places[owner or member]
        node = result.nodes[place]
        function = method(node, member) if owner else node
        assert function is not None
        new, needs = edited(function, edits)
        for need in sorted(needs):
            if need in HELPERS:
                self.help(result, need)
            else:
                result.imports[need] = ("vllm.distributed", need)
        result.nodes[place] = with_method(node, new, member) if owner else new
        result.changed.append(place)

    def _head_parameters(self, result: SplitFile, inside: set[str]) -> None:
        """What the model itself, outside of its blocks, has for each head, a rank takes for its own."""
        models = ((p, n) for p, n in result.trees.items() if isinstance(n, ast.ClassDef) and n.name not in inside)
        for place, tree in models:
            axes = head_axes(tree)
            if axes:
                result.nodes[place] = of_rank(result.nodes[place], axes)
                result.changed.append(place)
                result.plan[tree.name] = {"heads": axes}
                self.help(result, PART)

    def _feed_forwards(self, result: SplitFile, name: str) -> None:
        """Build diffusers' feed-forwards split; the class itself is as it was."""
        result.plan[name] = "diffusers"
        rename = _Construct(name, "ParallelFeedForward")
        own = next(
            (i for i, node in enumerate(result.nodes) if getattr(getattr(node, "name", None), "value", 0) == name), None
        )
        for place, node in enumerate(result.nodes):
            if place != own and f"{name}(" in code(node):
                result.nodes[place] = visit(node, rename)
                result.changed.append(place)
        self.help(result, "ParallelFeedForward", name)

    def help(self, result: SplitFile, name: str, base: str = "FeedForward") -> None:
        """Put a helper into the file, once, with what it needs."""
        for needed in NEEDS.get(name, ()):
            self.help(result, needed)
        text, imports = HELPERS[name]
        if not any(node.name.value == name for node in result.helpers):
            text = text.replace("(FeedForward)", f"({base})")
            result.helpers += definitions(text)
            result.imports |= imports


class _Layers(cst.CSTTransformer):
    """Puts split layers in the place of projections, and this rank's heads into attention layers."""

    def __init__(
        self,
        rule: TensorParallel,
        result: SplitFile,
        facts: ModuleFacts,
        plan: Plan,
        names: dict[int, str],
        kinds: dict[str, str],
    ) -> None:
        self.rule, self.result, self.facts, self.plan, self.names, self.kinds = rule, result, facts, plan, names, kinds

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        name = self.names.get(id(original))
        if name is not None:
            return self.rule.layer(self.result, updated, self.kinds[name], self.facts, self.plan, name)
        if self.plan.attended and dotted(updated.func) == "Attention":
            self.rule.help(self.result, "rank_share")
            return updated.with_changes(args=[_shared(argument) for argument in updated.args])
        return updated


class _Construct(cst.CSTTransformer):
    """Calls one class instead of another."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        is_old = isinstance(updated.func, cst.Name) and updated.func.value == self.old
        return updated.with_changes(func=cst.Name(self.new)) if is_old else updated


def _shared(argument: cst.Arg) -> cst.Arg:
    name = argument.keyword.value if argument.keyword else ""
    if name not in ("num_heads", "num_kv_heads"):
        return argument
    value = code(argument.value)
    what = value.rpartition(".")[2] if value.replace(".", "").isidentifier() else name
    return argument.with_changes(value=cst.parse_expression(f'rank_share({value}, "{what}")'))


def _attributes_read(definitions: list[ast.stmt]) -> set[str]:
    found: set[str] = set()
    for definition in definitions:
        functions = definition.body if isinstance(definition, ast.ClassDef) else [definition]
        for function in functions:
            if isinstance(function, ast.FunctionDef) and function.name != "__init__":
                found |= {node.attr for node in walk(function) if isinstance(node, ast.Attribute)}
    return found


def _is_definition(node: Any) -> bool:
    return isinstance(node, cst.ClassDef | cst.FunctionDef)


def _kinds(facts: ModuleFacts, plan: Plan) -> dict[str, str]:
    """The layer that each split projection becomes."""
    kinds = {
        name: "MergedColumnParallelLinear" if name in plan.packed else "ColumnParallelLinear" for name in plan.columns
    }
    for name, parts in plan.rows.items():
        kinds[name] = "PackedRowParallelLinear" if len(parts) > 1 else "RowParallelLinear"
    return kinds


def _linear_calls(init: ast.FunctionDef) -> list[ast.Call]:
    from porter.facts.parallel.flow import preorder

    return [n for n in preorder(init) if isinstance(n, ast.Call) and ast.unparse(n.func) in LINEAR]


def _plain(plan: Plan) -> dict[str, Any]:
    """A plan in plain values, sorted."""
    return {
        "columns": {name: plan.packed.get(name) for name in sorted(plan.columns)},
        "rows": {name: [sorted(part) for part in parts] for name, parts in plan.rows.items()},
        "edits": {name: sorted(map(str, edits)) for name, edits in plan.edits.items() if edits},
        "widths": sorted(plan.widths),
    }


def _edits(plans: dict[str, Plan]) -> dict[str, frozenset[Edit]]:
    """What is to be changed in functions, by qualified name; modules that share one agree about it."""
    found: dict[str, frozenset[Edit]] = {}
    for plan in plans.values():
        for name, edits in plan.edits.items():
            wanted = frozenset(edit for edit in edits if edit[0] != "plain norm")
            if wanted:
                found[name] = wanted
    return found


def _input_sizes(facts: ModuleFacts, plan: Plan, name: str, inputs: str) -> str:
    """The text of the widths that lie one after the other in a projection's input."""
    if name in facts.blocks:
        return ast.unparse(facts.blocks[name])
    sizes = ["" if part & plan.inner.keys() else _width(facts, part) for part in plan.rows[name]]
    rest = " - ".join([_factor(inputs), *(_factor(size) for size in sizes if size)])
    return f"[{', '.join(size or rest for size in sizes)}]"


def _width(facts: ModuleFacts, names: frozenset[str]) -> str:
    """The text of how many outputs a projection has."""
    outputs = out_features(facts.linears[sorted(names)[0]])
    return ast.unparse(outputs) if outputs is not None else "0"


def _factor(text: str) -> str:
    return text if text.replace(".", "").replace("_", "").isalnum() else f"({text})"
