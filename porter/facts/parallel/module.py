"""What the constructor of a module builds, as far as splitting it over ranks asks for it."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from porter.facts.attention import HEAD_SIZE, HEADS, KV_HEADS
from porter.source.walk import walk

LINEAR = ("nn.Linear", "torch.nn.Linear")
PACKED = ("_tp_packed_col_blocks", "_tp_packed_row_blocks")
LISTS = ("nn.ModuleList", "torch.nn.ModuleList", "nn.Sequential", "torch.nn.Sequential")


@dataclass
class ModuleFacts:
    """A module class.

    Attributes:
        node: its tree.
        methods: by name.
        linears: constructions of projections, by attribute (``to_q``) or attribute and place (``to_out.0``).
        built: names of the classes that are built for an attribute.
        attention: attributes that hold the engine's attention layer.
        heads: attributes that say how many heads there are (of queries, or of keys and values).
        blocks: by projection, the widths of the parts that lie one after the other in its output or input, where the
            source says so (``_tp_packed_col_blocks``, ``_tp_packed_row_blocks``).
        head_sizes: attributes that say how wide a head is.
        widths: attributes that say how wide all heads are together, in a projection's output.
    """

    node: ast.ClassDef
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)
    linears: dict[str, ast.Call] = field(default_factory=dict)
    built: dict[str, list[str]] = field(default_factory=dict)
    constructions: dict[str, list[ast.Call]] = field(default_factory=dict)
    attention: dict[str, ast.Call] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)
    head_sizes: set[str] = field(default_factory=set)
    blocks: dict[str, ast.expr] = field(default_factory=dict)
    aliases: dict[str, ast.expr] = field(default_factory=dict)
    maybe_none: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.node.name

    def built_names(self) -> list[str]:
        """Names of the classes that are built for attributes, one for each construction."""
        return [kind for kinds in self.built.values() for kind in kinds]


def module_facts(node: ast.ClassDef) -> ModuleFacts | None:
    """The facts of a class; None for one that builds no projection."""
    facts = ModuleFacts(node)
    facts.methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    init = facts.methods.get("__init__")
    if init is None or "forward" not in facts.methods:
        return None
    counts: dict[str, int] = {}
    for statement in walk(init):
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                _assignment(facts, counts, target, statement.value)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            _append(facts, counts, statement.value)
    for name in list(facts.linears):
        if len(facts.built.get(name.split(".")[0], ())) > 1 and "." not in name:
            kinds = set(facts.built[name])
            if kinds != {"Linear"}:
                del facts.linears[name]
    _sizes(facts)
    return facts


def self_attribute(node: ast.AST) -> str | None:
    """``x`` of ``self.x``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def _assignment(facts: ModuleFacts, counts: dict[str, int], target: ast.expr, value: ast.expr) -> None:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for inner, part in zip(target.elts, value.elts):
            _assignment(facts, counts, inner, part)
        return
    if isinstance(target, ast.Attribute) and target.attr in PACKED:
        packed = self_attribute(target.value)
        if packed is not None:
            facts.blocks[packed] = value
        return
    name = self_attribute(target)
    if name is None:
        return
    facts.aliases[name] = value
    if isinstance(value, ast.Constant) and value.value is None:
        facts.maybe_none.add(name)
        return
    if not isinstance(value, ast.Call):
        is_activation = isinstance(value, ast.Subscript) and ast.unparse(value.value).startswith("ACT2")
        if is_activation:
            facts.built.setdefault(name, []).append("ACT2FN")
        return
    function = ast.unparse(value.func)
    if function in LISTS:
        facts.built.setdefault(name, []).append("ModuleList")
        counts[name] = 0
        given = value.args[0].elts if value.args and isinstance(value.args[0], ast.List) else value.args
        if not (value.args and isinstance(value.args[0], ast.ListComp | ast.GeneratorExp)):
            for item in given:
                _item(facts, counts, name, item)
        return
    facts.built.setdefault(name, []).append(function.split(".")[-1])
    facts.constructions.setdefault(name, []).append(value)
    if function in LINEAR:
        facts.linears[name] = value
    elif function == "Attention":
        facts.attention[name] = value
        del facts.built[name]


def _append(facts: ModuleFacts, counts: dict[str, int], call: ast.Call) -> None:
    if isinstance(call.func, ast.Attribute) and call.func.attr == "append" and len(call.args) == 1:
        name = self_attribute(call.func.value)
        if name in counts:
            _item(facts, counts, name, call.args[0])


def _item(facts: ModuleFacts, counts: dict[str, int], name: str, item: ast.expr) -> None:
    place = f"{name}.{counts[name]}"
    counts[name] += 1
    if isinstance(item, ast.Call):
        function = ast.unparse(item.func)
        facts.built.setdefault(place, []).append(function.split(".")[-1])
        if function in LINEAR:
            facts.linears[place] = item


def _sizes(facts: ModuleFacts) -> None:
    """Which attributes are numbers of heads and head sizes, from what the attention layers are built with."""
    for call in facts.attention.values():
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        for key, found in (("num_heads", facts.heads), ("num_kv_heads", facts.heads), ("head_size", facts.head_sizes)):
            if key in given:
                found.update(_same(facts, given[key]))
    if not facts.attention:
        facts.heads |= set(HEADS) & facts.aliases.keys()
        facts.head_sizes |= set(HEAD_SIZE) & facts.aliases.keys()
    facts.heads |= {name for name in KV_HEADS if name in facts.aliases}


def _same(facts: ModuleFacts, value: ast.expr) -> set[str]:
    """The attributes that hold a value, given as an attribute or as an expression of parameters."""
    name = self_attribute(value)
    text = ast.unparse(facts.aliases[name]) if name in facts.aliases else ast.unparse(value)
    found = {other for other, alias in facts.aliases.items() if ast.unparse(alias) == text and text != "None"}
    return found | ({name} if name else set())


def out_features(call: ast.Call) -> ast.expr | None:
    """The expression for the number of output features of a projection."""
    return _argument(call, 1, "out_features")


def in_features(call: ast.Call) -> ast.expr | None:
    """The expression for the number of input features of a projection."""
    return _argument(call, 0, "in_features")


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if len(call.args) > position else None
