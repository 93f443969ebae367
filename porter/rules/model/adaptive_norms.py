"""Use the engine's adaptive norms where their arithmetic is diffusers'."""

from __future__ import annotations

import libcst as cst

from porter.rules.engine import SAME, Context, Rule, arguments, make_call, nodes
from porter.rules.fold import Facts, dotted

DIFFUSERS = "diffusers.models.normalization."
ENGINE = "vllm_omni.diffusion.layers.adalayernorm"
# Parameters of diffusers' classes in their order, and the arguments that their forward shares with the engine's.
PARAMETERS = {
    "AdaLayerNormZero": ("embedding_dim", "num_embeddings", "norm_type", "bias"),
    "AdaLayerNormZeroSingle": ("embedding_dim", "norm_type", "bias"),
    "AdaLayerNormContinuous": (
        *("embedding_dim", "conditioning_embedding_dim", "elementwise_affine", "eps", "bias", "norm_type"),
    ),
}
SECOND_ARGUMENT = {
    "AdaLayerNormZero": "emb",
    "AdaLayerNormZeroSingle": "emb",
    "AdaLayerNormContinuous": "conditioning_embedding",
}
# The second argument of diffusers' AdaLayerNormZero is a timestep, so an embedding has its name there.
NAMED = {"AdaLayerNormZero"}
# Where the two differ, the default of diffusers' class is written out.
DEFAULTS = {"AdaLayerNormContinuous": {"elementwise_affine": "True", "eps": "1e-5"}}


class EngineAdaLayerNorm(Rule):
    """Use vLLM-Omni's ``AdaLayerNormZero``, ``…ZeroSingle`` and ``…Continuous`` (guide, step 1.1.3).

    They compute what diffusers' classes do and hold their projection in a linear layer of the engine. A norm with a
    table of labels, another inner norm, or one that is called with more than an embedding keeps diffusers' class;
    so does ``AdaLayerNorm``, whose engine namesake normalises in float32.
    """

    name = "engine-ada-layer-norm"
    safety = SAME
    VALID = (
        """
        from diffusers.models.normalization import AdaLayerNormZero
        class ExampleBlock(nn.Module):
            def __init__(self, dim, labels):
                super().__init__()
                self.norm1 = AdaLayerNormZero(dim, labels)
            def forward(self, x, timestep, label):
                return self.norm1(x, timestep, label)
        """,
        """
        from diffusers.models.normalization import AdaLayerNormContinuous
        class ExampleModel(nn.Module):
            def __init__(self, dim, kind):
                super().__init__()
                self.norm_out = AdaLayerNormContinuous(dim, dim, norm_type=kind)
            def forward(self, x, emb):
                return self.norm_out(x, emb)
        """,
    )
    INVALID = (
        (
            """
            from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
            class ExampleBlock(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.norm1 = AdaLayerNormZero(dim, norm_type="layer_norm")
                    self.norm_out = AdaLayerNormContinuous(dim, dim, eps=1e-6)
                def forward(self, x, temb):
                    x = self.norm1(x, emb=temb)[0]
                    return self.norm_out(x, temb)
            """,
            """
            from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
            class ExampleBlock(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.norm1 = OmniAdaLayerNormZero(dim)
                    self.norm_out = OmniAdaLayerNormContinuous(dim, dim, eps=1e-6, elementwise_affine=True)
                def forward(self, x, temb):
                    x = self.norm1(x, emb=temb)[0]
                    return self.norm_out(x, temb)
            """,
        ),
    )

    def __init__(self) -> None:
        self._classes: list[cst.ClassDef] = []

    def visit_ClassDef(self, ctx: Context, node: cst.ClassDef) -> None:
        self._classes.append(node)

    def leave_ClassDef(self, ctx: Context, original: cst.ClassDef, updated: cst.ClassDef) -> cst.ClassDef:
        self._classes.pop()
        return updated

    def leave_Assign(self, ctx: Context, original: cst.Assign, updated: cst.Assign) -> cst.Assign:
        target = (dotted(updated.targets[0].target) or "").split(".")
        call = updated.value
        if not self._classes or len(updated.targets) != 1 or len(target) != 2 or not isinstance(call, cst.Call):
            return updated
        kind = ctx.origin(dotted(call.func) or "").removeprefix(DIFFUSERS)
        if kind not in PARAMETERS or not _called_alike(self._classes[-1], target[1], kind):
            return updated
        args = _arguments(call, kind)
        if args is None:
            return updated
        name = f"Omni{kind}"
        ctx.imports[name] = (ENGINE, kind)
        return updated.with_changes(value=make_call(name, args))


def _arguments(call: cst.Call, kind: str) -> list[str | cst.Arg] | None:
    """The call's arguments as the engine's class takes them; None if it cannot be put in the place of diffusers'."""
    positional, keywords, starred = arguments(call)
    given = dict(zip(PARAMETERS[kind], positional)) | keywords
    facts = Facts()
    if starred or "num_embeddings" in given:
        return None
    if "norm_type" in given and facts.value(given["norm_type"].value) != "layer_norm":
        return None
    if kind == "AdaLayerNormContinuous" and "bias" in given and facts.truth(given["bias"].value) is not True:
        return None  # there it also says whether the inner norm has a bias
    kept: list[str | cst.Arg] = []
    for name, arg in given.items():
        if name != "norm_type":
            moved = arg.keyword is None and name == "bias"
            kept.append(arg.with_changes(keyword=cst.Name(name), equal=EQUAL) if moved else arg)
    kept += [f"{name}={value}" for name, value in DEFAULTS.get(kind, {}).items() if name not in given]
    return kept


EQUAL = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))


def _called_alike(owner: cst.ClassDef, attribute: str, kind: str) -> bool:
    """Whether every call of the norm in its class passes what both classes take, under names that both know."""
    for call in nodes(owner, cst.Call):
        if dotted(call.func) != f"self.{attribute}":
            continue
        positional, keywords, starred = arguments(call)
        second = SECOND_ARGUMENT[kind]
        named = len(positional) == 1 and set(keywords) == {second}
        if starred or not (named or (kind not in NAMED and len(positional) == 2 and not keywords)):
            return False
    return True
