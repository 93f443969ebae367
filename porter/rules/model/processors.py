"""Fold attention processors into the modules that they serve."""

from __future__ import annotations

from typing import Any

import libcst as cst

from porter.rules.engine import (
    SURFACE,
    Context,
    Rule,
    bare,
    body_statements,
    code,
    is_docstring,
    method,
    nodes,
    parameters,
    rename,
    with_method,
)
from porter.rules.fold import dotted


class FoldProcessor(Rule):
    """Fold the processor of an attention class into its ``forward`` (guide, step 1.1.2).

    The forward of such a class only filters its keywords and delegates. The port's forward takes the parameters of
    both and runs the processor's body, with ``attn`` being the module itself.
    """

    name = "fold-processor"
    safety = SURFACE
    VALID = (
        """
        class ScaledProcessor:
            def __init__(self, scale):
                self.scale = scale

            def __call__(self, attn, hidden_states):
                return attn.to_v(hidden_states) * self.scale


        class ExampleAttention(nn.Module):
            def __init__(self, dim):
                super().__init__()
                self.to_v = nn.Linear(dim, dim)
                self.set_processor(ScaledProcessor(0.5))

            def forward(self, hidden_states):
                return self.processor(self, hidden_states)
        """,
        """
        class FirstProcessor:
            def __call__(self, attn, hidden_states):
                return attn.to_v(hidden_states)


        class SecondProcessor:
            def __call__(self, attn, hidden_states):
                return attn.to_v(hidden_states).relu()


        class ExampleAttention(nn.Module):
            def __init__(self, dim, processor):
                super().__init__()
                self.to_v = nn.Linear(dim, dim)
                self.set_processor(processor)

            def forward(self, hidden_states):
                return self.processor(self, hidden_states)


        class ExampleBlock(nn.Module):
            def __init__(self, dim):
                super().__init__()
                self.first = ExampleAttention(dim, processor=FirstProcessor())
                self.second = ExampleAttention(dim, processor=SecondProcessor())
        """,
    )
    INVALID = (
        (
            """
            class ExampleAttnProcessor:
                def __call__(self, attn, hidden_states, temb=None):
                    return attn.to_out(attn.to_v(hidden_states) + temb)


            class ExampleAttention(nn.Module, AttentionModuleMixin):
                def __init__(self, dim, processor=None):
                    super().__init__()
                    self.to_v = nn.Linear(dim, dim)
                    self.to_out = nn.Linear(dim, dim)
                    if processor is None:
                        processor = ExampleAttnProcessor()
                    self.set_processor(processor)

                def forward(self, hidden_states, **kwargs):
                    attn_parameters = set(inspect.signature(self.processor.__call__).parameters.keys())
                    kwargs = {k: w for k, w in kwargs.items() if k in attn_parameters}
                    return self.processor(self, hidden_states, **kwargs)
            """,
            """
            class ExampleAttention(nn.Module, AttentionModuleMixin):
                def __init__(self, dim):
                    super().__init__()
                    self.to_v = nn.Linear(dim, dim)
                    self.to_out = nn.Linear(dim, dim)

                def forward(self, hidden_states, temb=None, **kwargs):
                    return self.to_out(self.to_v(hidden_states) + temb)
            """,
        ),
    )

    def apply(self, ctx: Context, node: cst.ClassDef, processor: cst.ClassDef) -> cst.ClassDef:
        forward, call = method(node, "forward"), method(processor, "__call__")
        assert forward is not None and call is not None
        ctx.used(self)
        merged = _merge(forward, call)
        node = with_method(node, merged, "forward")
        return _without_processor_parameter(node)


