"""Runs the examples of a rule: each is one module of a small diffusers package, rewritten by that rule alone.

The package has the folders of diffusers and stubs of what examples import, a small classic ``Attention`` among them.
How a rule meets its nodes follows the rewriters of models and pipelines, with every other rule left out.
"""

from __future__ import annotations

import ast
import subprocess
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libcst as cst
from ruff.__main__ import find_ruff_bin

from porter.emit.hooks import post_process_text, pre_process_text
from porter.facts.attention import is_attention_module, sizes
from porter.facts.attention import method as ast_method
from porter.facts.pipeline import CALLBACKS, IP_ADAPTER, PipelineFacts, pipeline_facts
from porter.review.steps import rules
from porter.rules.build import module_facts
from porter.rules.engine import INVARIANTS, Context, Rule, method, parameters, walk, with_method
from porter.rules.fold import NOT_NONE
from porter.rules.model.cache_blocks import imports
from porter.rules.model.classic_attention import ClassicAttention, class_name
from porter.rules.model.hoisting import held_by
from porter.rules.model.processors import FoldProcessor
from porter.rules.model.sequence_parallel import helpers
from porter.rules.model.sites import AttentionSites, plan_for
from porter.rules.model.tensor_parallel import TensorParallel
from porter.source import Definition, SourceTree

MODEL = "models/transformers/transformer_example.py"
PIPELINE = "pipelines/example/pipeline_example.py"
STEM = "example"

CLASSIC = """
class Attention(nn.Module):
    def __init__(self, query_dim, heads=8, dim_head=64, bias=False, scale_qk=True, qk_norm=None, processor=None):
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5 if scale_qk else 1.0
        if qk_norm is None:
            self.norm_q = None
        elif qk_norm == "layer_norm":
            self.norm_q = nn.LayerNorm(query_dim)
        self.to_q = nn.Linear(query_dim, heads * dim_head, bias=bias)
        if processor is None:
            processor = AttnProcessor2_0() if scale_qk else AttnProcessor()
        self.set_processor(processor)

    def set_processor(self, processor):
        self.processor = processor

    def forward(self, hidden_states, **cross_attention_kwargs):
        return self.processor(self, hidden_states, **cross_attention_kwargs)

    def split(self, tensor):
        return tensor.unflatten(-1, (self.heads, -1))


class AttnProcessor:
    def __call__(self, attn, hidden_states):
        return attn.to_q(hidden_states)


class AttnProcessor2_0:
    def __call__(self, attn, hidden_states):
        query = attn.to_q(hidden_states)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        return attn.split(query)
"""

STUBS = {
    "__init__.py": '__version__ = "0.0.0"\n',
    "models/__init__.py": (
        "from .autoencoders.autoencoder_kl import AutoencoderKL\n"
        "from .transformers.transformer_example import ExampleTransformer2DModel\n"
    ),
    "models/attention_processor.py": CLASSIC,
    "models/controlnets/__init__.py": "",
    "models/controlnets/controlnet_example.py": (
        "class ExampleControlNetModel(ModelMixin):\n    @register_to_config\n    def __init__(self, dim=4): ...\n\n\n"
        "class ExampleMultiControlNetModel(ModelMixin):\n    def __init__(self, controlnets): ...\n"
    ),
    "models/autoencoders/__init__.py": "",
    "models/autoencoders/autoencoder_kl.py": (
        "class AutoencoderKL:\n    def __init__(self, latent_channels=4, scale_factor=8): ...\n"
    ),
    "models/transformers/__init__.py": "",
    MODEL: "class ExampleTransformer2DModel: ...\n",
    "pipelines/__init__.py": "",
    "pipelines/example/__init__.py": "",
}
# Whatever a pipeline's call takes, an example of its removal may show.
DROPPED = (*CALLBACKS, *IP_ADAPTER, "return_dict")


