"""Give a model its configuration as a plain attribute, and what ``ModelMixin`` would have provided."""

from __future__ import annotations

from typing import Any

import libcst as cst

from porter.rules.engine import (
    SURFACE,
    Context,
    Rule,
    bare,
    code,
    is_docstring,
    method,
    parameters,
    statements,
    with_method,
)
from porter.rules.fold import dotted, only
from porter.rules.model.load_weights import LOAD_WEIGHTS
from porter.rules.model.mixins import MODEL_BASES

DTYPE = """
@property
def dtype(self) -> torch.dtype:
    return next(self.parameters()).dtype
"""

# What `from_pretrained` does for these modules, and what `ModelMixin.dtype` leaves out of account.
KEEP_FLOAT32 = """
for name, parameter in self.named_parameters():
    if any(kept in name.split(".") for kept in self._keep_in_fp32_modules):
        parameter.data = parameter.data.to(torch.float32)
"""
DTYPE_BESIDE_FLOAT32 = """
@property
def dtype(self) -> torch.dtype:
    named = self.named_parameters()
    return next(p.dtype for name, p in named if not any(kept in name for kept in self._keep_in_fp32_modules))
"""
DEVICE = """
@property
def device(self) -> torch.device:
    return next(self.parameters()).device
"""


class ExplicitConfig(Rule):
    """Replace ``register_to_config`` by an explicit ``self.config`` and add the loading interface of the engine.

    The decorator recorded the constructor's arguments as they were passed; the port records them itself, before the
    body can rebind them. Weights are loaded by name, parameters and persistent buffers alike, and an unknown name is
    an error: names are 1:1 with diffusers.
    """

    name = "explicit-config"
    safety = SURFACE
    VALID = (
        """
        class ExampleBlock(nn.Module):
            def __init__(self, dim: int):
                super().__init__()
                self.proj = nn.Linear(dim, dim)
        """,
    )
    INVALID = (
        (
            """
            class ExampleProjection(nn.Module, ConfigMixin):
                @register_to_config
                def __init__(self, dim: int = 4, out_dim: int | None = None):
                    super().__init__()
                    out_dim = out_dim or dim
                    self.proj = nn.Linear(dim, out_dim)
            """,
            """
            class ExampleProjection(nn.Module, ConfigMixin):
                @register_to_config
                def __init__(self, dim: int = 4, out_dim: int | None = None):
                    super().__init__()
                    self.config = FrozenDict(dim=dim, out_dim=out_dim)
                    out_dim = out_dim or dim
                    self.proj = nn.Linear(dim, out_dim)
            """,
        ),
        (
            """
            class ExampleTransformer2DModel(ModelMixin):
                def __init__(self, dim: int = 4):
                    super().__init__()
                    self.proj = nn.Linear(dim, dim)
            """,
            """
            class ExampleTransformer2DModel(ModelMixin):
                def __init__(self, dim: int = 4, od_config: OmniDiffusionConfig | None = None):
                    super().__init__()
                    self.proj = nn.Linear(dim, dim)

                @property
                def dtype(self) -> torch.dtype:
                    return next(self.parameters()).dtype

                @property
                def device(self) -> torch.device:
                    return next(self.parameters()).device

                def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
                    tensors = dict(self.state_dict(keep_vars=True))
                    loaded: set[str] = set()
                    for name, weight in weights:
                        if name not in tensors:
                            raise ValueError(f"{type(self).__name__} has no parameter or buffer {name!r}")
                        tensor = tensors[name]
                        if isinstance(tensor, nn.Parameter):
                            weight_loader = getattr(tensor, "weight_loader", default_weight_loader)
                            weight_loader(tensor, weight)
                        elif tensor.shape != weight.shape:
                            raise ValueError(
                                f"{name}: the checkpoint has {tuple(weight.shape)}, the model {tuple(tensor.shape)}"
                            )
                        else:  # a persistent buffer: tables made in float64 take the model's dtype, as in diffusers
                            tensor.data = weight.to(
                                tensor.device, self.dtype if weight.is_floating_point() else weight.dtype
                            )
                        loaded.add(name)
                    # The engine asks for parameters only. A buffer that two modules share is saved under one name.
                    buffers = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter)}
                    filled = {id(tensors[name]) for name in loaded}
                    missing = [name for name, tensor in buffers.items() if id(tensor) not in filled]
                    if missing:
                        raise ValueError(f"the checkpoint lacks buffers of {type(self).__name__}: {', '.join(missing)}")
                    return loaded
            """,
        ),
    )

    def leave_ClassDef(self, ctx: Context, original: cst.ClassDef, updated: cst.ClassDef) -> cst.ClassDef:
        init = method(original, "__init__")
        registered = init is not None and any(dotted(d.decorator) == "register_to_config" for d in init.decorators)
        is_model = any(dotted(base.value) in MODEL_BASES for base in original.bases)
        new_init = method(updated, "__init__")
        if registered and new_init is not None:
            updated = with_method(updated, self._record(ctx, new_init), "__init__")
        if not is_model:
            return updated
        new_init = method(updated, "__init__")
        assert new_init is not None
        params = new_init.params
        od_config = cst.Param(
            name=cst.Name("od_config"),
            annotation=cst.Annotation(cst.parse_expression("OmniDiffusionConfig | None")),
            default=cst.Name("None"),
        )
        ctx.need("vllm_omni.diffusion.data", "OmniDiffusionConfig")
        new_init = new_init.with_changes(params=params.with_changes(params=[*params.params, od_config]))
        updated = with_method(updated, new_init, "__init__")
        keeps = _keeps_float32(original)
        if keeps:
            new_init = method(updated, "__init__")
            assert new_init is not None
            body = [*new_init.body.body, *statements(KEEP_FLOAT32)]
            updated = with_method(
                updated, new_init.with_changes(body=new_init.body.with_changes(body=body)), "__init__"
            )
        ctx.imports["torch"] = ("torch", None)
        ctx.imports["nn"] = ("torch", "nn")
        ctx.need("collections.abc", "Iterable")
        ctx.need("vllm.model_executor.model_loader.weight_utils", "default_weight_loader")
        body = [*updated.body.body]
        existing = {item.name.value for item in body if isinstance(item, cst.FunctionDef)}
        for item in statements((DTYPE_BESIDE_FLOAT32 if keeps else DTYPE) + DEVICE + LOAD_WEIGHTS):
            if item.name.value not in existing:
                body.append(item.with_changes(leading_lines=[cst.EmptyLine(indent=False)]))
        return updated.with_changes(body=updated.body.with_changes(body=body))

    def _record(self, ctx: Context, init: cst.FunctionDef) -> cst.FunctionDef:
        names = [p.name.value for p in parameters(init)][1:]
        if not names:
            return init
        ctx.need("diffusers.configuration_utils", "FrozenDict")
        record = statements("self.config = FrozenDict(" + ", ".join(f"{n}={n}" for n in names) + ")")
        body = list(init.body.body)
        start = 1 if body and is_docstring(body[0]) else 0
        first = body[start] if len(body) > start else None
        # A module's own constructor comes first, as everywhere; anything else may rebind what was passed.
        at = start + 1 if first is not None and bare(first).startswith("super().__init__") else start
        body[at:at] = record
        return init.with_changes(body=init.body.with_changes(body=body))


