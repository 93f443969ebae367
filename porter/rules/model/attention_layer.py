"""Run attention through the engine's ``Attention`` layer."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst

from porter.facts.attention import DISPATCH, SDPA, Site, Sizes, describe_site
from porter.rules.engine import SAME, Context, Rule, arguments, code, make_call, statements
from porter.rules.fold import dotted

LAYER = "vllm_omni.diffusion.attention.layer"
METADATA = "vllm_omni.diffusion.attention.backends.abstract"


class AttentionLayer(Rule):
    """Replace ``dispatch_attention_fn`` and PyTorch's SDPA by the engine's ``Attention`` layer (guide, step 1.1.2).

    Both compute softmax(q·kᵀ·scale + mask)·v; the layer takes ``[batch, sequence, heads, head_size]`` as the dispatcher
    does, so calls in PyTorch's layout are transposed on the way in and out (views, no copies). A call whose scale,
    causality or backend is decided at run time is left as it is and reported.

    Args:
        owner: the name that holds the attention module (``self``, or ``attn`` inside a processor that stays).
        sizes: heads and head size of that module; None leaves every call as it is.
    """

    name = "attention-layer"
    safety = SAME
    VALID = (
        """
        class ExampleAttention(nn.Module):
            def __init__(self, heads, dim_head):
                super().__init__()
                self.heads = heads

            def forward(self, query, key, value, scale):
                return F.scaled_dot_product_attention(query, key, value, scale=scale)
        """,
    )
    INVALID = (
        (
            """
            class ExampleAttention(nn.Module):
                def __init__(self, dim, heads):
                    super().__init__()
                    self.heads = heads
                    self.head_dim = dim // heads

                def forward(self, query, key, value, mask=None):
                    return dispatch_attention_fn(
                        query, key, value, attn_mask=mask, dropout_p=0.0, backend=self._attention_backend
                    )
            """,
            """
            class ExampleAttention(nn.Module):
                def __init__(self, dim, heads):
                    super().__init__()
                    self.heads = heads
                    self.head_dim = dim // heads
                    self.attn = Attention(
                        num_heads=self.heads,
                        head_size=self.head_dim,
                        softmax_scale=1.0 / (self.head_dim**0.5),
                        causal=False,
                    )

                def forward(self, query, key, value, mask=None):
                    return self.attn(query, key, value, attn_metadata=AttentionMetadata(attn_mask=mask))
            """,
        ),
        (
            """
            class ExampleAttention(nn.Module):
                def __init__(self, heads, dim_head):
                    super().__init__()
                    self.heads = heads
                    self.scale = dim_head**-0.5

                def forward(self, query, key, value):
                    query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
            """,
            """
            class ExampleAttention(nn.Module):
                def __init__(self, heads, dim_head):
                    super().__init__()
                    self.heads = heads
                    self.scale = dim_head**-0.5
                    self.causal_attn = Attention(
                        num_heads=self.heads, head_size=dim_head, softmax_scale=self.scale, causal=True
                    )

                def forward(self, query, key, value):
                    query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                    return self.causal_attn(
                        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
                    ).transpose(1, 2)
            """,
        ),
        (
            """
            class ExampleAttnProcessor:
                def __call__(self, attn, query, key, value, scale):
                    return dispatch_attention_fn(
                        query, key, value, scale=scale, backend=self._attention_backend
                    )
            """,
            """
            class ExampleAttnProcessor:
                def __call__(self, attn, query, key, value, scale):
                    return dispatch_attention_fn(query, key, value, scale=scale)
            """,
        ),
    )

    def __init__(self, owner: str = "self", sizes: Sizes | None = None, line: int = 0) -> None:
        self.owner = owner
        self.sizes = sizes
        self.line = line
        self.layers: dict[str, Site] = {}

    def leave_Call(self, ctx: Context, original: cst.Call, updated: cst.Call) -> cst.BaseExpression:
        function = dotted(updated.func)
        name = function.split(".")[-1] if function else None
        if name not in (DISPATCH, SDPA):
            return updated
        site = self._site(updated)
        if self.sizes is None and site.standard:
            site = Site(self.line, False, "the attention module does not say its heads and head size")
        if not site.standard:
            ctx.report(self.line, f"attention call kept: {site.reason}")
            return _without_dispatch_state(updated) if name == DISPATCH else updated
        positional, keywords, _ = arguments(updated)
        query, key, value = (arg.value for arg in positional[:3])
        if name == SDPA:
            query, key, value = (_transposed(x) for x in (query, key, value))
        args: list[Any] = [cst.Arg(query), cst.Arg(key), cst.Arg(value)]
        mask = (
            keywords["attn_mask"].value if "attn_mask" in keywords else positional[3].value if positional[3:] else None
        )
        if mask is not None and code(mask) != "None":
            ctx.need(METADATA, "AttentionMetadata")
            args.append(f"attn_metadata=AttentionMetadata(attn_mask={code(mask)})")
        call = make_call(f"{self.owner}.{self._layer(site)}", args)
        return _transposed(call) if name == SDPA else call

    def _site(self, call: cst.Call) -> Site:
        node = ast.parse(code(call), mode="eval").body
        assert isinstance(node, ast.Call)
        return describe_site(node, (self.owner,))

    def _layer(self, site: Site) -> str:
        name = "causal_attn" if site.causal else "attn"
        known = self.layers.setdefault(name, site)
        if (known.scale, known.grouped) != (site.scale, site.grouped):
            name = f"{name}_{len(self.layers) + 1}"
            self.layers[name] = site
        return name

    def construct(self, ctx: Context) -> list[Any]:
        """Statements for the end of the module's ``__init__`` that build the layers its forward calls."""
        if not self.layers or self.sizes is None:
            return []
        ctx.need(LAYER, "Attention")
        built = []
        for name, site in self.layers.items():
            scale = site.scale.replace(f"{self.owner}.", "self.") if site.scale else None
            if scale is None:
                scale = f"1.0 / ({_grouped(self.sizes.head_size)} ** 0.5)"
            kv_heads = f", num_kv_heads={self.sizes.kv_heads}" if site.grouped and self.sizes.kv_heads else ""
            built += statements(
                f"self.{name} = Attention(num_heads={self.sizes.heads}, head_size={self.sizes.head_size}, "
                f"softmax_scale={scale}, causal={site.causal}{kv_heads})"
            )
        return built


def _grouped(text: str) -> str:
    return text if text.replace(".", "").replace("_", "").isalnum() else f"({text})"


def _transposed(node: cst.BaseExpression) -> cst.BaseExpression:
    """``node.transpose(1, 2)``; two in a row cancel."""
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute) and node.func.attr.value == "transpose":
        if [code(arg.value) for arg in node.args] == ["1", "2"]:
            return node.func.value
    if not isinstance(node, cst.Name | cst.Attribute | cst.Call | cst.Subscript):
        node = node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return make_call(cst.Attribute(node, cst.Name("transpose")), ["1", "2"])


def _without_dispatch_state(call: cst.Call) -> cst.Call:
    dropped = ("parallel_config",)
    args = [a for a in call.args if not (a.keyword and a.keyword.value in dropped)]
    args = [a for a in args if not (a.keyword and a.keyword.value == "backend" and "self._" in code(a.value))]
    if len(args) == len(call.args):
        return call
    if args:
        args[-1] = args[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
    return call.with_changes(args=args)
