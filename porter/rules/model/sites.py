"""Rewrite the places that build attention modules, to match how those modules were ported."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst

from porter.facts.attention import CLASSIC, ProcessorPlan, constant_parameters, is_attention_module, processor_plan
from porter.rules.engine import SURFACE, Context, Rule, arguments, code, identifiers, make_call, names_read, visit
from porter.rules.fold import bindings, dotted, only
from porter.rules.model.classic_attention import (
    DEFAULT_PROCESSOR,
    MODULE,
    UNSCALED_PROCESSOR,
    known_parameters,
)
from porter.source import Definition

# The name of diffusers' own class in a port that keeps it, beside the engine's layer of the same name.
KEPT_CLASSIC = "DiffusersAttention"


class AttentionSites(Rule):
    """Build the ported attention module where the source builds the original.

    The ``processor`` argument of a class whose processor was folded goes; a construction of the classic ``Attention``
    becomes one of the class that was specialised for it. Where the processor is chosen at run time, diffusers' own
    class stays and is reported.

    Args:
        specialise: makes (or finds) the specialised class for a site; returns its name and its parameters.
    """

    name = "attention-sites"
    safety = SURFACE
    VALID = (
        """
        from ..attention import FeedForward


        class ExampleBlock(nn.Module):
            def __init__(self, dim, processor):
                super().__init__()
                self.ff = FeedForward(dim, processor=processor)
        """,
    )
    INVALID = (
        (
            """
            class ExampleAttnProcessor:
                def __call__(self, attn, hidden_states):
                    return attn.to_v(hidden_states)


            class ExampleAttention(nn.Module):
                def __init__(self, dim, processor=None):
                    super().__init__()
                    self.to_v = nn.Linear(dim, dim)
                    self.set_processor(processor or ExampleAttnProcessor())

                def forward(self, hidden_states):
                    return self.processor(self, hidden_states)


            class ExampleBlock(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.attn = ExampleAttention(dim, processor=ExampleAttnProcessor())
            """,
            """
            class ExampleAttnProcessor:
                def __call__(self, attn, hidden_states):
                    return attn.to_v(hidden_states)


            class ExampleAttention(nn.Module):
                def __init__(self, dim, processor=None):
                    super().__init__()
                    self.to_v = nn.Linear(dim, dim)
                    self.set_processor(processor or ExampleAttnProcessor())

                def forward(self, hidden_states):
                    return self.processor(self, hidden_states)


            class ExampleBlock(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.attn = ExampleAttention(dim)
            """,
        ),
        (
            """
            from ..attention_processor import Attention


            class ExampleBlock(nn.Module):
                def __init__(self, dim: int, heads: int):
                    super().__init__()
                    self.attn = Attention(query_dim=dim, heads=heads, dim_head=64, bias=True)
            """,
            """
            from ..attention_processor import Attention


            class ExampleBlock(nn.Module):
                def __init__(self, dim: int, heads: int):
                    super().__init__()
                    self.attn = ExampleAttention(query_dim=dim, heads=heads)
            """,
        ),
        (
            """
            from ..attention_processor import Attention


            class ExampleBlock(nn.Module):
                def __init__(self, dim, processor):
                    super().__init__()
                    self.attn = Attention(query_dim=dim, processor=processor)
            """,
            """
            from ..attention_processor import Attention


            class ExampleBlock(nn.Module):
                def __init__(self, dim, processor):
                    super().__init__()
                    self.attn = DiffusersAttention(query_dim=dim, processor=processor)
            """,
        ),
    )

    def __init__(self, specialise: Any) -> None:
        self._specialise = specialise
        self._classes: list[str] = []
        self._functions: list[cst.FunctionDef] = []

    def visit_ClassDef(self, ctx: Context, node: cst.ClassDef) -> None:
        self._classes.append(node.name.value)

    def leave_ClassDef(self, ctx: Context, original: cst.ClassDef, updated: cst.ClassDef) -> cst.ClassDef:
        self._classes.pop()
        return updated

    def visit_FunctionDef(self, ctx: Context, node: cst.FunctionDef) -> None:
        self._functions.append(node)

    def leave_FunctionDef(self, ctx: Context, original: cst.FunctionDef, updated: cst.FunctionDef) -> Any:
        self._functions.pop()
        if "processor" not in identifiers(updated.body):
            return updated
        # `processor = P()` above constructions that no longer take it
        return updated if "processor" in names_read(updated.body) else visit(updated, _WithoutProcessor())

    def leave_Call(self, ctx: Context, original: cst.Call, updated: cst.Call) -> Any:
        name = dotted(updated.func)
        if not name or "." in name:
            return updated
        if resolves_to_classic(ctx, name):
            return self._classic(ctx, updated)
        plan = plan_for(ctx, name)
        if plan is None or plan.kind != "fold":
            return updated
        args = [a for a in updated.args if not (a.keyword and a.keyword.value == "processor")]
        if len(args) == len(updated.args):
            return updated
        args[-1] = args[-1].with_changes(comma=updated.args[-1].comma)
        return updated.with_changes(args=args)

    def leave_Annotation(self, ctx: Context, original: cst.Annotation, updated: cst.Annotation) -> cst.Annotation:
        name = dotted(updated.annotation)
        if name and resolves_to_classic(ctx, name):
            ctx.imports["nn"] = ("torch", "nn")
            return updated.with_changes(annotation=cst.parse_expression("nn.Module"))
        return updated

    def _keep(self, ctx: Context, call: cst.Call, reason: str) -> cst.Call:
        ctx.report(ctx.definition.first_line if ctx.definition else 1, reason)
        ctx.imports[KEPT_CLASSIC] = (MODULE, "Attention")
        return call.with_changes(func=cst.Name(KEPT_CLASSIC))

    def _classic(self, ctx: Context, call: cst.Call) -> Any:
        enclosing = self._classes[-1] if self._classes else "Model"
        source = ctx.tree.resolve(MODULE, "Attention")
        assert source is not None and isinstance(source.node, ast.ClassDef)
        init = next(i for i in source.node.body if isinstance(i, ast.FunctionDef) and i.name == "__init__")
        names = [a.arg for a in init.args.args[1:]]
        positional, keywords, starred = arguments(call)
        if starred:
            return self._keep(ctx, call, f"{enclosing} passes * or ** to Attention; it keeps diffusers' class")
        given = {name: arg.value for name, arg in zip(names, positional, strict=False)}
        given.update({name: arg.value for name, arg in keywords.items()})
        given = self._settled(ctx, enclosing, given)
        known = known_parameters(init, given, self._not_none())
        processor = self._processor(ctx, given, known)
        if processor is None:
            reason = f"{enclosing} chooses its attention processor at run time; it keeps diffusers' Attention"
            return self._keep(ctx, call, reason)
        new_name, taken = self._specialise(ctx, enclosing, given, known, processor)
        kept = [f"{n}={code(v)}" for n, v in given.items() if n in taken]
        return make_call(new_name, kept)

    def _settled(self, ctx: Context, enclosing: str, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments with parameters of the enclosing class that always keep their default put in."""
        if ctx.root is not ctx.module:
            return given
        constants = constant_parameters(ctx.module, enclosing)
        settled = dict(given)
        for name, node in given.items():
            if isinstance(node, cst.Name) and node.value in constants:
                settled[name] = cst.parse_expression(ast.unparse(constants[node.value]))
        return settled

    def _not_none(self) -> set[str]:
        """Parameters of the enclosing functions whose annotation and default say that they are never None."""
        found = set()
        for function in self._functions:
            for param in function.params.params:
                annotation = code(param.annotation.annotation) if param.annotation else ""
                default = code(param.default) if param.default is not None else ""
                if annotation in ("int", "float", "str", "bool") and default != "None":
                    found.add(param.name.value)
        return found

    def _processor(self, ctx: Context, given: dict[str, Any], known: dict[str, Any]) -> Definition | None:
        node = given.get("processor")
        if node is None or code(node) == "None":
            name = DEFAULT_PROCESSOR if known.get("scale_qk", True) is True else UNSCALED_PROCESSOR
            return ctx.tree.resolve(MODULE, name)
        if isinstance(node, cst.Name) and self._functions:
            # `processor = P()` above the construction
            local = bindings(self._functions[-1].body)
            if local.counts.get(node.value) == 1:
                value = local.values.get(node.value)
                node = value if value is not None else node
        if isinstance(node, cst.Call) and not node.args and isinstance(node.func, cst.Name):
            return ctx.tree.resolve(ctx.module.name, node.func.value)
        return None


class _WithoutProcessor(cst.CSTTransformer):
    def leave_SimpleStatementLine(self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine) -> Any:
        node = only(updated)
        if isinstance(node, cst.Assign) and dotted(node.targets[0].target) == "processor":
            return cst.RemoveFromParent() if isinstance(node.value, cst.Call) else updated
        return updated


def resolves_to_classic(ctx: Context, name: str) -> bool:
    if ctx.origin(name) == CLASSIC:
        return True
    bound = ctx.module.imports.get(name)
    if name != "Attention" or bound is None or bound.name is None:
        return False
    target = ctx.tree.resolve(bound.module, bound.name)
    return target is not None and target.module.name == MODULE


def plan_for(ctx: Context, name: str) -> ProcessorPlan | None:
    """The plan of the attention class called ``name`` in the module at hand; None if it is no attention class."""
    key = (f"{ctx.root.name if ctx.root else ''}:{ctx.module.name}", name)
    if key not in ctx.tree.plans:
        ctx.tree.plans[key] = _find_plan(ctx, name)
    return ctx.tree.plans[key]


def _find_plan(ctx: Context, name: str) -> ProcessorPlan | None:
    definition = ctx.module.definitions.get(name)
    if definition is None and name in ctx.module.imports:
        bound = ctx.module.imports[name]
        definition = ctx.tree.resolve(bound.module, bound.name) if bound.name else None
    if definition is None or not isinstance(definition.node, ast.ClassDef) or not is_attention_module(definition.node):
        return None
    if definition.module.name == MODULE and definition.name == "Attention":
        return None
    return processor_plan(ctx.tree, definition.module, definition.node, ctx.root or ctx.module)