def _keeps_float32(node: cst.ClassDef) -> bool:
    found = [only(item) for item in node.body.body]
    return any(isinstance(a, cst.Assign) and dotted(a.targets[0].target) == "_keep_in_fp32_modules" for a in found)


class RegisterToConfig(Rule):
    """Replace a call of ``register_to_config`` by an update of ``self.config``."""

    name = "register-to-config"
    safety = SURFACE
    VALID = ("self.register_buffer(name, value)\n",)
    INVALID = (
        (
            "self.register_to_config(a=a)\n",
            'self.config = FrozenDict({**getattr(self, "config", {}), **dict(a=a)})\n',
        ),
    )

    def leave_SimpleStatementLine(
        self, ctx: Context, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine
    ) -> Any:
        call = updated.body[0].value if len(updated.body) == 1 and isinstance(updated.body[0], cst.Expr) else None
        if not isinstance(call, cst.Call) or dotted(call.func) != "self.register_to_config":
            return updated
        ctx.need("diffusers.configuration_utils", "FrozenDict")
        given = code(call.with_changes(func=cst.Name("dict")))
        new = cst.parse_statement(f'self.config = FrozenDict({{**getattr(self, "config", {{}}), **{given}}})')
        return new.with_changes(leading_lines=updated.leading_lines)
