"""Remove what only diffusers' own machinery needs: mixins, decorators, processor and checkpointing methods."""

from __future__ import annotations

import re
from typing import Any

import libcst as cst

from porter.rules.engine import SURFACE, Context, Rule, code
from porter.rules.fold import dotted, only

# Modules whose classes are mixins of the diffusers machinery: loading, configuration, caching, attention processors.
MACHINERY = (
    "diffusers.loaders",
    "diffusers.configuration_utils",
    "diffusers.models.modeling_utils",
    "diffusers.models.cache_utils",
    "diffusers.models.attention.AttentionMixin",
    "diffusers.models.attention.AttentionModuleMixin",
    "diffusers.pipelines.pipeline_utils",
)
MODEL_BASES = frozenset({"ModelMixin", "LegacyModelMixin"})
DECORATORS = frozenset({"register_to_config", "apply_lora_scale", "maybe_allow_in_graph"})
METHODS = frozenset(
    {
        "attn_processors",
        "set_attn_processor",
        "set_default_attn_processor",
        "set_processor",
        "get_processor",
        "fuse_qkv_projections",
        "unfuse_qkv_projections",
        "fuse_projections",
        "unfuse_projections",
        "_set_gradient_checkpointing",
        "enable_forward_chunking",
        "disable_forward_chunking",
        "set_chunk_feed_forward",
        "set_use_memory_efficient_attention_xformers",
        "set_use_npu_flash_attention",
        "set_use_xla_flash_attention",
        "set_attention_slice",
    }
)
ATTRIBUTES = frozenset(
    {
        "_supports_gradient_checkpointing",
        "_no_split_modules",
        "_skip_layerwise_casting_patterns",
        "_supports_group_offloading",
        "_default_processor_cls",
        "_available_processors",
        "_supports_qkv_fusion",
        "_cp_plan",
        "_tp_plan",
        "_always_upcast_modules",
        "_automatically_saved_args",
        "_is_stateful",
    }
)
# What the removed machinery would have switched on.
SWITCHES: dict[str, Any] = {
    "self.gradient_checkpointing": False,
    "self.fused_projections": False,
    "attn.fused_projections": False,
    "self._chunk_size": None,
}


def is_mixin(ctx: Context, name: str) -> bool:
    """Whether a base class belongs to the diffusers machinery that a port does without."""
    return ctx.origin(name).startswith(MACHINERY)


class RemoveMixins(Rule):
    """Remove diffusers' mixins from the bases of a class (guide, step 1.1.1).

    A model becomes an ``nn.Module``, which ``ModelMixin`` derives from; the other mixins are no modules themselves.
    """

    name = "remove-mixins"
    safety = SURFACE
    VALID = (
        """
        from torch import nn


        class CacheMixin(nn.Module):
            pass


        class ExampleBlock(CacheMixin):
            pass
        """,
    )
    INVALID = (
        (
            """
            from ...configuration_utils import ConfigMixin
            from ..modeling_utils import ModelMixin


            class ExampleTransformer2DModel(ModelMixin, ConfigMixin):
                pass
            """,
            """
            from ...configuration_utils import ConfigMixin
            from ..modeling_utils import ModelMixin


            class ExampleTransformer2DModel(nn.Module):
                pass
            """,
        ),
        (
            """
            from ..attention import AttentionModuleMixin


            class ExampleAttention(nn.Module, AttentionModuleMixin):
                pass
            """,
            """
            from ..attention import AttentionModuleMixin


            class ExampleAttention(nn.Module):
                pass
            """,
        ),
    )

    def leave_ClassDef(self, ctx: Context, original: cst.ClassDef, updated: cst.ClassDef) -> cst.ClassDef:
        kept: list[cst.Arg] = []
        removed: list[cst.Arg] = []
        for base in updated.bases:
            name = dotted(base.value)
            (removed if name and is_mixin(ctx, name) else kept).append(base)
        if not removed:
            return updated
        names = {dotted(base.value) for base in removed}
        if names & MODEL_BASES and not any(_is_module(ctx, base) for base in kept):
            kept.insert(0, cst.Arg(value=cst.parse_expression("nn.Module")))
            ctx.imports["nn"] = ("torch", "nn")
        kept = [base.with_changes(comma=cst.MaybeSentinel.DEFAULT) for base in kept]
        no_parens = cst.MaybeSentinel.DEFAULT
        layout: dict[str, Any] = {} if kept else {"lpar": no_parens, "rpar": no_parens}
        return updated.with_changes(bases=kept, **layout)


