"""Classes that derive from diffusers' classic ``Attention``."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst

from porter.rules.engine import SURFACE, Context, Rule, code, rename, to_ast, visit
from porter.rules.fold import dotted
from porter.rules.model.classic_attention import MODULE
from porter.rules.model.mixins import METHODS
from porter.rules.model.sites import KEPT_CLASSIC, resolves_to_classic
from porter.source.walk import walk


class DerivedAttention(Rule):
    """Put a class that derives from the classic ``Attention`` on ``nn.Module``, or on diffusers' own class.

    The engine's layer has the name ``Attention``. A class that skips the constructor of its base and calls none of its
    methods uses nothing of it and becomes a plain module; any other keeps diffusers' class and is reported.
    """

    name = "derived-attention"
    safety = SURFACE
    VALID = (
        """
        from ..attention import FeedForward


        class ExampleFeedForward(FeedForward):
            pass
        """,
    )
    INVALID = (
        (
            """
            from ..attention_processor import Attention


            class ExampleAttention(Attention):
                def __init__(self, *args, **kwargs):
                    super().__init__(*args, **kwargs)
                    self.to_image = nn.Linear(self.query_dim, self.query_dim)
            """,
            """
            from ..attention_processor import Attention


            class ExampleAttention(DiffusersAttention):
                def __init__(self, *args, **kwargs):
                    super().__init__(*args, **kwargs)
                    self.to_image = nn.Linear(self.query_dim, self.query_dim)
            """,
        ),
        (
            """
            from ..attention_processor import Attention


            class ExampleAttention(Attention):
                def __init__(self, dim):
                    super(Attention, self).__init__()
                    self.to_image = nn.Linear(dim, dim)
            """,
            """
            from ..attention_processor import Attention


            class ExampleAttention(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.to_image = nn.Linear(dim, dim)
            """,
        ),
    )

    def leave_ClassDef(self, ctx: Context, original: cst.ClassDef, updated: cst.ClassDef) -> cst.ClassDef:
        names = [dotted(base.value) or "" for base in updated.bases]
        classic = next((name for name in names if resolves_to_classic(ctx, name)), None)
        if classic is None:
            return updated
        skipping = f"super({classic}, self).__init__()"
        if skipping in code(updated.body) and not _uses_methods(ctx, updated):
            ctx.imports["nn"] = ("torch", "nn")
            base = "nn.Module"
            node: Any = visit(updated, _ReplaceCall(skipping, "super().__init__()"))
        else:
            ctx.report(
                ctx.definition.first_line if ctx.definition else 1, f"{updated.name.value} derives from Attention"
            )
            ctx.imports[KEPT_CLASSIC] = (MODULE, "Attention")
            base, node = KEPT_CLASSIC, rename(updated, classic, KEPT_CLASSIC)
        bases = [
            new.with_changes(value=cst.parse_expression(base)) if name == classic else new
            for name, new in zip(names, node.bases, strict=True)
        ]
        derived: cst.ClassDef = node.with_changes(bases=bases)
        return derived


def _uses_methods(ctx: Context, node: cst.ClassDef) -> bool:
    """Whether a class reads methods of the classic ``Attention`` that it does not define itself."""
    source = ctx.tree.resolve(MODULE, "Attention")
    assert source is not None and isinstance(source.node, ast.ClassDef)
    inherited = {item.name for item in source.node.body if isinstance(item, ast.FunctionDef)} - METHODS - {"__init__"}
    inherited -= {item.name.value for item in node.body.body if isinstance(item, cst.FunctionDef)}
    return bool({n.attr for n in walk(to_ast(node)) if isinstance(n, ast.Attribute)} & inherited)


class _ReplaceCall(cst.CSTTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.BaseExpression:
        return cst.parse_expression(self.new) if code(updated) == self.old else updated
