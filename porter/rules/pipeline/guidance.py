"""Express classifier-free guidance so that the engine can run its two predictions side by side."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import libcst as cst

from porter.facts.flow import flow, reads
from porter.facts.pipeline import PipelineFacts
from porter.rules.engine import (
    SAME,
    STEPWISE,
    Context,
    Rule,
    code,
    make_call,
    names_bound,
    names_in,
    names_read,
    nodes,
    parameters,
    statements,
    to_ast,
    visit,
)
from porter.rules.fold import dotted
from porter.rules.pipeline.halves import branches_along, forward_parameters
from porter.rules.pipeline.predictions import GUIDED, Prediction, denoisers, find_prediction
from porter.source.walk import walk

MIXIN = ("vllm_omni.diffusion.distributed.cfg_parallel", "CFGParallelMixin")
# How guidance scales are called, at the end of whatever holds them.
SCALE = re.compile(r"(^|[._])(guidance_scale|cfg_scale)$")
# What a forward says that predicts more than once for its guidance.
GUIDING = re.compile(r"classifier_free_guidance|true_cfg|_cfg\b|guider|negative_prompt_embeds|uncond")
BOTH = '''
def combine_cfg_noise(self, positive_noise_pred, negative_noise_pred, *args, **kwargs):
    """Both predictions as they are: ``denoise`` guides by itself."""
    return single(positive_noise_pred), single(negative_noise_pred)
'''


class GuidedPrediction(Rule):
    """Give the two predictions of guidance to the engine, which may run each on ranks of its own.

    Two calls become ``predict_noise_maybe_with_cfg``, and what the source does with their results becomes
    ``combine_cfg_noise``, statement by statement; where something else happens in between, both results come back and
    the statements stay where they are. One call on a doubled batch stays one call, and is halved only when the
    engine has ranks for both halves. Anything else keeps its form, and the port's features say why.
    """

    name = "cfg-parallel"
    safety = SAME
    VALID = (
        """
        class ExamplePipeline(DiffusionPipeline):
            def __init__(self, transformer: ExampleTransformer2DModel):
                super().__init__()
                self.register_modules(transformer=transformer)

            def forward(self, req):
                noise_pred = self.transformer(hidden_states=latents)[0]
                return noise_pred
        """,
    )
    INVALID = (
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req):
                    noise_pred = self.transformer(hidden_states=latents, text=embeds)[0]
                    noise_pred = noise_pred[:, :length]
                    if self.guidance_scale > 1:
                        neg = self.transformer(hidden_states=latents, text=negative)[0]
                        neg = neg[:, :length]
                        noise_pred = neg + self.guidance_scale * (noise_pred - neg)
                    return noise_pred
            """,
            '''
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req):
                    positive_kwargs = dict(hidden_states=latents, text=embeds)
                    negative_kwargs = None
                    if self.guidance_scale > 1:
                        negative_kwargs = dict(hidden_states=latents, text=negative)
                    noise_pred = self.predict_noise_maybe_with_cfg(
                        do_true_cfg=self.guidance_scale > 1,
                        true_cfg_scale=self.guidance_scale,
                        positive_kwargs=positive_kwargs,
                        negative_kwargs=negative_kwargs,
                        cfg_normalize=False,
                        output_slice=length,
                    )
                    return noise_pred

                def combine_cfg_noise(
                    self,
                    positive_noise_pred,
                    negative_noise_pred,
                    true_cfg_scale,
                    cfg_normalize=False,
                    kwargs=None,
                ):
                    """What guidance makes of the two predictions."""
                    noise_pred = single(positive_noise_pred)
                    neg = single(negative_noise_pred)
                    noise_pred = neg + true_cfg_scale * (noise_pred - neg)
                    return noise_pred
            ''',
        ),
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req):
                    if self.do_classifier_free_guidance:
                        embeds = torch.cat([negative_embeds, embeds], dim=1)
                    model_input = torch.cat([latents] * 2) if self.guided else latents
                    model_input = torch.cat([model_input, image_latents], dim=2)
                    noise_pred = self.transformer(hidden_states=model_input, layers=embeds)[0].float()
                    if self.guided:
                        uncond, text = noise_pred.chunk(2)
                        noise_pred = uncond + self.guidance_scale * (text - uncond)
                    return noise_pred
            """,
            '''
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req):
                    if self.do_classifier_free_guidance:
                        embeds = torch.cat([negative_embeds, embeds], dim=1)
                    model_input = torch.cat([latents] * 2) if self.guided else latents
                    model_input = torch.cat([model_input, image_latents], dim=2)
                    noise_pred = predict_halves(
                        self, self.guided, {'layers': 1}, hidden_states=model_input, layers=embeds
                    )
                    if self.guided:
                        uncond, text = noise_pred.chunk(2)
                        noise_pred = uncond + self.guidance_scale * (text - uncond)
                    return noise_pred

                def predict_noise(self, **kwargs):
                    return self.transformer(**kwargs)[0].float()

                def combine_cfg_noise(
                    self, positive_noise_pred, negative_noise_pred, *args, **kwargs
                ):
                    """Both predictions as they are: ``denoise`` guides by itself."""
                    return single(positive_noise_pred), single(negative_noise_pred)
            ''',
        ),
    )

    def __init__(self, facts: PipelineFacts) -> None:
        self.facts = facts

    def apply(self, ctx: Context, forward: cst.FunctionDef) -> list[cst.FunctionDef]:
        """``forward``, and the methods that it now relies on."""
        rewriter = _Blocks(ctx, self.facts, forward)
        made = visit(forward, rewriter)
        if not rewriter.methods:
            ctx.features["cfg_parallel"] = rewriter.reason()
            return [forward]
        ctx.features["cfg_parallel"] = "derived"
        ctx.used(self)
        ctx.need(*MIXIN)
        for name in rewriter.needs:
            ctx.need(STEPWISE, name)
        return [made, *rewriter.methods]


class _Blocks(cst.CSTTransformer):
    """Rewrites the first guided prediction among the blocks of a function."""

    def __init__(self, ctx: Context, facts: PipelineFacts, forward: cst.FunctionDef) -> None:
        self.ctx, self.facts, self.forward = ctx, facts, forward
        self.models = denoisers(facts, forward)
        self.methods: list[cst.FunctionDef] = []
        self.needs: set[str] = set()

    def reason(self) -> str:
        """Why nothing was rewritten."""
        if not any(dotted(call.func) in self.models for call in nodes(self.forward.body, cst.Call)):
            return "not applicable: another pipeline predicts, or a method of its own"
        if any(GUIDED.search(parameter.name.value) for parameter in parameters(self.forward)):
            if GUIDING.search(code(self.forward.body)):
                return "refused: guidance has a form of its own"
            return "not applicable: the model is told its guidance and predicts once"
        return "not applicable: without guidance"

    def visit_Lambda(self, node: cst.Lambda) -> bool:
        return False

    def leave_IndentedBlock(self, original: cst.IndentedBlock, updated: cst.IndentedBlock) -> cst.IndentedBlock:
        if self.methods:
            return updated
        body = list(updated.body)
        for at, item in enumerate(body):
            positive = find_prediction(item, self.models)
            if positive is None:
                continue
            new = self._two_calls(body, at, positive) or self._one_call(body, at, positive)
            if new is not None:
                return updated.with_changes(body=new)
        return updated

    def _two_calls(self, body: list[Any], at: int, positive: Prediction) -> list[Any] | None:
        pair = Pair.find(body, at, positive, self.models)
        if pair is None or {"positive_kwargs", "negative_kwargs"} & set(names_in(self.forward)):
            return None
        head = [
            *_with_comments(statements(f"positive_kwargs = {positive.arguments}"), body[at]),
            *statements("negative_kwargs = None"),
            pair.guard.with_changes(
                body=pair.guard.body.with_changes(
                    body=[*pair.before, *statements(f"negative_kwargs = {pair.negative.arguments}")]
                ),
                orelse=None,
            ),
        ]
        combined = Combined.of(pair, self.forward)
        if combined is not None:
            self._methods(positive, combined.method())
            self.needs = {"single"}
            return [*body[:at], *head, *combined.call(), *body[pair.at + 1 :]]
        self._methods(positive, BOTH)
        self.needs = {"single", "predict_branches"}
        names = f"{positive.variable or 'positive_pred'}, negative_pred"
        first = [] if positive.variable else [positive.assigned("positive_pred")]
        under = [pair.negative.assigned("negative_pred"), *pair.after]
        rest = pair.guard.with_changes(body=pair.guard.body.with_changes(body=under))
        called = f"{names} = predict_branches(self, {code(pair.guard.test)}, positive_kwargs, negative_kwargs)"
        return [*body[:at], *head, *statements(called), *first, *pair.between, rest, *body[pair.at + 1 :]]

    def _one_call(self, body: list[Any], at: int, prediction: Prediction) -> list[Any] | None:
        test = _doubled_when(body, at, prediction)
        parameters_of_model = forward_parameters(self.facts, prediction.model)
        arguments = prediction.keywords(list(parameters_of_model)) if test is not None else None
        if test is None or arguments is None:
            return None
        along = branches_along(self.facts, self.forward, prediction, arguments, parameters_of_model)
        called = make_call("predict_halves", ["self", code(test), *([repr(along)] if along else []), *arguments])
        self._methods(prediction, BOTH)
        self.needs = {"single", "predict_halves"}
        assign = prediction.statement.body[0].with_changes(value=called)
        return [*body[:at], prediction.statement.with_changes(body=[assign]), *body[at + 1 :]]

    def _methods(self, prediction: Prediction, combine: str) -> None:
        texts = [combine]
        if not prediction.is_default:
            texts.insert(0, prediction.method())
        self.methods = [function for text in texts for function in statements(text)]


@dataclass
class Pair:
    """A prediction, and a second one under a test, neither of which needs the other.

    Attributes:
        at: where in the block the test stands.
        between: statements from the first prediction to the test.
        before: statements under the test before the second prediction.
        after: those behind it.
    """

    positive: Prediction
    negative: Prediction
    guard: cst.If
    at: int
    between: list[Any]
    before: list[Any]
    after: list[Any]

    @classmethod
    def find(cls, body: list[Any], at: int, positive: Prediction, models: list[str]) -> Pair | None:
        for index in range(at + 1, len(body)):
            item = body[index]
            if isinstance(item, cst.If):
                for inner, under in enumerate(item.body.body):
                    negative = find_prediction(under, models)
                    if negative is not None:
                        between, inside = body[at + 1 : index], list(item.body.body)
                        pair = cls(positive, negative, item, index, between, inside[:inner], inside[inner + 1 :])
                        return pair if pair._independent() else None
            if find_prediction(item, models) is not None:
                return None
        return None

    def _independent(self) -> bool:
        first, second = self.positive, self.negative
        if first.model != second.model or first.result != second.result or first.positional or second.positional:
            return False
        if not all(_binds_names(item) for item in (*self.between, *self.before)):
            return False
        made = _bound([first.statement, *self.between])
        needed = reads(to_ast(self.guard.test)) | _reads(self.before) | reads(to_ast(second.call))
        return not made & needed and not _bound(self.before) & _reads(self.between)


@dataclass
class Combined:
    """A pair whose results are combined and nothing else: by a method of its own."""

    pair: Pair
    result: str
    scale: str | None
    taken: list[str]
    body: list[Any]
    length: str | None

    @classmethod
    def of(cls, pair: Pair, forward: cst.FunctionDef) -> Combined | None:
        positive, negative = pair.positive.variable, pair.negative.variable
        result = _result(pair)
        if positive is None or negative is None or result is None:
            return None
        after, length = list(pair.after), None
        if pair.between:
            length = _sliced(pair.between[0], positive)
            if len(pair.between) > 1 or length is None or not after or _sliced(after[0], negative) != length:
                return None
            after = after[1:]
        through = flow([node for item in after for node in to_ast(item).body])
        if result not in through.sure or any(isinstance(n, ast.Return) for item in after for n in walk(to_ast(item))):
            return None
        inside = {
            id(node) for item in (pair.guard, pair.positive.statement, *pair.between) for node in nodes(item, cst.Name)
        }
        outside = {n.value for n in nodes(forward.body, cst.Name) if id(n) not in inside}
        if (through.bound - {result}) & outside:
            return None
        free = through.exposed - {positive, negative, "self"}
        local = {n for n in free if n in _bound(list(forward.body.body)) | {p.name.value for p in parameters(forward)}}
        if local & _bound(pair.before):
            return None
        scales = {text for item in after for text in _scales(item)}
        scale = scales.pop() if len(scales) == 1 else None
        if scale is not None:
            after = [visit(item, _Replace(scale, "true_cfg_scale")) for item in after]
            local -= {scale}
        order = [n for item in after for n in names_in(item)]
        return cls(pair, result, scale, sorted(local, key=order.index), after, length)

    def call(self) -> list[Any]:
        test = code(self.pair.guard.test)
        text = f"{self.result} = self.predict_noise_maybe_with_cfg(do_true_cfg={test}, "
        text += f"true_cfg_scale={self.scale or 1.0}, positive_kwargs=positive_kwargs, "
        text += "negative_kwargs=negative_kwargs, cfg_normalize=False"
        text += f", output_slice={self.length}" if self.length else ""
        text += f", kwargs=dict({', '.join(f'{n}={n}' for n in self.taken)})" if self.taken else ""
        return statements(f"{text})")

    def method(self) -> str:
        head = (
            "def combine_cfg_noise(self, positive_noise_pred, negative_noise_pred, true_cfg_scale, "
            "cfg_normalize=False, kwargs=None):\n"
            '    """What guidance makes of the two predictions."""\n'
        )
        lines = [
            f"{self.pair.positive.variable} = single(positive_noise_pred)",
            f"{self.pair.negative.variable} = single(negative_noise_pred)",
            *(f'{name} = kwargs["{name}"]' for name in self.taken),
        ]
        function = cst.ensure_type(cst.parse_statement(f"{head}    pass\n"), cst.FunctionDef)
        doc = list(function.body.body)[:1]
        body = [*doc, *statements("\n".join(lines)), *self.body, *statements(f"return {self.result}")]
        return code(function.with_changes(body=cst.IndentedBlock(body)))


def _result(pair: Pair) -> str | None:
    """The variable that holds the guided prediction, with and without guidance."""
    other = pair.guard.orelse
    if other is None:
        return pair.positive.variable
    if not isinstance(other, cst.Else) or len(other.body.body) != 1:
        return None
    found = re.fullmatch(r"(\w+) = (\w+)", code(other.body.body[0].with_changes(leading_lines=[])))
    return found[1] if found and found[2] == pair.positive.variable else None


def _sliced(item: Any, variable: str) -> str | None:
    """``N`` of ``x = x[:, :N]``."""
    match to_ast(item).body:
        case [
            ast.Assign(
                targets=[ast.Name(id=target)],
                value=ast.Subscript(
                    value=ast.Name(id=source),
                    slice=ast.Tuple(
                        elts=[
                            ast.Slice(lower=None, upper=None, step=None),
                            ast.Slice(lower=None, upper=ast.expr() as upper, step=None),
                        ]
                    ),
                ),
            )
        ] if target == source == variable:
            return ast.unparse(upper)
    return None


def _scales(item: Any) -> Iterable[str]:
    for node in nodes(item, (cst.Name, cst.Attribute)):
        text = dotted(node)
        if text and SCALE.search(text) and (isinstance(node, cst.Attribute) or text in names_in(item)):
            yield text


class _Replace(cst.CSTTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def leave_Attribute(self, original: cst.Attribute, updated: cst.Attribute) -> cst.BaseExpression:
        return cst.Name(self.new) if dotted(original) == self.old else updated.with_changes(attr=original.attr)

    def leave_Name(self, original: cst.Name, updated: cst.Name) -> cst.BaseExpression:
        return cst.Name(self.new) if original.value == self.old else updated

    def leave_Arg(self, original: cst.Arg, updated: cst.Arg) -> cst.Arg:
        return updated.with_changes(keyword=original.keyword)


def _doubled_when(body: list[Any], at: int, prediction: Prediction) -> cst.BaseExpression | None:
    """The test under which a batch holds both branches: what doubles it, or what takes its result apart."""
    for item in body[:at]:
        for node in nodes(item, cst.IfExp):
            if re.search(r"\* 2\b|\bcat\(\[(\w+), \1\]", code(node.body)) and dotted(node.orelse):
                return node.test
    for item in body[at + 1 :]:
        if isinstance(item, cst.If) and ".chunk(2" in code(item.body) and prediction.names & set(names_in(item.body)):
            return item.test
    return None


def _binds_names(item: Any) -> bool:
    """A statement that does nothing but bind variables."""
    return all(
        isinstance(node, ast.Assign) and all(isinstance(n, ast.Name | ast.Tuple) for n in node.targets)
        for node in to_ast(item).body
    )


def _bound(items: list[Any]) -> set[str]:
    return {name for item in items for name in names_bound(item)}


def _reads(items: list[Any]) -> set[str]:
    return {name for item in items for name in names_read(item)}


def _with_comments(new: list[Any], old: Any) -> list[Any]:
    return [new[0].with_changes(leading_lines=old.leading_lines), *new[1:]]
