"""Rewrite the definitions of a pipeline file; the pipeline class itself by the guide's steps."""

from __future__ import annotations

import ast
import re
from typing import Any

import libcst as cst

from porter.facts.batching import batch_refusal
from porter.facts.evidence import DERIVED, NOT_APPLICABLE, REFUSED, Feature, disproof, fingerprint, state
from porter.facts.pipeline import PipelineFacts
from porter.facts.tiers import DEEPEST, left_out
from porter.rules.build import parsed
from porter.rules.engine import SUPPORT, Context, Rule, bare, code, names_in, statements, walk
from porter.rules.fold import UNKNOWN, Facts, dotted, fold_function
from porter.rules.model.config import RegisterToConfig
from porter.rules.model.lazy_logs import LazyLogs
from porter.rules.model.logger import ReplaceLogger
from porter.rules.model.mixins import RemoveDecorators, is_mixin
from porter.rules.pipeline.arguments import DropArguments
from porter.rules.pipeline.constructor import PipelineConstructor
from porter.rules.pipeline.forward import Forward
from porter.rules.pipeline.guidance import MIXIN, GuidedPrediction
from porter.rules.pipeline.members import CacheContext, PipelineMembers, StaticHelpers
from porter.rules.pipeline.postprocess import PostProcess, PostProcessHook
from porter.rules.pipeline.preprocess import PreProcess, PreProcessHook
from porter.rules.pipeline.steps import StepExecution, request_attributes
from porter.source import Definition
from porter.source.walk import walk as nodes_of

BASES = (
    ("vllm_omni.diffusion.models.progress_bar", "ProgressBarMixin"),
    ("vllm_omni.diffusion.models.interface", "SupportsComponentDiscovery"),
    ("vllm_omni.diffusion.profiler.diffusion_pipeline_profiler", "DiffusionPipelineProfilerMixin"),
)
# The plan of a batch of requests: the call's own batch.
ONE_CALL = "one call"
PIPELINE_BASE = "DiffusionPipeline"
IMAGE_INPUTS = ("image", "images", "video", "control_image", "mask_image", "reference_images")