def _is_module(ctx: Context, base: cst.Arg) -> bool:
    # A base that stays is another model class or a torch module; object-like bases have no dotted origin.
    return dotted(base.value) not in (None, "object")


class RemoveDecorators(Rule):
    """Remove decorators of the configuration, LoRA and graph machinery."""

    name = "remove-decorators"
    safety = SURFACE
    VALID = (
        """
        class ExampleBlock(nn.Module):
            @property
            def width(self):
                return self.proj.out_features

            @torch.no_grad()
            def forward(self, hidden_states):
                return self.proj(hidden_states)
        """,
    )
    INVALID = (
        (
            """
            @maybe_allow_in_graph
            class ExampleBlock(nn.Module):
                @apply_lora_scale("attention_kwargs")
                def forward(self, hidden_states, attention_kwargs=None):
                    return self.proj(hidden_states)
            """,
            """
            class ExampleBlock(nn.Module):
                def forward(self, hidden_states, attention_kwargs=None):
                    return self.proj(hidden_states)
            """,
        ),
    )

    def leave_Decorator(self, ctx: Context, original: cst.Decorator, updated: cst.Decorator) -> Any:
        target = updated.decorator
        if isinstance(target, cst.Call):
            target = target.func
        return cst.RemoveFromParent() if dotted(target) in DECORATORS else updated


class RemoveMachinery(Rule):
    """Remove methods and class attributes that only the removed machinery reads."""

    name = "remove-machinery"
    safety = SURFACE
    VALID = (
        """
        class ExampleTransformer2DModel(nn.Module):
            _keep_in_fp32_modules = ["norm"]
            _no_split_modules = ["ExampleBlock"]

            def block_names(self):
                return self._no_split_modules
        """,
        """
        class ExampleAttention(nn.Module):
            _default_processor_cls: type = ExampleProcessor

            @classmethod
            def fuse_projections(cls):
                return cls._default_processor_cls

            def forward(self, hidden_states):
                return self.fuse_projections()()(hidden_states)
        """,
    )
    INVALID = (
        (
            """
            class ExampleAttention(nn.Module):
                _supports_qkv_fusion = True
                _keep_in_fp32_modules = ["norm"]

                def fuse_projections(self):
                    self.to_qkv = nn.Linear(self.dim, 3 * self.dim)

                def forward(self, hidden_states):
                    return self.to_out(hidden_states)
            """,
            """
            class ExampleAttention(nn.Module):
                _keep_in_fp32_modules = ["norm"]

                def forward(self, hidden_states):
                    return self.to_out(hidden_states)
            """,
        ),
    )

    def leave_ClassDef(self, ctx: Context, original: cst.ClassDef, updated: cst.ClassDef) -> cst.ClassDef:
        kept = [item for item in updated.body.body if not _is_machinery(item)]
        if len(kept) == len(updated.body.body):
            return updated
        while True:  # what is kept may read more of the machinery
            text = " ".join(code(item) for item in kept)
            body = [item for item in updated.body.body if item in kept or _is_read(item, text)]
            if len(body) == len(kept):
                break
            kept = body
        if len(body) == len(updated.body.body):
            return updated
        return updated.with_changes(body=updated.body.with_changes(body=body or [cst.parse_statement("pass")]))


def _is_machinery(item: cst.CSTNode) -> bool:
    return _name(item) in (METHODS if isinstance(item, cst.FunctionDef) else ATTRIBUTES)


def _is_read(item: cst.CSTNode, text: str) -> bool:
    """Whether code that stays reads a method or class attribute: as ``self.x``, ``cls.x`` or by the class's name."""
    return re.search(rf"\.{_name(item)}\b", text) is not None


def _name(item: cst.CSTNode) -> str | None:
    """What a method or an assignment in a class body binds."""
    if isinstance(item, cst.FunctionDef):
        return item.name.value
    node = only(item)
    if isinstance(node, cst.Assign):
        return dotted(node.targets[0].target)
    return dotted(node.target) if isinstance(node, cst.AnnAssign) else None
