"""Rewrite one definition of a model file: which rules apply to it, and in which order."""

from __future__ import annotations

import ast
import re
from typing import Any

import libcst as cst

from porter.facts.attention import Sizes, is_attention_module, sizes
from porter.facts.attention import method as ast_method
from porter.rules.build import absolute_imports, parsed
from porter.rules.engine import Context, Rule, code, method, parameters, walk, with_method
from porter.rules.fold import Facts, fold_function
from porter.rules.model.adaptive_norms import EngineAdaLayerNorm
from porter.rules.model.attention_layer import AttentionLayer
from porter.rules.model.block_metadata import LayerwiseBlocks
from porter.rules.model.classic_attention import ClassicAttention, class_name
from porter.rules.model.config import ExplicitConfig, RegisterToConfig
from porter.rules.model.dead import without_dead
from porter.rules.model.derived import DerivedAttention
from porter.rules.model.lazy_logs import LazyLogs
from porter.rules.model.logger import ReplaceLogger
from porter.rules.model.mixins import METHODS, SWITCHES, RemoveDecorators, RemoveMachinery, RemoveMixins
from porter.rules.model.norms import EngineRMSNorm
from porter.rules.model.parameter_dtype import ParameterDtype
from porter.rules.model.processors import FoldProcessor, KeepProcessor
from porter.rules.model.shadow import ShadowedBase
from porter.rules.model.sites import AttentionSites, plan_for
from porter.source import Definition


class ModelRewriter:
    """Rewrites the definitions of one model file; remembers the classes it specialised for it."""

    def __init__(self) -> None:
        self._specialised: dict[tuple[Any, ...], tuple[str, list[str]]] = {}
        self._names: set[str] = set()

    def __call__(self, definition: Definition, ctx: Context) -> Any:
        node = parsed(definition)
        ctx.record("absolute-imports", node)
        if ctx.vendored:
            return node
        if isinstance(node, cst.ClassDef):
            assert isinstance(definition.node, ast.ClassDef)
            return self._class(definition, node, ctx)
        node = _fold(node, ctx.facts.merged(SWITCHES))
        ctx.record("fold-conditions", node)
        return walk(node, [*self._rules(), AttentionLayer(line=definition.first_line)], ctx)

    def _rules(self) -> list[Rule]:
        return [
            ExplicitConfig(),  # reads a decorator that the next rule removes
            RemoveDecorators(),
            ReplaceLogger(),
            LazyLogs(),
            KeepProcessor(),
            EngineRMSNorm(),
            EngineAdaLayerNorm(),
            ParameterDtype(),
            AttentionSites(self._specialise),
            DerivedAttention(),
            RegisterToConfig(),
            LayerwiseBlocks(),
            RemoveMixins(),
            RemoveMachinery(),
            ShadowedBase(),
        ]

    def _class(self, definition: Definition, node: cst.ClassDef, ctx: Context) -> cst.ClassDef:
        source = definition.node
        assert isinstance(source, ast.ClassDef)
        owner, measured = "self", None
        init = ast_method(source, "__init__")
        if is_attention_module(source):
            plan = plan_for(ctx, source.name)
            measured = sizes(init) if init else None
            if plan is not None and plan.kind == "fold" and plan.processor:
                processor = ctx.tree.resolve(definition.module.name, plan.processor)
                assert processor is not None
                _adopt(ctx, processor)
                node = FoldProcessor().apply(ctx, node, parsed(processor))
                ctx.record(FoldProcessor.name, node)
            elif plan is not None:
                ctx.report(definition.first_line, f"{source.name} keeps its processors: {plan.reason}")
                served = _served_layers(ctx, definition)
                node = _append_to_init(node, served.construct(ctx)) if measured else node
                ctx.record(AttentionLayer.name, node)
        elif init is not None:
            measured = sizes(init)
        call = method(node, "__call__")
        if call is not None and len(parameters(call)) > 1:
            owner = parameters(call)[1].name.value
            measured = _owner_sizes(ctx, definition) if owner == "attn" else None
        if is_attention_module(source):
            node = self._with_mixin_methods(ctx, definition, node)
            ctx.record("mixin-methods", node)
        node = _fold_methods(node, ctx.facts.merged(SWITCHES))
        ctx.record("fold-conditions", node)
        layer = AttentionLayer(owner, measured, definition.first_line)
        node = walk(node, [layer, *self._rules()], ctx)
        if owner == "self":
            node = _append_to_init(node, layer.construct(ctx))
            ctx.record(AttentionLayer.name, node)
        return node

    def _with_mixin_methods(self, ctx: Context, definition: Definition, node: cst.ClassDef) -> cst.ClassDef:
        """Add the arithmetic methods of ``AttentionModuleMixin`` that the class or its processors call."""
        mixin = ctx.tree.resolve("diffusers.models.attention", "AttentionModuleMixin")
        if mixin is None:
            return node
        texts = code(node) + "".join(ast.unparse(p) for p in _processors_in(definition))
        provided = mixin.parse()
        assert isinstance(provided, cst.ClassDef)
        for item in provided.body.body:
            if not isinstance(item, cst.FunctionDef) or item.name.value in METHODS:
                continue
            name = item.name.value
            if re.search(rf"\b(self|attn)\.{name}\(", texts) and method(node, name) is None:
                _adopt(ctx, mixin)
                node = with_method(node, item, name)
        return node

    def _specialise(
        self, ctx: Context, enclosing: str, given: dict[str, Any], known: dict[str, Any], processor: Definition
    ) -> tuple[str, list[str]]:
        """The class specialised for a site, by name, and the parameters that its constructor takes."""
        key = (processor.name, tuple(sorted(given)), tuple((k, repr(v)) for k, v in sorted(known.items())))
        if key in self._specialised:
            return self._specialised[key]
        base = class_name(processor.name, enclosing, "cross_attention_dim" in given)
        name, number = base, 2
        taken = {*self._names, *ctx.module.definitions, *ctx.module.imports, *processor.module.definitions}
        while name in taken:
            name, number = f"{base}{number}", number + 1
        self._names.add(name)
        source = ctx.tree.resolve("diffusers.models.attention_processor", "Attention")
        assert source is not None
        if ctx.recorder is not None:
            ctx.recorder.begin(name, source)
        node = ClassicAttention().specialise(ctx, name, given, known, processor)
        ctx.record(ClassicAttention.name, node)
        constructor = method(node, "__init__")
        assert constructor is not None
        self._specialised[key] = name, [p.name.value for p in parameters(constructor)][1:]
        node = absolute_imports(node, ctx.tree.module(processor.module.name) or ctx.module)
        ctx.record("absolute-imports", node)
        _adopt(ctx, processor)
        _adopt(ctx, source)
        init = ast.parse(code(method(node, "__init__") or node)).body[0]
        measured = sizes(init) if isinstance(init, ast.FunctionDef) else None
        line = ctx.definition.first_line if ctx.definition else 1
        layer = AttentionLayer("self", measured, line)
        rules = [layer, EngineRMSNorm(), RemoveDecorators(), RemoveMachinery(), RemoveMixins()]
        node = walk(node, rules, ctx)
        ctx.extra[name] = _append_to_init(node, layer.construct(ctx))
        if ctx.recorder is not None:
            ctx.record(AttentionLayer.name, ctx.extra[name])
            ctx.recorder.end()
        return self._specialised[key]


