"""Use the engine's norm layers where their arithmetic is diffusers'."""

from __future__ import annotations

import libcst as cst

from porter.rules.engine import SAME, Context, Rule, arguments, make_call
from porter.rules.fold import Facts, dotted

DIFFUSERS_RMS_NORM = "diffusers.models.normalization.RMSNorm"
ENGINE_RMS_NORM = "VllmRMSNorm"


class EngineRMSNorm(Rule):
    """Use vLLM's ``RMSNorm`` for an affine one without bias (guide, step 1.1.3).

    Both square in float32, scale by the reciprocal root, cast to the weight's dtype and multiply. A norm without
    weight, with bias, or whose affinity is decided at run time keeps diffusers' class. vLLM-Omni's own ``RMSNorm``
    multiplies before the cast and is not used. Nor is its ``RotaryEmbedding``: it rotates in the dtype of the
    queries, where diffusers' functions do so in float32, and takes the first table of a batch for all.
    """

    name = "engine-rms-norm"
    safety = SAME
    VALID = (
        "from diffusers.models.normalization import RMSNorm\nnorm = RMSNorm(dim, eps=eps, elementwise_affine=affine)\n",
        "from diffusers.models.normalization import RMSNorm\nnorm = RMSNorm(dim, eps=eps, elementwise_affine=False)\n",
    )
    INVALID = (
        (
            "from diffusers.models.normalization import RMSNorm\nnorm = RMSNorm(dim, eps, elementwise_affine=True)\n",
            "from diffusers.models.normalization import RMSNorm\nnorm = VllmRMSNorm(dim, eps)\n",
        ),
    )

    def leave_Call(self, ctx: Context, original: cst.Call, updated: cst.Call) -> cst.Call:
        name = dotted(updated.func)
        if not name or "." in name or not self._is_rms_norm(ctx, name):
            return updated
        positional, keywords, starred = arguments(updated)
        if starred or len(positional) > 2 or not set(keywords) <= {"dim", "eps", "elementwise_affine", "bias"}:
            return updated
        facts = Facts()
        if "elementwise_affine" in keywords and facts.truth(keywords["elementwise_affine"].value) is not True:
            return updated
        if "bias" in keywords and facts.truth(keywords["bias"].value) is not False:
            return updated
        values = [*positional, *(keywords[k] for k in ("dim", "eps") if k in keywords)]
        ctx.imports[ENGINE_RMS_NORM] = ("vllm.model_executor.layers.layernorm", "RMSNorm")
        return make_call(ENGINE_RMS_NORM, [a.with_changes(keyword=_renamed(a)) for a in values])

    def _is_rms_norm(self, ctx: Context, name: str) -> bool:
        if ctx.origin(name) == DIFFUSERS_RMS_NORM:
            return True
        imported = ctx.module.imports.get(name)
        module, original = (imported.module, imported.name) if imported else ctx.imports.get(name, ("", None))
        if original != "RMSNorm":
            return False
        target = ctx.tree.resolve(module, original)
        return target is not None and f"{target.module.name}.{target.name}" == DIFFUSERS_RMS_NORM


def _renamed(arg: cst.Arg) -> cst.Name | None:
    if arg.keyword is None:
        return None
    return cst.Name("hidden_size") if arg.keyword.value == "dim" else arg.keyword
