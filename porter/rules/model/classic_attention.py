"""Specialise diffusers' classic ``Attention`` by what a call site passes to it."""

from __future__ import annotations

import ast
import re
from typing import Any

import libcst as cst

from porter.rules.engine import (
    SURFACE,
    Context,
    Rule,
    body_statements,
    code,
    method,
    names_in,
    names_read,
    parameters,
    visit,
    with_method,
)
from porter.rules.fold import NOT_NONE, UNKNOWN, Facts, bindings, dotted, fold, fold_function, only
from porter.rules.model.dead import RaiseOnNone, WithoutUnitFactors, without_dead
from porter.rules.model.mixins import METHODS
from porter.rules.model.processors import FoldProcessor
from porter.rules.trees import Substitution
from porter.source import Definition

MODULE = "diffusers.models.attention_processor"
DEFAULT_PROCESSOR = "AttnProcessor2_0"
UNSCALED_PROCESSOR = "AttnProcessor"


class ClassicAttention(Rule):
    """Specialise the classic ``Attention`` into a plain module that holds what the call site uses.

    ``Attention`` takes 27 constructor arguments; a call site fixes most of them. Its constructor is folded by the
    constant ones, its processor becomes its forward, what neither reads is gone. Parameters keep their names.
    """

    name = "specialise-attention"
    safety = SURFACE
    VALID = (
        """
        from ..attention_processor import Attention


        class ExampleBlock(nn.Module):
            def __init__(self, dim, processor):
                super().__init__()
                self.attn = Attention(query_dim=dim, processor=processor)
        """,
    )
    INVALID = (
        (
            """
            from ..attention_processor import Attention


            class ExampleBlock(nn.Module):
                def __init__(self, dim: int, heads: int):
                    super().__init__()
                    self.attn = Attention(query_dim=dim, heads=heads, dim_head=64, bias=True)
            """,
            '''
            from ..attention_processor import Attention


            class ExampleAttention(nn.Module):
                """``Attention`` of diffusers as ExampleAttention needs it, with AttnProcessor2_0 as its forward."""

                def __init__(self, query_dim, heads):
                    super().__init__()
                    self.heads = heads
                    self.to_q = nn.Linear(query_dim, heads * 64, bias=True)

                def forward(self, hidden_states, **cross_attention_kwargs):
                    query = self.to_q(hidden_states)
                    return self.split(query)

                def split(self, tensor):
                    return tensor.unflatten(-1, (self.heads, -1))


            class ExampleBlock(nn.Module):
                def __init__(self, dim: int, heads: int):
                    super().__init__()
                    self.attn = ExampleAttention(query_dim=dim, heads=heads)
            ''',
        ),
        (
            """
            from ..attention_processor import Attention


            class ExampleAttnProcessor:
                def __call__(self, attn, hidden_states):
                    query = attn.to_q(hidden_states)
                    return query if attn.norm_q is None else attn.norm_q(query)


            class ExampleBlock(nn.Module):
                def __init__(self, dim: int):
                    super().__init__()
                    self.attn = Attention(query_dim=dim, qk_norm="layer_norm", processor=ExampleAttnProcessor())
            """,
            '''
            from ..attention_processor import Attention


            class ExampleAttention(nn.Module):
                """``Attention`` of diffusers as ExampleAttention needs it, with ExampleAttnProcessor as its forward."""

                def __init__(self, query_dim):
                    super().__init__()
                    self.norm_q = nn.LayerNorm(query_dim)
                    self.to_q = nn.Linear(query_dim, 8 * 64, bias=False)

                def forward(self, hidden_states, **cross_attention_kwargs):
                    query = self.to_q(hidden_states)
                    return self.norm_q(query)


            class ExampleAttnProcessor:
                def __call__(self, attn, hidden_states):
                    query = attn.to_q(hidden_states)
                    return query if attn.norm_q is None else attn.norm_q(query)


            class ExampleBlock(nn.Module):
                def __init__(self, dim: int):
                    super().__init__()
                    self.attn = ExampleAttention(query_dim=dim)
            ''',
        ),
    )

    def specialise(
        self,
        ctx: Context,
        name: str,
        given: dict[str, cst.BaseExpression],
        known: dict[str, Any],
        processor: Definition,
    ) -> cst.ClassDef:
        """The classic class as the site uses it.

        Args:
            name: the name of the new class.
            given: arguments of the call, by parameter name.
            known: parameters with a constant value (defaults included) or ``NOT_NONE``.
            processor: the processor class that serves the site.
        """
        node = _classic_source(ctx)
        node = node.with_changes(name=cst.Name(name), decorators=[], leading_lines=[])
        constants = {k: v for k, v in known.items() if v is not NOT_NONE}
        node = with_method(node, self._constructor(ctx, node, known, constants, given), "__init__")
        parsed = processor.parse()
        assert isinstance(parsed, cst.ClassDef)
        node = FoldProcessor().apply(ctx, node, parsed)
        node = self._fold_methods(node, constants)
        ctx.used(self)
        return _doc(node, f'"""``Attention`` of diffusers as {name} needs it, with {processor.name} as its forward."""')

    def _constructor(
        self,
        ctx: Context,
        node: cst.ClassDef,
        known: dict[str, Any],
        constants: dict[str, Any],
        given: dict[str, cst.BaseExpression],
    ) -> cst.FunctionDef:
        init = method(node, "__init__")
        assert init is not None
        body = []
        for item in body_statements(init):
            local = isinstance(only(item), cst.ImportFrom)
            if local:
                for alias in item.body[0].names:
                    ctx.need("diffusers.models." + code(item.body[0].module), alias.name.value)
            else:
                body.append(item)
        init = init.with_changes(body=init.body.with_changes(body=body))
        facts = Facts(known)
        while True:  # constants travel from attribute to attribute
            init = fold(init, facts)
            found = facts.merged(_constant_attributes(init, facts))
            if found.values == facts.values:
                break
            facts = found
        substituted: Any = visit(visit(init, RaiseOnNone(constants)), _Substitute(constants))
        init = substituted
        assert init is not None
        params = [
            p.with_changes(default=None, equal=cst.MaybeSentinel.DEFAULT, comma=cst.MaybeSentinel.DEFAULT)
            for p in parameters(init)
            if p.name.value == "self" or (p.name.value in given and p.name.value not in constants)
        ]
        return init.with_changes(params=cst.Parameters(params=params), leading_lines=[])

    def _fold_methods(self, node: cst.ClassDef, constants: dict[str, Any]) -> cst.ClassDef:
        init = method(node, "__init__")
        assert init is not None
        attributes = _constant_attributes(init, Facts(constants))
        calls = {"len": lambda call: 0 if code(call) == "len(args)" else UNKNOWN, "kwargs.get": lambda call: None}
        facts = Facts(attributes, calls)
        methods = {i.name.value: i for i in node.body.body if isinstance(i, cst.FunctionDef)}
        kept: dict[str, Any] = {"__init__": init}
        queue = ["forward"]
        while queue:
            current = queue.pop(0)
            folded = fold_function(methods[current], facts)
            kept[current] = visit(without_dead(methods[current], folded), WithoutUnitFactors(attributes))
            for name in re.findall(r"self\.(\w+)\(", code(kept[current])):
                if name in methods and name not in kept and name not in queue:
                    queue.append(name)
        kept["__init__"] = _without_unread_parameters(_without_unread(init, kept, attributes))
        body = [
            kept[name].with_changes(leading_lines=[cst.EmptyLine(indent=False)]) for name in methods if name in kept
        ]
        return node.with_changes(body=node.body.with_changes(body=body))