@dataclass
class Example:
    """One example, readable as the rule reads a diffusers file."""

    tree: SourceTree
    ctx: Context
    parsed: cst.Module

    @property
    def classes(self) -> list[Definition]:
        return [d for d in self.ctx.module.definitions.values() if isinstance(d.node, ast.ClassDef)]

    def context(self, definition: Definition) -> Context:
        """The context in which ``definition`` is rewritten; what happens is kept with the example's."""
        self.ctx.definition = definition
        return self.ctx

    def with_class(self, name: str, node: Any) -> None:
        """Put ``node`` in the place of a top-level class; None takes it out."""
        body: list[Any] = []
        for item in self.parsed.body:
            if not (isinstance(item, cst.ClassDef) and item.name.value == name):
                body.append(item)
            elif node is not None:
                body.append(node)
        self.parsed = self.parsed.with_changes(body=body)

    def node(self, name: str) -> cst.ClassDef:
        return next(i for i in self.parsed.body if isinstance(i, cst.ClassDef) and i.name.value == name)


def rule_types() -> list[type[Rule]]:
    """All rules, sorted by name."""
    return [rule for _, rule in sorted(rules().items())]


def plain(text: str) -> str:
    """An example as a file has it, whatever the indentation that it stands with in the rule."""
    return textwrap.dedent(text).strip("\n") + "\n"


def package(folder: Path, path: str, text: str) -> SourceTree:
    """A small diffusers package below ``folder`` whose file ``path`` holds ``text``."""
    files = {**STUBS, path: text}
    for name, content in files.items():
        place = folder / "diffusers" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content, encoding="utf-8")
    return SourceTree(folder)


def load(rule: type[Rule], text: str, folder: Path) -> Example:
    """``text`` as a model file or a pipeline file, whichever the rule is for."""
    path = PIPELINE if ".pipeline." in rule.__module__ else MODEL
    text = plain(text)
    tree = package(folder, path, text)
    module = tree.module("diffusers." + path.removesuffix(".py").replace("/", "."))
    assert module is not None
    return Example(tree, Context(tree, module, facts=module_facts(module)), cst.parse_module(text))


def rewritten(rule: type[Rule], text: str, folder: Path) -> tuple[str, Context]:
    """What the rule makes of ``text``, and what it said while it did."""
    example = load(rule, text, folder)
    RUNNERS.get(rule.__name__, _walked)(rule, example)
    return example.parsed.code, example.ctx


