"""Take post-processing out of ``forward`` into the engine's hook."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import libcst as cst

from porter.facts.pipeline import PipelineFacts
from porter.rules.engine import SURFACE, Context, Rule, code, expression, names_in, nodes, visit
from porter.rules.fold import dotted
from porter.rules.pipeline.forward import all_returns, output_fields

# Constructor arguments of image and video processors that only preprocessing reads.
PREPROCESSING_ONLY = ("vae_scale_factor", "vae_latent_channels")


@dataclass
class PostProcess:
    """What the hook does: which output is processed by what.

    Attributes:
        outputs: (field of diffusers' output, local variable in forward), in order.
        calls: local variable to the processing call: function, and the arguments after the first one.
        processors: attribute name to the expression that builds the processor.
        default: source text of the default ``output_type``.
        untouched: when the output is handed on as it is, in terms of ``output_type``; empty: never.
        settings: pipeline settings that the processors are built with, and their defaults.
    """

    outputs: list[tuple[str, str]] = field(default_factory=list)
    calls: dict[str, tuple[str, str]] = field(default_factory=dict)
    processors: dict[str, str] = field(default_factory=dict)
    default: str = '"pil"'
    untouched: str = ""
    needs: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)


class PostProcessHook(Rule):
    """Move ``self.<processor>.postprocess*(x, output_type=output_type)`` into ``get_<model>_post_process_func``.

    Only a call whose result goes straight to the return moves; the forward then returns what the call was given. A
    result that is used again (overlays, safety checkers) stays in the forward, and the port says so.
    """

    name = "post-process-hook"
    safety = SURFACE
    VALID = (
        """
        class ExamplePipeline(DiffusionPipeline):
            def __call__(self, prompt=None, output_type="pil"):
                image = self.vae.decode(self.denoise(prompt))
                image = self.image_processor.postprocess(image, output_type=output_type)
                image = [self.overlay(i) for i in image]
                return ExamplePipelineOutput(images=image)
        """,
        """
        class ExamplePipeline(DiffusionPipeline):
            def __call__(self, prompt=None, output_type="pil"):
                image = self.vae.decode(self.denoise(prompt))
                if self.vae is not None:
                    image = self.image_processor.postprocess(image, output_type=output_type)
                return ExamplePipelineOutput(images=image)
        """,
    )
    INVALID = (
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, vae):
                    self.image_processor = VaeImageProcessor(
                        vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True
                    )

                def __call__(self, prompt=None, output_type="pil"):
                    latents = self.denoise(prompt)
                    if output_type == "latent":
                        image = latents
                    else:
                        image = self.vae.decode(latents)
                        image = self.image_processor.postprocess(image, output_type=output_type)
                    return ExamplePipelineOutput(images=image)
            """,
            '''
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, vae):
                    self.image_processor = VaeImageProcessor(
                        vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True
                    )

                def __call__(self, prompt=None, output_type="pil"):
                    latents = self.denoise(prompt)
                    if output_type == "latent":
                        image = latents
                    else:
                        image = self.vae.decode(latents)
                    return ExamplePipelineOutput(images=image)


            def get_example_post_process_func(od_config: OmniDiffusionConfig):
                """What the engine applies to the output of ``ExamplePipeline``."""
                image_processor = VaeImageProcessor(do_convert_rgb=True)

                def post_process_func(output, sampling_params=None):
                    output_type = requested_output_type(sampling_params, "pil")
                    if output_type == "latent":
                        return output
                    return image_processor.postprocess(output, output_type=output_type)

                return post_process_func
            ''',
        ),
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, vae):
                    self.image_processor = VaeImageProcessor()

                def __call__(self, prompt=None, output_type="pil"):
                    latents = self.denoise(prompt)
                    if output_type == "latent":
                        return ExamplePipelineOutput(images=latents)
                    image = self.vae.decode(latents)
                    image = self.image_processor.postprocess(image, output_type, [True])
                    return ExamplePipelineOutput(images=image)
            """,
            '''
            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, vae):
                    self.image_processor = VaeImageProcessor()

                def __call__(self, prompt=None, output_type="pil"):
                    latents = self.denoise(prompt)
                    if output_type == "latent":
                        return ExamplePipelineOutput(images=latents)
                    image = self.vae.decode(latents)
                    return ExamplePipelineOutput(images=image)


            def get_example_post_process_func(od_config: OmniDiffusionConfig):
                """What the engine applies to the output of ``ExamplePipeline``."""
                image_processor = VaeImageProcessor()

                def post_process_func(output, sampling_params=None):
                    output_type = requested_output_type(sampling_params, "pil")
                    if output_type == "latent":
                        return output
                    return image_processor.postprocess(output, output_type, [True])

                return post_process_func
            ''',
        ),
    )

    def __init__(self, init: cst.FunctionDef | None, facts: PipelineFacts | None = None) -> None:
        self.init = init
        self.settings = facts.settings if facts is not None else {}

    def apply(self, ctx: Context, forward: cst.FunctionDef, default: str | None) -> tuple[cst.FunctionDef, PostProcess]:
        hook = PostProcess(default=default or '"pil"')
        hook.outputs = output_fields(all_returns(forward))
        found = _post_process_assignments(forward)
        line = ctx.definition.first_line if ctx.definition else 1
        movable = [a for a in found if self._movable(a, forward, hook)]
        if not found:
            return forward, hook
        if len(movable) != len(found):
            ctx.report(line, "post-processing stays in forward: its result is used before it is returned")
            return forward, hook
        targets = {code(a.targets[0].target) for a in movable}
        if not targets <= {variable for _, variable in hook.outputs}:
            ctx.report(line, "post-processing stays in forward: its result is not what is returned")
            return forward, hook
        skipped = {_skipped_when(forward, assign) for assign in movable}
        if None in skipped or len(skipped) != 1:
            ctx.report(line, "post-processing stays in forward: more than the output type decides whether it runs")
            return forward, hook
        hook.untouched = skipped.pop() or ""
        if any(not self._construction(hook, _processor_of(a)) for a in movable):
            ctx.report(line, "post-processing stays in forward: its processor is not built by a plain call")
            return forward, PostProcess(default=hook.default)
        for assign in movable:
            call = assign.value
            assert isinstance(call, cst.Call)
            self._record(ctx, hook, code(assign.targets[0].target), call)
        if not hook.calls:
            return forward, hook
        ctx.used(self)
        moved: Any = visit(forward, _Unprocessed(movable))
        return moved, hook

    def _movable(self, assign: cst.Assign, forward: cst.FunctionDef, hook: PostProcess) -> bool:
        call = assign.value
        assert isinstance(call, cst.Call)
        if not call.args or any(set(names_in(arg.value)) - {"output_type"} for arg in call.args[1:]):
            return False
        first = call.args[0].keyword
        if first is not None and first.value == "output_type":
            return False
        target = code(assign.targets[0].target)
        reads = _reads_after(forward, assign, target)
        return not reads

    def _record(self, ctx: Context, hook: PostProcess, variable: str, call: cst.Call) -> None:
        processor = dotted(call.func)
        assert processor is not None
        attribute = processor.split(".")[1]
        if attribute not in hook.processors:
            hook.processors[attribute] = self._construction(hook, attribute)
        rest = [f"{a.keyword.value}={code(a.value)}" if a.keyword else code(a.value) for a in call.args[1:]]
        hook.calls[variable] = (processor.removeprefix("self."), ", ".join(rest))

    def _construction(self, hook: PostProcess, attribute: str) -> str:
        assigns = nodes(self.init, cst.Assign) if self.init else []
        found = [a.value for a in assigns if dotted(a.targets[0].target) == f"self.{attribute}"]
        call = found[-1] if found else None
        if not isinstance(call, cst.Call):
            return ""
        kept = [
            f"{a.keyword.value}={code(a.value)}"
            for a in call.args
            if a.keyword and a.keyword.value not in PREPROCESSING_ONLY and "self" not in names_in(a.value)
        ]
        used = names_in(expression(f"f({', '.join(kept)})"))
        hook.settings.update({name: self.settings[name] or "None" for name in used if name in self.settings})
        hook.needs.append(code(call.func))
        return f"{code(call.func)}({', '.join(kept)})"


def _post_process_assignments(forward: cst.FunctionDef) -> list[cst.Assign]:
    if "postprocess" not in code(forward.body):
        return []
    return [assign for assign in nodes(forward.body, cst.Assign) if _is_post_process(assign)]


def _is_post_process(assign: cst.Assign) -> bool:
    """``x = self.<processor>.postprocess*(…)``."""
    if len(assign.targets) != 1 or not isinstance(assign.targets[0].target, cst.Name):
        return False
    path = (dotted(assign.value.func) or "").split(".") if isinstance(assign.value, cst.Call) else []
    return len(path) == 3 and path[0] == "self" and path[2].startswith("postprocess")


def _skipped_when(forward: cst.FunctionDef, assign: cst.Assign) -> str | None:
    """The test on ``output_type`` that decides against a processing call.

    Empty: nothing decides against it. None: something else than ``output_type`` has a say in it, or it is repeated.
    """
    tests = []
    block: Any = forward.body
    while block is not None:
        inner = None
        for item in block.body:
            if _holds(item, assign):
                inner = item
                break
            if isinstance(item, cst.If) and item.orelse is None and _on_output_type(item) and _ends(item.body):
                tests.append(code(item.test))
        if isinstance(inner, cst.If):
            if not _on_output_type(inner):
                return None
            taken = _holds(inner.body, assign)
            tests.append(_negated(inner.test) if taken else code(inner.test))
            other = inner.orelse
            if not taken and not isinstance(other, cst.Else):
                return None
            block = inner.body if taken else other.body  # type: ignore[union-attr]
        elif isinstance(inner, cst.SimpleStatementLine):
            block = None
        else:
            return None
    return " or ".join(tests)


def _negated(test: cst.BaseExpression) -> str:
    if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
        return code(test.expression)
    return f"not ({code(test)})"


def _on_output_type(node: cst.If) -> bool:
    return set(names_in(node.test)) == {"output_type"}


def _ends(block: cst.BaseSuite) -> bool:
    last = block.body[-1] if block.body else None
    return isinstance(last, cst.SimpleStatementLine) and isinstance(last.body[-1], cst.Return)


def _holds(node: cst.CSTNode, assign: cst.Assign) -> bool:
    return any(other is assign for other in nodes(node, cst.Assign))


def _processor_of(assign: cst.Assign) -> str:
    assert isinstance(assign.value, cst.Call)
    return (dotted(assign.value.func) or "").split(".")[1]


class _After(cst.CSTVisitor):
    """Counts reads of a name after a given assignment, returns left out."""

    def __init__(self, assign: cst.Assign, name: str) -> None:
        self.assign, self.name, self.seen, self.reads = assign, name, False, 0

    def visit_Assign(self, node: cst.Assign) -> bool:
        if node is self.assign:
            self.seen = True
            return False
        if self.seen:
            visit(node.value, self)
            return False
        return True

    def visit_Return(self, node: cst.Return) -> bool:
        return False

    def visit_Name(self, node: cst.Name) -> None:
        self.reads += self.seen and node.value == self.name

    def visit_Else(self, node: cst.Else) -> bool:
        # The other branch of the test that guards the call does not see its result.
        return not self.seen


def _reads_after(forward: cst.FunctionDef, assign: cst.Assign, name: str) -> int:
    visitor = _After(assign, name)
    visit(forward.body, visitor)
    return visitor.reads


class _Unprocessed(cst.CSTTransformer):
    """Replaces each processing call by what it was given."""

    def __init__(self, assigns: list[cst.Assign]) -> None:
        self.ids = {id(a) for a in assigns}

    def leave_Assign(self, original: cst.Assign, updated: cst.Assign) -> cst.Assign:
        if id(original) not in self.ids:
            return updated
        assert isinstance(updated.value, cst.Call)
        return updated.with_changes(value=updated.value.args[0].value)

    def leave_SimpleStatementLine(self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine) -> Any:
        if not any(id(item) in self.ids for item in original.body):
            return updated
        assign = updated.body[0]
        if isinstance(assign, cst.Assign) and code(assign.targets[0].target) == code(assign.value):
            return cst.RemoveFromParent()
        return updated

    def leave_IndentedBlock(self, original: cst.IndentedBlock, updated: cst.IndentedBlock) -> cst.IndentedBlock:
        return updated if updated.body else updated.with_changes(body=[cst.parse_statement("pass")])