def _classic_source(ctx: Context) -> cst.ClassDef:
    """The parsed classic class, without the methods of the processor machinery; parsed once for a tree."""
    if "classic" not in ctx.tree.cache:
        source = ctx.tree.resolve(MODULE, "Attention")
        assert source is not None
        node = source.parse()
        assert isinstance(node, cst.ClassDef)
        body = [i for i in node.body.body if not (isinstance(i, cst.FunctionDef) and i.name.value in METHODS)]
        ctx.tree.cache["classic"] = node.with_changes(body=node.body.with_changes(body=body))
    return ctx.tree.cache["classic"]


class _Substitute(Substitution):
    """Puts constants in the place of parameters that are read."""

    def __init__(self, constants: dict[str, Any]) -> None:
        self.constants = constants

    def visit_Parameters(self, node: cst.Parameters) -> bool:
        return False

    def leave_AssignTarget(self, original: cst.AssignTarget, updated: cst.AssignTarget) -> cst.AssignTarget:
        return original

    def leave_FunctionDef(self, original: cst.FunctionDef, updated: cst.FunctionDef) -> cst.FunctionDef:
        return updated if updated.name is original.name else updated.with_changes(name=original.name)

    def leave_Name(self, original: cst.Name, updated: cst.Name) -> cst.BaseExpression:
        if updated.value in self.constants:
            return cst.parse_expression(repr(self.constants[updated.value]))
        return updated


