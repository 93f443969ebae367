"""Express classifier-free guidance so that the engine can run its two predictions side by side."""

from __future__ import annotations

import re
from typing import Any

import libcst as cst

from porter.facts.pipeline import PipelineFacts
from porter.rules.engine import (
    SAME,
    STEPWISE,
    Context,
    Rule,
    code,
    make_call,
    names_in,
    nodes,
    parameters,
    statements,
    visit,
)
from porter.rules.fold import dotted
from porter.rules.pipeline.branch_loops import BranchLoop
from porter.rules.pipeline.halves import branches_along, doubled_when, forward_parameters
from porter.rules.pipeline.pairs import Combined, Pair, local_names
from porter.rules.pipeline.predictions import GUIDED, Prediction, denoisers, find_prediction

MIXIN = ("vllm_omni.diffusion.distributed.cfg_parallel", "CFGParallelMixin")
# What a forward says that predicts more than once for its guidance.
GUIDING = re.compile(r"classifier_free_guidance|true_cfg|_cfg\b|guider|negative_prompt_embeds|uncond")
BOTH = '''
def combine_cfg_noise(self, positive_noise_pred, negative_noise_pred, *args, **kwargs):
    """Both predictions as they are: ``denoise`` guides by itself."""
    return {}, {}
'''


