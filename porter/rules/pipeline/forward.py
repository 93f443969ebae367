"""Turn ``__call__`` into ``forward(req, …)``: request in, ``DiffusionOutput`` out."""

from __future__ import annotations

from typing import Any

import libcst as cst

from porter.facts.pipeline import PipelineFacts
from porter.rules.engine import (
    SUPPORT,
    SURFACE,
    Context,
    Rule,
    body_statements,
    code,
    is_docstring,
    nodes,
    statements,
    visit,
)
from porter.rules.fold import dotted

# Fields of diffusers' outputs that are flags beside the media.
FLAGS = ("nsfw_content_detected", "revised_prompts")


class Forward(Rule):
    """Rewrite ``__call__`` as ``forward`` (guide, step 1.2.3).

    The request comes first; the diffusers parameters follow with the diffusers defaults. A value of the request wins
    over an argument, an argument over the default, and an omitted value leaves the default as it is.
    """

    name = "pipeline-forward"
    safety = SURFACE
    VALID = (
        """
        def retrieve_timesteps(scheduler, num_inference_steps):
            return scheduler.timesteps, num_inference_steps


        class ExampleGuidance:
            def __call__(self, prediction, scale):
                return (prediction * scale,)
        """,
    )
    INVALID = (
        (
            '''
            class ExamplePipeline(DiffusionPipeline):
                @torch.no_grad()
                @replace_example_docstring(EXAMPLE_DOC_STRING)
                def __call__(self, prompt, height: int = 512):
                    """Draw a picture."""
                    image = self.draw(prompt, height, lambda t: t + 1)
                    return ExamplePipelineOutput(images=image, nsfw_content_detected=None)
            ''',
            '''
            class ExamplePipeline(DiffusionPipeline):
                @torch.no_grad()
                def forward(
                    self, req: DiffusionRequestBatch, prompt=None, height: int = 512
                ) -> DiffusionOutput:
                    """Draw a picture."""
                    state = request_state(req)
                    given = request_arguments(state, type(self))
                    prompt = given.pop("prompt", prompt)
                    height = given.pop("height", height)
                    image = self.draw(prompt, height, lambda t: t + 1)
                    return DiffusionOutput(output=image)
            ''',
        ),
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __call__(self, prompt=None, **kwargs):
                    def shift(t):
                        return t + 1

                    video, audio = self.film(prompt, shift, **kwargs)
                    return ExamplePipelineOutput(frames=video, audio=audio)
            """,
            """
            class ExamplePipeline(DiffusionPipeline):
                def forward(self, req: DiffusionRequestBatch, prompt=None, **kwargs) -> DiffusionOutput:
                    state = request_state(req)
                    given = request_arguments(state, type(self))
                    prompt = given.pop("prompt", prompt)
                    kwargs.update(given)

                    def shift(t):
                        return t + 1

                    video, audio = self.film(prompt, shift, **kwargs)
                    return DiffusionOutput(output=(video, audio))
            """,
        ),
    )

    def __init__(self, facts: PipelineFacts) -> None:
        self.facts = facts

    def apply(self, ctx: Context, call: cst.FunctionDef) -> cst.FunctionDef:
        ctx.used(self)
        ctx.need("vllm_omni.diffusion.data", "DiffusionOutput")
        ctx.need("vllm_omni.diffusion.worker.request_batch", "DiffusionRequestBatch")
        ctx.need(SUPPORT, "request_arguments")
        own = [p for p in self.facts.parameters if p.name not in self.facts.dropped]
        ctx.need(SUPPORT, "request_state")
        lines = ["state = request_state(req)", "given = request_arguments(state, type(self))"]
        lines += [f'{p.name} = given.pop("{p.name}", {p.name})' for p in own]
        star = call.params.star_kwarg
        if isinstance(star, cst.Param):
            lines.append(f"{star.name.value}.update(given)")
        req = cst.Param(name=cst.Name("req"), annotation=cst.Annotation(cst.Name("DiffusionRequestBatch")))
        first, *rest = [p.with_changes(comma=cst.MaybeSentinel.DEFAULT) for p in call.params.params]
        rest = [p if p.default is not None else p.with_changes(default=cst.Name("None")) for p in rest]
        doc = [s for s in list(call.body.body)[:1] if is_docstring(s)]
        body = [_returns(s, self.facts) for s in body_statements(call)]
        return call.with_changes(
            name=cst.Name("forward"),
            decorators=[d for d in call.decorators if dotted(_target(d)) == "torch.no_grad"],
            params=call.params.with_changes(params=[first, req, *rest]),
            returns=cst.Annotation(cst.Name("DiffusionOutput")),
            body=call.body.with_changes(body=[*doc, *statements("\n".join(lines)), *body]),
        )


def _target(decorator: cst.Decorator) -> cst.BaseExpression:
    node = decorator.decorator
    return node.func if isinstance(node, cst.Call) else node


class _Returns(cst.CSTTransformer):
    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        return False

    def visit_Lambda(self, node: cst.Lambda) -> bool:
        return False

    def leave_Return(self, original: cst.Return, updated: cst.Return) -> cst.Return:
        if updated.value is None:
            return updated
        return cst.Return(value=cst.parse_expression(f"DiffusionOutput(output={code(output_value(updated.value))})"))


def output_value(node: cst.BaseExpression) -> cst.BaseExpression:
    """What a return hands out: the media of an output object, or the value itself."""
    if isinstance(node, cst.Call) and (dotted(node.func) or "").endswith("Output"):
        values = [a.value for a in _media(node)]
        if len(values) == 1:
            return values[0]
        return cst.Tuple([cst.Element(v) for v in values])
    if isinstance(node, cst.Tuple) and len(node.elements) == 1:
        return node.elements[0].value
    return node


def output_fields(returns: list[cst.Return]) -> list[tuple[str, str]]:
    """(field, variable) pairs of the last returned output object: ``[("frames", "video")]``."""
    for item in reversed(returns):
        node = item.value
        if isinstance(node, cst.Call) and (dotted(node.func) or "").endswith("Output"):
            return [(a.keyword.value if a.keyword else "images", code(a.value)) for a in _media(node)]
    return []


def _media(output: cst.Call) -> list[cst.Arg]:
    """Arguments of an output object that carry something: no flags, no literal None."""
    return [a for a in output.args if not (a.keyword and a.keyword.value in FLAGS) and dotted(a.value) != "None"]


def _returns(statement: Any, facts: PipelineFacts) -> Any:
    return visit(statement, _Returns())


def all_returns(function: cst.FunctionDef) -> list[cst.Return]:
    return list(nodes(function.body, cst.Return))
