"""Replace what ``DiffusionPipeline`` provided by what the engine provides."""

from __future__ import annotations

from typing import Any

import libcst as cst

from porter.rules.engine import SURFACE, Context, Rule, expression, names_bound, names_read, nodes, visit
from porter.rules.fold import dotted, flatten, only

HOOKS = ("maybe_free_model_hooks", "remove_all_hooks", "enable_model_cpu_offload", "maybe_adjust_dtype")
MEMBERS = {"self._execution_device": "self.device", "self.dtype": "self.od_config.dtype"}


class PipelineMembers(Rule):
    """Replace ``_execution_device`` and ``dtype`` by the engine's device and dtype; remove offload hooks.

    Offloading is the engine's business; where a pipeline runs is decided when it is built.
    """

    name = "pipeline-members"
    safety = SURFACE
    VALID = ("device = self.vae.device\n",)
    INVALID = (
        ("device = self._execution_device\n", "device = self.device\n"),
        ("x = 1\nself.maybe_free_model_hooks()\n", "x = 1\n"),
    )

    def leave_Attribute(self, ctx: Context, original: cst.Attribute, updated: cst.Attribute) -> cst.BaseExpression:
        replacement = MEMBERS.get(dotted(updated) or "")
        return expression(replacement) if replacement else updated

    def leave_SimpleStatementLine(
        self, ctx: Context, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine
    ) -> Any:
        node = only(updated)
        if not isinstance(node, cst.Expr) or not isinstance(node.value, cst.Call):
            return updated
        owner, _, name = (dotted(node.value.func) or "").rpartition(".")
        is_hook = owner == "xm" or (owner == "self" and name in HOOKS)
        return cst.RemoveFromParent() if is_hook else updated


class CacheContext(Rule):
    """Unwrap ``with self.transformer.cache_context("cond"):``.

    The context names the guidance branch for diffusers' own cache hooks, which a port does not have. What was computed
    for nothing but it goes too: a sigma that is read off the schedule in each step, say, makes a GPU wait.
    """

    name = "cache-context"
    safety = SURFACE
    VALID = ("with torch.no_grad():\n    x = f(y)\n",)
    INVALID = (
        ('with self.transformer.cache_context("cond"):\n    x = f(y)\n', "x = f(y)\n"),
        (
            """
            def forward(self, i, x):
                told = {"sigma": float(self.scheduler.sigmas[i]), "index": i}
                with self.transformer.cache_context("cond", **told):
                    return self.transformer(x)
            """,
            """
            def forward(self, i, x):
                return self.transformer(x)
            """,
        ),
    )

    def leave_With(self, ctx: Context, original: cst.With, updated: cst.With) -> Any:
        return flatten(updated.body, updated.leading_lines) if _cache_context(updated) is not None else updated

    def leave_FunctionDef(self, ctx: Context, original: cst.FunctionDef, updated: cst.FunctionDef) -> Any:
        contexts = [call for node in nodes(original, cst.With) if (call := _cache_context(node)) is not None]
        told = {name for call in contexts for name in names_read(call)}
        told -= {p.name.value for p in nodes(updated.params, cst.Param)} | names_read(updated.body) if told else set()
        return updated.with_changes(body=visit(updated.body, _WithoutTold(told))) if told else updated


def _cache_context(node: cst.With) -> cst.Call | None:
    """The call that makes the context, if that is all that a block is for."""
    context = node.items[0].item
    if len(node.items) != 1 or not isinstance(context, cst.Call):
        return None
    return context if (dotted(context.func) or "").endswith(".cache_context") else None


class _WithoutTold(cst.CSTTransformer):
    """Removes what binds names that nobody reads, if computing it does nothing else."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def leave_SimpleStatementLine(self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine) -> Any:
        node = only(updated)
        if not isinstance(node, cst.Assign) or len(node.targets) != 1 or not names_bound(updated) <= self._names:
            return updated
        is_name = isinstance(node.targets[0].target, cst.Name)
        is_plain = all((dotted(call.func) or "") in ("float", "int", "len", "dict") for call in nodes(node, cst.Call))
        return cst.RemoveFromParent() if is_name and is_plain else updated


class StaticHelpers(Rule):
    """Call ``numpy_to_pil`` from diffusers' utilities; the base class only forwarded to it."""

    name = "static-helpers"
    safety = SURFACE
    VALID = ("image = self.image_processor.numpy_to_pil(image)\n",)
    INVALID = (
        (
            "image = self.numpy_to_pil(image)\n",
            "image = numpy_to_pil(image)\n",
        ),
    )

    def leave_Call(self, ctx: Context, original: cst.Call, updated: cst.Call) -> cst.Call:
        if dotted(updated.func) != "self.numpy_to_pil":
            return updated
        ctx.need("diffusers.utils.pil_utils", "numpy_to_pil")
        return updated.with_changes(func=cst.Name("numpy_to_pil"))