def _adopt(ctx: Context, other: Definition) -> None:
    """Names that code taken from ``other`` refers to come from where they come from there."""
    module = other.module
    if module is ctx.module:
        return
    for name, bound in module.imports.items():
        if name not in ctx.module.imports and name not in ctx.module.definitions:
            ctx.imports.setdefault(name, (bound.module, bound.name))
    for name in module.definitions:
        if name not in ctx.module.imports and name not in ctx.module.definitions:
            ctx.imports.setdefault(name, (module.name, name))


def _fold(node: Any, facts: Facts) -> Any:
    return without_dead(node, fold_function(node, facts)) if isinstance(node, cst.FunctionDef) else node


def _fold_methods(node: cst.ClassDef, facts: Facts) -> cst.ClassDef:
    body = [_fold(item, facts) for item in node.body.body]
    return node.with_changes(body=node.body.with_changes(body=body))


def _append_to_init(node: cst.ClassDef, built: list[Any]) -> cst.ClassDef:
    init = method(node, "__init__")
    if init is None or not built:
        return node
    return with_method(node, init.with_changes(body=init.body.with_changes(body=[*init.body.body, *built])), "__init__")


def _processors_in(definition: Definition) -> list[ast.ClassDef]:
    return [
        d.node
        for d in definition.module.definitions.values()
        if isinstance(d.node, ast.ClassDef) and "Processor" in d.name and ast_method(d.node, "__call__")
    ]


def _served_layers(ctx: Context, definition: Definition) -> AttentionLayer:
    """The layers that the processors beside an attention class will call on it."""
    init = ast_method(definition.node, "__init__") if isinstance(definition.node, ast.ClassDef) else None
    layer = AttentionLayer("attn", sizes(init) if init else None, definition.first_line)
    quiet = Context(ctx.tree, ctx.module, definition)
    for processor in _processors_in(definition):
        walk(cst.parse_module(ast.unparse(processor)), [layer], quiet)
    return layer


def _owner_sizes(ctx: Context, definition: Definition) -> Sizes | None:
    """Sizes of the attention classes that a kept processor serves: those beside it that delegate to a processor."""
    for other in definition.module.definitions.values():
        if isinstance(other.node, ast.ClassDef) and is_attention_module(other.node):
            init = ast_method(other.node, "__init__")
            if init is not None:
                return sizes(init)
    return None