class PipelineRewriter:
    """Rewrites one pipeline file. ``post_process`` holds what its hook does once the class was rewritten."""

    def __init__(self, facts: PipelineFacts, tier: str = DEEPEST) -> None:
        self.facts, self._tier = facts, tier
        self.post_process = PostProcess()
        self.pre_process: PreProcess | None = None
        self.features: dict[str, str] = {}
        self.plans: dict[str, str] = {}
        self.constants: tuple[str, ...] = ()
        """What a request hands to all of its steps alike."""

    def __call__(self, definition: Definition, ctx: Context) -> Any:
        node = parsed(definition)
        ctx.record("absolute-imports", node)
        if ctx.vendored:
            return node
        if definition.name == self.facts.name:
            assert isinstance(node, cst.ClassDef)
            return self._pipeline(definition, node, ctx)
        if isinstance(node, cst.FunctionDef):
            node = fold_function(node, ctx.facts)
            ctx.record("fold-conditions", node)
        return walk(node, [RemoveDecorators(), ReplaceLogger(), LazyLogs()], ctx)

    def _pipeline(self, definition: Definition, node: cst.ClassDef, ctx: Context) -> cst.ClassDef:
        source = definition.node
        assert isinstance(source, ast.ClassDef)
        facts = _pipeline_facts(ctx, self.facts)
        methods = _functions(node)
        signatures = {name: [p.name.value for p in f[0].params.params][1:] for name, f in methods.items()}
        rules: list[Rule] = [
            DropArguments(tuple(self.facts.dropped), signatures),
            PipelineMembers(),
            CacheContext(),
            StaticHelpers(),
            RegisterToConfig(),
            RemoveDecorators(),
            LazyLogs(),
        ]
        ported: dict[str, list[Any]] = {}

        def record(step: str, without_others: bool = True) -> None:
            if ctx.recorder is not None:
                ctx.record(step, _with_functions(node, ported, without_others))

        queue = ["__init__", "__call__"]
        while queue:
            name = queue.pop(0)
            folded = [fold_function(function, facts) for function in methods[name]]
            for used in re.findall(r"\bself\.(\w+)", " ".join(code(function) for function in folded)):
                if used in methods and used not in ported and used not in queue and used != name:
                    queue.append(used)
            ported[name] = folded
        record("fold-conditions", without_others=False)
        record("left-out")
        node = walk(_with_functions(node, ported), rules, ctx)
        ported = _functions(node)
        [init], [call] = ported["__init__"], ported["__call__"]
        call, self.pre_process = PreProcessHook(self.facts, init).apply(ctx, call)
        ported["__call__"] = [call]
        record(PreProcessHook.name)
        call, self.post_process = PostProcessHook(init, self.facts).apply(ctx, call, self.facts.default("output_type"))
        ported["__call__"] = [call]
        record(PostProcessHook.name)
        for component, reason in self.facts.kept.items():
            ctx.report(definition.first_line, f"{component} stays diffusers' own model: {reason}")
        attributes = request_attributes(ported, [c.name for c in self.facts.components])
        forward = Forward(self.facts).apply(ctx, call)
        ported["__call__"] = [forward]
        record(Forward.name)
        deep = self._tier == DEEPEST
        [forward, *guidance] = GuidedPrediction(self.facts).apply(ctx, forward) if deep else [forward]
        ported["__call__"] = [forward]
        if ctx.recorder is not None:
            ctx.record(GuidedPrediction.name, _followed(_with_functions(node, ported), forward, guidance))
        stepping = StepExecution(self.facts)
        forwards = stepping.apply(ctx, forward) if deep else [forward]
        if ctx.recorder is not None:
            after = [*forwards[1:], *guidance]
            ported["__call__"] = [forwards[0]]
            ctx.record(StepExecution.name, _followed(_with_functions(node, ported), forwards[0], after))
        self._prove(ctx, guidance, forwards)
        ported["__init__"] = [PipelineConstructor(self.facts, _predicts_twice(forwards, self.facts)).apply(ctx, init)]
        if ctx.recorder is not None:
            ctx.record(PipelineConstructor.name, _followed(_with_functions(node, ported), forwards[0], after))
        kept = [s for s in node.body.body if not isinstance(s, cst.FunctionDef)]
        [constructor] = ported.pop("__init__")
        del ported["__call__"]
        batching = self._batching(source, set(ported), len(forwards) > 1)
        self.features["request_batch"] = state(self.facts.name, "request_batch", batching, "pipelines")
        self.constants = stepping.constants
        several = batching.state == DERIVED
        if several:
            self.plans["request_batch"] = batching.fingerprint
            forwards = [_returning_several(function) for function in forwards]
        head = statements(self._attributes(attributes if len(forwards) > 1 else None, several, stepping.constants))
        rest = [function for functions in ported.values() for function in functions]
        first = _without_machinery([*kept, *head, constructor])
        body = [*first, *rest, *forwards, *guidance, *self._load_weights(ctx)]
        ctx.dropped.extend(n for n in self.facts.dropped if n not in ctx.dropped)
        node = node.with_changes(
            bases=self._bases(ctx, node, bool(guidance)), decorators=[], body=node.body.with_changes(body=body)
        )
        ctx.record("port-class", node)
        return node

    def _prove(self, ctx: Context, guidance: list[Any], forwards: list[Any]) -> None:
        """What evidence says about what was derived: a proof counts for the plan that it was made with."""
        held = [sorted(set(re.findall(r'state\.extra(?:\[|\.get\()"(\w+)', code(function)))) for function in forwards]
        plans = {"cfg_parallel": [code(function) for function in guidance], "step_execution": held}
        for name, plan in plans.items():
            missing = f"{NOT_APPLICABLE}: nothing predicts"
            found = ctx.features.get(name, missing if self._tier == DEEPEST else f"{REFUSED}: {left_out(self._tier)}")
            if found == DERIVED:
                found = state(self.facts.name, name, Feature(DERIVED, fingerprint=fingerprint(plan)), "pipelines")
                self.plans[name] = fingerprint(plan)
            self.features[name] = found
        self.facts.parallel["cfg_parallel"] = self.features["cfg_parallel"]

    def _batching(self, source: ast.ClassDef, reached: set[str], stepwise: bool) -> Feature:
        """Whether requests can be one call: what the call runs of its class and its file says."""
        if self._tier != DEEPEST:
            return Feature(REFUSED, left_out(self._tier))
        if not stepwise:
            return Feature(REFUSED, "it runs whole")
        needed = [p.name for p in self.facts.parameters if p.name in IMAGE_INPUTS and p.default is None]
        if needed or self.pre_process is not None:
            return Feature(REFUSED, "a request brings more than texts")
        functions = [item for item in source.body if isinstance(item, ast.FunctionDef) and item.name in reached]
        called = {node.id for item in functions for node in nodes_of(item) if isinstance(node, ast.Name)}
        helpers = [d.node for name, d in self.facts.definition.module.definitions.items() if name in called]
        functions += [node for node in helpers if isinstance(node, ast.FunctionDef)]
        reason = batch_refusal(functions, [p.name for p in self.facts.parameters])
        plan = Feature(DERIVED, fingerprint=ONE_CALL)
        # What a VAE or an encoder cannot take is not in the pipeline's text: a trial says so.
        reason = reason or disproof(self.facts.name, "request_batch", plan, "pipelines")
        return Feature(REFUSED, reason) if reason else plan

    def _bases(self, ctx: Context, node: cst.ClassDef, guided: bool) -> list[cst.Arg]:
        ctx.imports["nn"] = ("torch", "nn")
        ctx.imports["torch"] = ("torch", None)
        names = ["nn.Module"]
        for base in node.bases:
            name = dotted(base.value)
            if name and name != PIPELINE_BASE and not is_mixin(ctx, name):
                names.append(name)
        for module, name in (*([MIXIN] if guided else []), *BASES):
            names.append(ctx.need(module, name))
        return [cst.Arg(cst.parse_expression(name)) for name in names]

    def _attributes(self, of_request: list[str] | None, several: bool, constants: tuple[str, ...]) -> str:
        dits = [c.name for c in self.facts.components if c.converted]
        names = [c.name for c in self.facts.components]
        encoders = [n for n in names if re.match(r"(text|image|audio)_encoder", n)]
        vaes = [n for n in names if re.search(r"(^|_)(vae|vqvae|vq_model|movq)$", n)]
        text = f"dropped_arguments: ClassVar[tuple[str, ...]] = {tuple(self.facts.dropped)!r}\n"
        text += "".join(
            f"{key}: ClassVar[list[str]] = {value!r}\n"
            for key, value in (("_dit_modules", dits), ("_encoder_modules", encoders), ("_vae_modules", vaes))
        )
        if any(p.name in IMAGE_INPUTS for p in self.facts.parameters):
            text += "support_image_input: ClassVar[bool] = True\n"
        if of_request is not None:
            own = [c.name for c in self.facts.components if re.search(r"(^|_)(scheduler|guider)$", c.name)]
            text += "supports_step_execution: ClassVar[bool] = True\n"
            text += f"supports_request_batch: ClassVar[bool] = {several}\n"
            text += f"request_components: ClassVar[tuple[str, ...]] = {tuple(own)!r}\n"
            text += f"request_attributes: ClassVar[tuple[str, ...]] = {tuple(of_request)!r}\n"
            text += f"request_constants: ClassVar[tuple[str, ...]] = {constants!r}\n"
        return text.replace("'", '"')

    def _load_weights(self, ctx: Context) -> list[Any]:
        ctx.need("typing", "ClassVar")
        ctx.need("collections.abc", "Iterable")
        signature = "def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:\n"
        if not any(c.converted for c in self.facts.components):
            # The engine holds a model without sources to every parameter that it has.
            return statements(
                f"{signature}"
                "    # Every component was loaded from its own folder.\n"
                "    return {name for name, _ in self.named_parameters()}\n"
            )
        ctx.need(SUPPORT, "load_component_weights")
        return statements(f"{signature}    return load_component_weights(self, weights)\n")