def formatted(text: str) -> str:
    """Laid out by ruff, in lines short enough to stand indented in a rule."""
    command = [find_ruff_bin(), "format", "--isolated", "--line-length", "100", "--no-cache", "--quiet", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _walked(rule: type[Rule], example: Example) -> None:
    example.parsed = walk(example.parsed, [rule()], example.ctx)


def _attention_layer(rule: type[Rule], example: Example) -> None:
    """Layers are built by the class that has the sizes; a processor calls those of ``attn``."""
    for definition in example.classes:
        assert isinstance(definition.node, ast.ClassDef)
        ctx, node = example.context(definition), example.node(definition.name)
        init, call = ast_method(definition.node, "__init__"), method(node, "__call__")
        owner = parameters(call)[1].name.value if call else "self"
        layer = rule(owner, sizes(init) if init else None, definition.first_line)  # type: ignore[call-arg]
        node = walk(node, [layer], ctx)
        built, new_init = layer.construct(ctx), method(node, "__init__")  # type: ignore[attr-defined]
        if built and new_init is not None:
            body = new_init.body.with_changes(body=[*new_init.body.body, *built])
            node = with_method(node, new_init.with_changes(body=body), "__init__")
        example.with_class(definition.name, node)


def _fold_processor(rule: type[Rule], example: Example) -> None:
    """Attention classes whose plan is to fold; a processor that was folded is left behind, as nothing names it."""
    for definition in example.classes:
        assert isinstance(definition.node, ast.ClassDef)
        plan = plan_for(example.ctx, definition.name) if is_attention_module(definition.node) else None
        if plan is None or plan.kind != "fold" or plan.processor is None:
            continue
        processor, node = example.node(plan.processor), example.node(definition.name)
        folded = rule().apply(example.context(definition), node, processor)  # type: ignore[attr-defined]
        example.with_class(definition.name, folded)
        example.with_class(plan.processor, None)


def _attention_sites(rule: type[Rule], example: Example) -> None:
    def specialise(
        ctx: Context, enclosing: str, given: Any, known: Any, processor: Definition
    ) -> tuple[str, list[str]]:
        name = class_name(processor.name, enclosing, "cross_attention_dim" in given)
        ctx.extra[name] = cst.Name(name)  # stands for the class that another rule makes
        return name, [parameter for parameter in given if known.get(parameter, NOT_NONE) is NOT_NONE]

    _sites(example, specialise)


def _classic_attention(rule: type[Rule], example: Example) -> None:
    """Each specialised class stands above the code that builds it."""
    made: dict[str, cst.ClassDef] = {}

    def specialise(
        ctx: Context, enclosing: str, given: Any, known: Any, processor: Definition
    ) -> tuple[str, list[str]]:
        name = class_name(processor.name, enclosing, "cross_attention_dim" in given)
        made[name] = ClassicAttention().specialise(ctx, name, given, known, processor)
        constructor = method(made[name], "__init__")
        assert constructor is not None
        return name, [p.name.value for p in parameters(constructor)][1:]

    before = example.parsed
    _sites(example, specialise)
    if not made:
        example.parsed = before
    imports = [i for i in example.parsed.body if isinstance(i, cst.SimpleStatementLine)]
    rest = [i for i in example.parsed.body if i not in imports]
    example.parsed = example.parsed.with_changes(body=[*imports, *made.values(), *rest])


def _sites(example: Example, specialise: Callable[..., tuple[str, list[str]]]) -> None:
    definition = example.classes[-1] if example.classes else None
    if definition is not None:
        example.context(definition)
    example.parsed = walk(example.parsed, [AttentionSites(specialise)], example.ctx)


def _pipelines(example: Example) -> list[tuple[Definition, PipelineFacts]]:
    found = [d for d in example.classes if d.name.endswith("Pipeline")]
    return [(d, pipeline_facts(example.tree, d)) for d in found]


def _drop_arguments(rule: type[Rule], example: Example) -> None:
    for definition, _ in _pipelines(example):
        node = example.node(definition.name)
        methods = [item for item in node.body.body if isinstance(item, cst.FunctionDef)]
        signatures = {f.name.value: [p.name.value for p in f.params.params][1:] for f in methods}
        dropping = rule(DROPPED, signatures)  # type: ignore[call-arg]
        example.with_class(definition.name, walk(node, [dropping], example.context(definition)))


def _constructor(rule: type[Rule], example: Example) -> None:
    _method(example, "__init__", lambda facts, ctx, function: rule(facts).apply(ctx, function))  # type: ignore


def _forward(rule: type[Rule], example: Example) -> None:
    _method(example, "__call__", lambda facts, ctx, function: rule(facts).apply(ctx, function))  # type: ignore


def _steps(rule: type[Rule], example: Example) -> None:
    """The methods that a call was cut into, where the call was."""
    for definition, facts in _pipelines(example):
        node = example.node(definition.name)
        body: list[Any] = []
        for item in node.body.body:
            is_call = isinstance(item, cst.FunctionDef) and item.name.value == "forward"
            body += rule(facts).apply(example.context(definition), item) if is_call else [item]  # type: ignore
        example.with_class(definition.name, node.with_changes(body=node.body.with_changes(body=body)))


def _method(example: Example, name: str, apply: Callable[[PipelineFacts, Context, cst.FunctionDef], Any]) -> None:
    for definition, facts in _pipelines(example):
        node = example.node(definition.name)
        function = method(node, name)
        if function is not None:
            result = apply(facts, example.context(definition), function)
            body = [result if item is function else item for item in node.body.body]
            example.with_class(definition.name, node.with_changes(body=node.body.with_changes(body=body)))


def _post_process(rule: type[Rule], example: Example) -> None:
    """The forward, and below the class the hook that its calls went to."""
    hooks: list[str] = []
    for definition, facts in _pipelines(example):
        init = method(example.node(definition.name), "__init__")

        def apply(facts: PipelineFacts, ctx: Context, call: cst.FunctionDef, init: Any = init) -> cst.FunctionDef:
            call, hook = rule(init).apply(ctx, call, facts.default("output_type"))  # type: ignore
            if hook.calls:
                hooks.append(post_process_text(STEM, facts.name, hook))
            return call

        _method(example, "__call__", apply)
    _append(example, hooks)


def _pre_process(rule: type[Rule], example: Example) -> None:
    """The forward, and below the class the hook that its statements went to."""
    hooks: list[str] = []
    for definition, _ in _pipelines(example):
        init = method(example.node(definition.name), "__init__")

        def apply(facts: PipelineFacts, ctx: Context, call: cst.FunctionDef, init: Any = init) -> cst.FunctionDef:
            call, hook = rule(facts, init).apply(ctx, call)  # type: ignore
            if hook is not None:
                hooks.append(pre_process_text(STEM, facts.name, hook))
            return call

        _method(example, "__call__", apply)
    _append(example, hooks)


def _append(example: Example, texts: list[str]) -> None:
    if texts:
        example.parsed = cst.parse_module(example.parsed.code + "".join(f"\n\n{text}" for text in texts))


def _tensor_parallel(rule: type[Rule], example: Example) -> None:
    """The rule sees all definitions of a file at once; what it puts before them is kept apart."""
    result = rule().apply(list(example.parsed.body))  # type: ignore[attr-defined]
    example.parsed = example.parsed.with_changes(body=result.nodes)
    if result.changed:
        example.ctx.used(rule())
    example.ctx.imports |= result.imports
    example.ctx.extra |= {helper.name.value: helper for helper in result.helpers}


def _merge_projections(rule: type[Rule], example: Example) -> None:
    """The rule merges what was split before; only with something to merge is the split part of the example."""
    split = TensorParallel().apply(list(example.parsed.body))
    changed, _ = rule().apply(split)  # type: ignore[attr-defined]
    if changed:
        example.parsed = example.parsed.with_changes(body=split.nodes)
        example.ctx.used(rule())
        example.ctx.imports |= split.imports
        example.ctx.extra |= {helper.name.value: helper for helper in split.helpers}


def _sequence_parallel(rule: type[Rule], example: Example) -> None:
    """As for tensor parallelism."""
    nodes, changed = rule().apply(list(example.parsed.body))  # type: ignore[attr-defined]
    if changed:
        example.parsed = example.parsed.with_changes(body=nodes)
        example.ctx.used(rule())
        example.ctx.extra |= {helper.name.value: helper for helper in helpers()}


def _thread_quantization(rule: type[Rule], example: Example) -> None:
    """As for tensor parallelism."""
    nodes, changed = rule().apply(list(example.parsed.body))  # type: ignore[attr-defined]
    if changed:
        example.parsed = example.parsed.with_changes(body=nodes)
        example.ctx.used(rule())


def _hoist(rule: type[Rule], example: Example) -> None:
    """As for tensor parallelism; the last class of the file is the model."""
    body = list(example.parsed.body)
    bound = {name: (held.module, held.name) for name, held in example.ctx.module.imports.items()}
    nodes, changed = rule().apply(body, example.classes[-1].name, bound, example.tree)  # type: ignore[attr-defined]
    if changed:
        example.parsed = example.parsed.with_changes(body=nodes)
        example.ctx.used(rule())
        for name in held_by(nodes):
            example.ctx.need(INVARIANTS, name)


def _cache_blocks(rule: type[Rule], example: Example) -> None:
    """The rule sees all definitions of a file at once; the model comes last."""
    nodes = list(example.parsed.body)
    nodes, found = rule().apply(nodes, nodes[-1].name.value)  # type: ignore[attr-defined]
    if found.patterns:
        example.parsed = example.parsed.with_changes(body=nodes)
        example.ctx.used(rule())
        example.ctx.imports |= imports()


RUNNERS: dict[str, Callable[[type[Rule], Example], None]] = {
    "AttentionLayer": _attention_layer,
    "AttentionSites": _attention_sites,
    "CacheBlocks": _cache_blocks,
    "ClassicAttention": _classic_attention,
    FoldProcessor.__name__: _fold_processor,
    "DropArguments": _drop_arguments,
    "Forward": _forward,
    "HoistInvariants": _hoist,
    "PipelineConstructor": _constructor,
    "GuidedPrediction": _steps,
    "StepExecution": _steps,
    "PostProcessHook": _post_process,
    "MergeProjections": _merge_projections,
    "SequenceParallel": _sequence_parallel,
    "TensorParallel": _tensor_parallel,
    "ThreadQuantization": _thread_quantization,
    "PreProcessHook": _pre_process,
}