def _merge(forward: cst.FunctionDef, call: cst.FunctionDef) -> cst.FunctionDef:
    own = [p.name.value for p in parameters(forward)]
    theirs = parameters(call)[2:]
    attn = parameters(call)[1].name.value
    delegation = _delegation(forward)
    bound = _bind(delegation, [p.name.value for p in theirs])
    extra = [p for p in theirs if p.name.value not in own and p.name.value not in bound]
    extra = [p if p.default is not None else p.with_changes(default=cst.Name("None")) for p in extra]
    extra = [p.with_changes(comma=cst.MaybeSentinel.DEFAULT) for p in extra]
    params = forward.params.with_changes(
        params=[p.with_changes(comma=cst.MaybeSentinel.DEFAULT) for p in forward.params.params] + extra
    )
    if isinstance(params.star_kwarg, cst.Param):
        params = params.with_changes(star_kwarg=params.star_kwarg.with_changes(comma=cst.MaybeSentinel.DEFAULT))
    before = _own_statements(forward)
    bindings = [cst.parse_statement(f"{name} = {code(value)}") for name, value in bound.items() if code(value) != name]
    body = rename(cst.IndentedBlock(body=body_statements(call)), attn, "self").body
    doc = [s for s in list(forward.body.body)[:1] if is_docstring(s)]
    return forward.with_changes(
        params=params,
        returns=forward.returns or call.returns,
        body=forward.body.with_changes(body=[*doc, *before, *bindings, *body]),
    )


def _delegation(forward: cst.FunctionDef) -> cst.Call:
    return next(call for call in nodes(forward, cst.Call) if dotted(call.func) == "self.processor")


def _bind(delegation: cst.Call, names: list[str]) -> dict[str, cst.BaseExpression]:
    """What each parameter of the processor is given by ``self.processor(self, …)``."""
    bound: dict[str, cst.BaseExpression] = {}
    positional = [a for a in delegation.args if a.keyword is None and not a.star][1:]
    for name, arg in zip(names, positional, strict=False):
        bound[name] = arg.value
    for arg in delegation.args:
        if arg.keyword is not None:
            bound[arg.keyword.value] = arg.value
    return bound


FILTER_NAMES = ("attn_parameters", "quiet_attn_parameters", "unused_kwargs")


def _own_statements(forward: cst.FunctionDef) -> list[Any]:
    """Statements of the forward itself, without the keyword filter and the delegation."""
    kept = []
    for statement in body_statements(forward)[:-1]:
        text = bare(statement)
        if any(name in text for name in FILTER_NAMES) or text.startswith("kwargs = {"):
            continue
        kept.append(statement)
    return kept


def _without_processor_parameter(node: cst.ClassDef) -> cst.ClassDef:
    init = method(node, "__init__")
    if init is None:
        return node
    body = [s for s in init.body.body if not _sets_processor(s)]
    params = [p for p in init.params.params if p.name.value != "processor"]
    if params:
        params[-1] = params[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
    init = init.with_changes(
        params=init.params.with_changes(
            params=params, kwonly_params=[p for p in init.params.kwonly_params if p.name.value != "processor"]
        ),
        body=init.body.with_changes(body=body),
    )
    return with_method(node, init, "__init__")


def _sets_processor(statement: cst.CSTNode) -> bool:
    if isinstance(statement, cst.If):
        return "processor" in code(statement.test)
    if not isinstance(statement, cst.SimpleStatementLine):
        return False
    text = bare(statement)
    return text.startswith(("self.set_processor(", "processor =", "self.processor ="))


class KeepProcessor(Rule):
    """Hold a processor that stays as a plain attribute, in place of ``set_processor``."""

    name = "keep-processor"
    safety = SURFACE
    VALID = ("self.set_scheduler(scheduler)\n",)
    INVALID = (("self.set_processor(processor)\n", "self.processor = processor\n"),)

    def leave_SimpleStatementLine(
        self, ctx: Context, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine
    ) -> Any:
        if len(updated.body) != 1 or not isinstance(updated.body[0], cst.Expr):
            return updated
        call = updated.body[0].value
        function = dotted(call.func) if isinstance(call, cst.Call) else None
        if not isinstance(call, cst.Call) or not function or not function.endswith(".set_processor"):
            return updated
        holder, value = function.removesuffix(".set_processor"), code(call.args[0].value)
        return cst.parse_statement(f"{holder}.processor = {value}").with_changes(leading_lines=updated.leading_lines)