def _predicts_twice(forwards: list[Any], facts: PipelineFacts) -> bool:
    """Whether a guided step calls a model once for each branch, rather than once for a batch of both."""
    text = "".join(code(function) for function in forwards)
    calls = (len(re.findall(rf"\bself\.{c.name}\(", text)) for c in facts.components if c.converted)
    apart = ("predict_branches(", "predict_noise_maybe_with_cfg(", "predict_own(")
    return any(name in text for name in apart) or any(n == 2 for n in calls)


def _returning_several(function: cst.FunctionDef) -> cst.FunctionDef:
    """``forward`` as a pipeline annotates it that takes several requests at a time."""
    if function.name.value != "forward":
        return function
    return function.with_changes(returns=cst.Annotation(cst.parse_expression("list[DiffusionOutput]")))


def _functions(node: cst.ClassDef) -> dict[str, list[cst.FunctionDef]]:
    """The functions of a class by name: a property and its setter are two of one name."""
    found: dict[str, list[cst.FunctionDef]] = {}
    for item in node.body.body:
        if isinstance(item, cst.FunctionDef):
            found.setdefault(item.name.value, []).append(item)
    return found


def _with_functions(node: cst.ClassDef, functions: dict[str, list[Any]], without_others: bool = True) -> cst.ClassDef:
    """The class with these functions in the place of its own; those of other names go, or stay as they are."""
    seen: dict[str, int] = {}
    body: list[Any] = []
    for item in node.body.body:
        if isinstance(item, cst.FunctionDef):
            name = item.name.value
            seen[name] = seen.get(name, -1) + 1
            if name in functions:
                item = functions[name][seen[name]]
            elif without_others:
                continue
        body.append(item)
    return node.with_changes(body=node.body.with_changes(body=body))