def _constant_attributes(init: cst.FunctionDef, facts: Facts) -> dict[str, Any]:
    """``self.x`` that the constructor sets once, unconditionally, to a constant or to something that is not None."""
    counts = bindings(init.body).counts
    found: dict[str, Any] = {}
    for item in body_statements(init):
        if _assigned_attribute(item) is None:
            continue
        assign = item.body[0]
        name = dotted(assign.targets[0].target)
        if not name or counts.get(name) != 1:
            continue
        value = facts.merged(found).value(assign.value)
        if isinstance(assign.value, cst.Call):
            value = NOT_NONE
        if value is not UNKNOWN:
            found[name] = value
    return found


def _without_unread(init: cst.FunctionDef, kept: dict[str, Any], constants: dict[str, Any]) -> cst.FunctionDef:
    """The constructor without constant attributes that no remaining method reads."""
    texts = " ".join(code(f.body) for name, f in kept.items() if name != "__init__")
    items = [(item, code(item)) for item in init.body.body]
    while True:
        remaining = []
        for item, text in items:
            name = _assigned_attribute(item)
            if name:
                rest = " ".join(other for node, other in items if node is not item)
                value = item.body[0].value  # type: ignore[union-attr]
                is_module = constants.get(name) is NOT_NONE and isinstance(value, cst.Call)
                if not is_module and not re.search(rf"\b{re.escape(name)}\b", texts + " " + rest):
                    continue
            remaining.append((item, text))
        if len(remaining) == len(items):
            return init.with_changes(body=init.body.with_changes(body=[item for item, _ in items]))
        items = remaining


def _without_unread_parameters(init: cst.FunctionDef) -> cst.FunctionDef:
    read = {"self", *names_read(init.body)}
    return init.with_changes(params=cst.Parameters(params=[p for p in parameters(init) if p.name.value in read]))


def _assigned_attribute(item: cst.CSTNode) -> str | None:
    """``self.x`` of a statement ``self.x = …``."""
    node = only(item)
    target = node.targets[0].target if isinstance(node, cst.Assign) and len(node.targets) == 1 else None
    return dotted(target) if isinstance(target, cst.Attribute) else None


def _doc(node: cst.ClassDef, text: str) -> cst.ClassDef:
    return node.with_changes(body=node.body.with_changes(body=[cst.parse_statement(text), *node.body.body]))


def known_parameters(
    defaults: ast.FunctionDef, given: dict[str, cst.BaseExpression], not_none: set[str]
) -> dict[str, Any]:
    """What a call of the classic constructor fixes: constants, defaults it leaves, names that cannot be None."""
    args = defaults.args.args[1:]
    known: dict[str, Any] = {}
    offset = len(args) - len(defaults.args.defaults)
    for index, arg in enumerate(args):
        if arg.arg in given:
            node = given[arg.arg]
            value = Facts().value(node)
            # A conditional expression or a call may be None though its names are not.
            plain = isinstance(node, cst.Name | cst.BinaryOperation)
            if value is UNKNOWN and plain and set(names_in(node)) <= not_none:
                value = NOT_NONE
            if value is not UNKNOWN:
                known[arg.arg] = value
        elif index >= offset:
            default = defaults.args.defaults[index - offset]
            known[arg.arg] = ast.literal_eval(default)
    return known


def class_name(processor: str, enclosing: str, crosses: bool) -> str:
    """A name for a specialised class: its processor's stem, or the block that holds it."""
    stem = re.sub(r"(Attn|Attention)?Processor.*$", "", processor)
    if stem:
        return f"{stem}Attention"
    block = re.sub(r"(Transformer)?(Block|Layer|Model)?$", "", enclosing) or enclosing
    return f"{block}{'Cross' if crosses else ''}Attention"