class GuidedPrediction(Rule):
    """Give the two predictions of guidance to the engine, which may run each on ranks of its own.

    Two calls become ``predict_noise_maybe_with_cfg``, and what the source does with their results becomes
    ``combine_cfg_noise``, statement by statement; where something else happens in between, both results come back and
    the statements stay where they are. One call on a doubled batch stays one call, and is halved only when the
    engine has ranks for both halves. Branches that a loop predicts, as guiders have it, are each predicted by one rank.
    Anything else keeps its form, and the port's features say why.
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
        """
        class ExamplePipeline(DiffusionPipeline):
            def __init__(self, transformer: ExampleTransformer2DModel):
                super().__init__()
                self.register_modules(transformer=transformer)

            def forward(self, req):
                for chunk in chunks:
                    chunk.prediction = self.transformer(hidden_states=latents, text=last)[0]
                    last = chunk.text
                for chunk in chunks:
                    chunk.prediction = self.transformer(hidden_states=latents)[0]
                    latents.append(chunk.prediction)
                return chunks
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
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req, sizes):
                    if apply_cfg:
                        model_input = latents.repeat(2, 1)
                        embeds = positive_embeds + negative_embeds
                    else:
                        model_input, embeds = latents, positive_embeds
                    samples = list(model_input.unbind(0))
                    noise_pred = self.transformer(hidden_states=samples, text=embeds, sizes=sizes)[0]
                    if apply_cfg:
                        noise_pred = noise_pred[0] + self.guidance_scale * (noise_pred[0] - noise_pred[1])
                    return noise_pred
            """,
            '''
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req, sizes):
                    if apply_cfg:
                        model_input = latents.repeat(2, 1)
                        embeds = positive_embeds + negative_embeds
                    else:
                        model_input, embeds = latents, positive_embeds
                    samples = list(model_input.unbind(0))
                    noise_pred = predict_halves(
                        self, apply_cfg, {'sizes': None}, hidden_states=samples, text=embeds, sizes=sizes
                    )
                    if apply_cfg:
                        noise_pred = noise_pred[0] + self.guidance_scale * (noise_pred[0] - noise_pred[1])
                    return noise_pred

                def combine_cfg_noise(
                    self, positive_noise_pred, negative_noise_pred, *args, **kwargs
                ):
                    """Both predictions as they are: ``denoise`` guides by itself."""
                    return single(positive_noise_pred), single(negative_noise_pred)
            ''',
        ),
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req):
                    branches = self.guider.prepare_inputs(texts)
                    for branch in branches:
                        self.guider.prepare_models(self.transformer)
                        branch.prediction = self.transformer(hidden_states=latents, text=branch.text)[0]
                        self.guider.cleanup_models(self.transformer)
                    return self.guider(branches)[0]
            """,
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req):
                    branches = self.guider.prepare_inputs(texts)
                    for branch in branches:
                        self.guider.prepare_models(self.transformer)
                        branch.prediction = predict_own(
                            self, branches, branch, hidden_states=latents, text=branch.text
                        )
                        self.guider.cleanup_models(self.transformer)
                    exchange_predictions(self, branches, "prediction")
                    return self.guider(branches)[0]

                def predict_noise(self, **kwargs):
                    return self.transformer(**kwargs)[0]
            """,
        ),
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req):
                    noise_pred = self.transformer(hidden_states=model_input, text=embeds)[0]
                    noise_pred = noise_pred[:, -latents.size(1) :]
                    if self.guidance_scale > 1:
                        neg = self.transformer(hidden_states=model_input, text=negative)[0]
                        neg = neg[:, -latents.size(1) :]
                        noise_pred = neg + self.guidance_scale * (noise_pred - neg)
                    latents = noise_pred
                    return latents
            """,
            '''
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req):
                    positive_kwargs = dict(latents=latents, hidden_states=model_input, text=embeds)
                    negative_kwargs = None
                    if self.guidance_scale > 1:
                        negative_kwargs = dict(latents=latents, hidden_states=model_input, text=negative)
                    noise_pred = self.predict_noise_maybe_with_cfg(
                        do_true_cfg=self.guidance_scale > 1,
                        true_cfg_scale=self.guidance_scale,
                        positive_kwargs=positive_kwargs,
                        negative_kwargs=negative_kwargs,
                        cfg_normalize=False,
                    )
                    latents = noise_pred
                    return latents

                def predict_noise(self, latents, **kwargs):
                    noise_pred = self.transformer(**kwargs)[0]
                    noise_pred = noise_pred[:, -latents.size(1) :]
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
                    noise_pred = self.transformer(hidden_states=latents, text=embeds, return_dict=False)
                    if self.guidance_scale > 1:
                        neg = self.transformer(hidden_states=latents, text=negative, return_dict=False)
                        noise_pred = tuple(n + self.guidance_scale * (p - n) for p, n in zip(noise_pred, neg))
                    return noise_pred
            """,
            '''
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, transformer: ExampleTransformer2DModel):
                    super().__init__()
                    self.register_modules(transformer=transformer)

                def forward(self, req):
                    positive_kwargs = dict(hidden_states=latents, text=embeds, return_dict=False)
                    negative_kwargs = None
                    if self.guidance_scale > 1:
                        negative_kwargs = dict(hidden_states=latents, text=negative, return_dict=False)
                    noise_pred = self.predict_noise_maybe_with_cfg(
                        do_true_cfg=self.guidance_scale > 1,
                        true_cfg_scale=self.guidance_scale,
                        positive_kwargs=positive_kwargs,
                        negative_kwargs=negative_kwargs,
                        cfg_normalize=False,
                    )
                    return noise_pred

                def predict_noise(self, **kwargs):
                    return self.transformer(**kwargs)

                def combine_cfg_noise(
                    self,
                    positive_noise_pred,
                    negative_noise_pred,
                    true_cfg_scale,
                    cfg_normalize=False,
                    kwargs=None,
                ):
                    """What guidance makes of the two predictions."""
                    noise_pred = positive_noise_pred
                    neg = negative_noise_pred
                    noise_pred = tuple(n + true_cfg_scale * (p - n) for p, n in zip(noise_pred, neg))
                    return noise_pred
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
            looped = BranchLoop.find(item, body[at + 1 :], self.models)
            new = self._loop(looped) if looped is not None else None
            if new is not None:
                return updated.with_changes(body=[*body[:at], *new, *body[at + 1 :]])
            if positive is None:
                continue
            new = self._two_calls(body, at, positive) or self._one_call(body, at, positive)
            if new is not None:
                return updated.with_changes(body=new)
        return updated

    def _loop(self, found: BranchLoop) -> list[Any] | None:
        arguments = found.prediction.keywords(list(forward_parameters(self.facts, found.prediction.model)))
        if arguments is None:
            return None
        self.methods = statements(found.prediction.method())
        self.needs = {"predict_own", "exchange_predictions"}
        return found.shared(arguments)

    def _two_calls(self, body: list[Any], at: int, positive: Prediction) -> list[Any] | None:
        pair = Pair.find(body, at, positive, self.models)
        if pair is None or {"positive_kwargs", "negative_kwargs"} & set(names_in(self.forward)):
            return None
        pair = pair.alike(local_names(self.forward))
        positive = pair.positive
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
            return [*body[:at], *head, *combined.call(), *body[pair.at + 1 :]]
        self._methods(positive)
        self.needs.add("predict_branches")
        names = f"{positive.variable or 'positive_pred'}, negative_pred"
        first = [] if positive.variable else [positive.assigned("positive_pred")]
        under = [pair.negative.assigned("negative_pred"), *pair.after]
        rest = pair.guard.with_changes(body=pair.guard.body.with_changes(body=under))
        called = f"{names} = predict_branches(self, {code(pair.guard.test)}, positive_kwargs, negative_kwargs)"
        return [*body[:at], *head, *statements(called), *first, *pair.between, rest, *body[pair.at + 1 :]]

    def _one_call(self, body: list[Any], at: int, prediction: Prediction) -> list[Any] | None:
        test = doubled_when(body, at, prediction)
        parameters_of_model = forward_parameters(self.facts, prediction.model)
        arguments = prediction.keywords(list(parameters_of_model)) if test is not None else None
        if test is None or arguments is None:
            return None
        along = branches_along(self.facts, self.forward, prediction, arguments, parameters_of_model)
        called = make_call("predict_halves", ["self", code(test), *([repr(along)] if along else []), *arguments])
        self._methods(prediction)
        self.needs.add("predict_halves")
        assign = prediction.statement.body[0].with_changes(value=called)
        return [*body[:at], prediction.statement.with_changes(body=[assign]), *body[at + 1 :]]

    def _methods(self, prediction: Prediction, combine: str = "") -> None:
        """``combine_cfg_noise``, which hands back both predictions if nothing else is said, and ``predict_noise``."""
        both = (prediction.out_of(f"{branch}_noise_pred") for branch in ("positive", "negative"))
        texts = [combine or BOTH.format(*both)]
        self.needs = set() if prediction.has_parts else {"single"}
        if not prediction.is_default:
            texts.insert(0, prediction.method())
        self.methods = [function for text in texts for function in statements(text)]


def _with_comments(new: list[Any], old: Any) -> list[Any]:
    return [new[0].with_changes(leading_lines=old.leading_lines), *new[1:]]