def _followed(node: cst.ClassDef, function: Any, others: list[Any]) -> cst.ClassDef:
    """The class with other functions behind one of its own."""
    body = [part for item in node.body.body for part in ([item, *others] if item is function else [item])]
    return node.with_changes(body=node.body.with_changes(body=body))


def _pipeline_facts(ctx: Context, facts: PipelineFacts) -> Facts:
    """What is known inside a pipeline: dropped parameters are absent, removed mixins are not there."""
    values: dict[str, Any] = {name: _scalar(facts.default(name)) for name in facts.dropped}
    if "return_dict" in values:
        values["return_dict"] = True
    values["USE_PEFT_BACKEND"] = True
    # Caching is the engine's business: diffusers' hooks are not on a ported transformer.
    values.update({f"self.{c.name}.is_cache_enabled": False for c in facts.components if c.converted})

    def is_instance(call: cst.Call) -> Any:
        if len(call.args) == 2 and dotted(call.args[0].value) == "self":
            names = names_in(call.args[1].value)
            if names and all(is_mixin(ctx, n) for n in names):
                return False
        return UNKNOWN

    merged = ctx.facts.merged(values)
    merged.calls["isinstance"] = is_instance
    return merged


def _scalar(default: str | None) -> Any:
    """A number as a default stands for itself; anything else that was dropped is absent."""
    value = ast.literal_eval(default) if default and default.replace(".", "").isdigit() else None
    return value


CLASS_MACHINERY = (
    "model_cpu_offload_seq",
    "_callback_tensor_inputs",
    "_optional_components",
    "_exclude_from_cpu_offload",
    "_last_supported_version",
    "_load_connected_pipes",
)


def _without_machinery(statements: list[Any]) -> list[Any]:
    """Statements of a class without those that a port has no use for; a comment that lets formatting go on stays."""
    kept: list[Any] = []
    formatting: list[cst.EmptyLine] = []
    for statement in statements:
        lines = [*formatting, *statement.leading_lines]
        formatting = []
        if _is_class_machinery(statement):
            formatting = [line for line in lines if line.comment is not None and line.comment.value == "# fmt: on"]
        else:
            kept.append(statement.with_changes(leading_lines=lines))
    return kept


def _is_class_machinery(statement: cst.CSTNode) -> bool:
    return bare(statement).split(" ")[0].split("=")[0] in CLASS_MACHINERY
