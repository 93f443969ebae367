"""Take image pre-processing out of ``forward`` into the engine's hook."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

import libcst as cst

from porter.facts.pipeline import PipelineFacts
from porter.facts.slices import Effect, backward_slice, effect, needs_value
from porter.rules.engine import SUPPORT, SURFACE, Context, Rule, bare, body_statements, is_docstring, statements
from porter.source.walk import walk

PROCESSING = ("preprocess", "resize")


@dataclass
class PreProcess:
    """What the hook does before a request is scheduled.

    Attributes:
        setup: statements that build the processors from the components' configs.
        arguments: call parameters that the statements read, with their defaults.
        required: those of them that cannot be absent.
        body: the moved statements.
        outputs: what the forward takes over from the hook.
    """

    setup: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


class Unmovable(Exception):
    """Why a block stays in the forward."""


class PreProcessHook(Rule):
    """Move image pre-processing of the forward into ``get_<model>_pre_process_func`` (guide, step 1.2.3).

    A top-level statement that calls an image or video processor moves, with what it depends on, if all of that is
    computed from call parameters and from the components' configs. What needs a device, a model's output or a method
    of the pipeline stays, and the port says so.
    """

    name = "pre-process-hook"
    safety = SURFACE
    VALID = (
        """
        class ExamplePipeline(DiffusionPipeline):
            def __init__(self, vae):
                super().__init__()
                self.image_processor = VaeImageProcessor(vae_scale_factor=8)

            def __call__(self, image, prompt=None):
                size = self.choose_size(image, prompt)
                image = self.image_processor.preprocess(image, size)
                return self.denoise(prompt, image)
        """,
    )
    INVALID = (
        (
            """
            from ...image_processor import VaeImageProcessor
            from ...models import AutoencoderKL


            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, vae: AutoencoderKL):
                    super().__init__()
                    self.register_modules(vae=vae)
                    self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae.config.scale_factor)

                def __call__(self, image, prompt=None, height: int | None = None):
                    height = height or image.height
                    image = self.image_processor.preprocess(image, height)
                    return self.denoise(prompt, image.to(self.device))
            """,
            '''
            from ...image_processor import VaeImageProcessor
            from ...models import AutoencoderKL


            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, vae: AutoencoderKL):
                    super().__init__()
                    self.register_modules(vae=vae)
                    self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae.config.scale_factor)

                def __call__(self, image, prompt=None, height: int | None = None):
                    height = height or image.height
                    preprocessed = preprocessed_inputs(state)
                    image = preprocessed["image"]
                    return self.denoise(prompt, image.to(self.device))


            def get_example_pre_process_func(od_config: OmniDiffusionConfig):
                """What the engine applies to a request of ``ExamplePipeline`` before it is scheduled."""
                vae_config = component_config(od_config, "vae", AutoencoderKL)
                image_processor = VaeImageProcessor(vae_scale_factor=vae_config.scale_factor)

                def pre_process_func(request: OmniDiffusionRequest):
                    given = request_arguments(request_state(DiffusionRequestBatch([request])), ExamplePipeline)
                    image = given.get("image", None)
                    height = given.get("height", None)
                    try:
                        if image is None:
                            raise ValueError("ExamplePipeline needs image in the prompt's multi_modal_data.")
                        height = height or image.height
                        image = image_processor.preprocess(image, height)
                    except Exception as error:
                        # The forward checks its inputs first, in diffusers' words, and then raises this.
                        return with_failure(request, error)
                    return with_preprocessed(
                        request,
                        image=image,
                    )

                return pre_process_func
            ''',
        ),
    )

    def __init__(self, facts: PipelineFacts, init: cst.FunctionDef) -> None:
        self.facts = facts
        self.init = ast.parse(bare(init)).body[0]

    def apply(self, ctx: Context, forward: cst.FunctionDef) -> tuple[cst.FunctionDef, PreProcess | None]:
        items = body_statements(forward)
        trees = [ast.parse(bare(item)).body[0] for item in items]
        effects = [effect(tree) for tree in trees]
        blocks = [i for i, tree in enumerate(trees) if _processes(tree)]
        if not blocks:
            return forward, None
        hook, moved = PreProcess(), []
        for index in blocks:
            try:
                self._move(ctx, hook, index, trees, effects)
                moved.append(index)
            except Unmovable as reason:
                line = ctx.definition.first_line if ctx.definition else 1
                ctx.report(line, f"pre-processing stays in forward: {reason}")
        if not moved:
            return forward, None
        ctx.used(self)
        ctx.need(SUPPORT, "preprocessed_inputs")
        replaced: list[Any] = []
        for index, item in enumerate(items):
            replaced += self._taken_over(item, effects[index], effects[index + 1 :]) if index in moved else [item]
        doc = [s for s in list(forward.body.body)[:1] if is_docstring(s)]
        return forward.with_changes(body=forward.body.with_changes(body=[*doc, *replaced])), hook

    def _move(self, ctx: Context, hook: PreProcess, index: int, trees: list[ast.stmt], effects: list[Effect]) -> None:
        params = {p.name for p in self.facts.parameters if p.name not in self.facts.dropped}
        known = {*ctx.module.imports, *ctx.module.definitions}
        if not effects[index].simple:
            raise Unmovable("it does more than compute")
        later = _read_later(effects[index], effects[index + 1 :])
        if isinstance(trees[index], ast.If):
            # A conditional block may leave a variable as it was before: what it had is needed too.
            before = {name for other in effects[:index] for name in other.writes} | params
            effects[index].reads |= later & before
        chosen = backward_slice(effects, index, params, known)
        if chosen is None:
            raise Unmovable("it depends on what only the forward computes")
        used = [*chosen, index]
        attributes = sorted({a for i in used for a in effects[i].attributes})
        setup: dict[str, str] = {}
        for attribute in attributes:
            self._derive(ctx, attribute, setup)
        local = {name for i in used for name in effects[i].writes} | params
        if local & set(setup):
            raise Unmovable("a local variable has the name of an attribute")
        ctx.also |= {name for i in used for name in effects[i].reads} & (known - local)
        hook.setup += [f"{name} = {text}" for name, text in setup.items() if f"{name} = {text}" not in hook.setup]
        reads = {name for i in used for name in effects[i].reads} & params
        for parameter in self.facts.parameters:
            if parameter.name in reads:
                hook.arguments[parameter.name] = parameter.default or "None"
                if any(needs_value(trees[i], parameter.name) for i in used if parameter.name not in hook.required):
                    if "image" in parameter.name or "video" in parameter.name:
                        hook.required.append(parameter.name)
        unbound = later - params - {name for i in chosen for name in effects[i].writes}
        if isinstance(trees[index], ast.If):
            hook.body += [f"{name} = None" for name in sorted(unbound)]
        for i in used:
            text = ast.unparse(_Unqualified(setup).visit(trees[i]))
            if text not in hook.body:
                hook.body.append(text)
        hook.outputs += [name for name in sorted(later) if name not in hook.outputs]

    def _derive(self, ctx: Context, attribute: str, setup: dict[str, str]) -> None:
        """Add the statements that compute ``self.<attribute>`` without the components' weights."""
        if attribute in setup:
            return
        found = _assignments(self.init, f"self.{attribute}")
        self._compute(ctx, attribute, found, setup)

    def _compute(self, ctx: Context, attribute: str, found: list[ast.expr], setup: dict[str, str]) -> None:
        if len(found) != 1:
            raise Unmovable(f"it reads {attribute} of the constructor")
        value = ast.parse(ast.unparse(found[0]), mode="eval").body
        rewriter = _FromConfig(self, ctx, setup)
        text = ast.unparse(rewriter.visit(value))
        for name in {n.id for n in walk(ast.parse(text)) if isinstance(n, ast.Name)}:
            if name in ctx.module.imports:
                ctx.imports.setdefault(name, (ctx.module.imports[name].module, ctx.module.imports[name].name))
        setup[attribute] = text

    def config_of(self, ctx: Context, component: str, setup: dict[str, str]) -> tuple[str, list[str]]:
        """The variable that holds a component's config in the hook, and the keys that its class declares."""
        match = next((c for c in self.facts.components if c.name == component), None)
        if match is None or not match.classes:
            raise Unmovable(f"it reads self.{component}")
        class_name = match.classes[0]
        bound = ctx.module.imports.get(class_name)
        target = ctx.tree.resolve(bound.module, bound.name) if bound and bound.name else None
        if target is None or not isinstance(target.node, ast.ClassDef):
            raise Unmovable(f"it reads self.{component}, whose class is not in the sources")
        init = next((i for i in target.node.body if isinstance(i, ast.FunctionDef) and i.name == "__init__"), None)
        keys = [a.arg for a in [*init.args.args, *init.args.kwonlyargs]] if init else []
        variable = f"{component}_config"
        if variable not in setup:
            ctx.need(SUPPORT, "component_config")
            setup[variable] = f'component_config(od_config, "{component}", {class_name})'
        return variable, keys

    def _taken_over(self, item: Any, own: Effect, later: list[Effect]) -> list[Any]:
        names = sorted(_read_later(own, later))
        if not names:
            return []
        values = ", ".join(f'preprocessed["{name}"]' for name in names)
        taken = statements(f"preprocessed = preprocessed_inputs(state)\n{', '.join(names)} = {values}\n")
        return [taken[0].with_changes(leading_lines=item.leading_lines), taken[1]]


def _read_later(own: Effect, later: list[Effect]) -> set[str]:
    return own.writes & {name for other in later for name in other.reads}


def _processes(tree: ast.stmt) -> bool:
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.startswith(PROCESSING)
        and isinstance(node.func.value, ast.Attribute)
        and ast.unparse(node.func.value.value) == "self"
        and "processor" in node.func.value.attr
        for node in walk(tree)
    ) and not isinstance(tree, ast.With | ast.For)


def _assignments(init: ast.AST, target: str) -> list[ast.expr]:
    return [
        node.value for node in walk(init) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == target
    ]


class _Unqualified(ast.NodeTransformer):
    """``self.x`` to ``x`` for what the hook has as a variable."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in self.names:
            return ast.Name(node.attr, ast.Load())
        return self.generic_visit(node)


class _FromConfig(ast.NodeTransformer):
    """An expression of the constructor with components replaced by their configs."""

    def __init__(self, rule: PreProcessHook, ctx: Context, setup: dict[str, str]) -> None:
        self.rule, self.ctx, self.setup = rule, ctx, setup

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        # `… if getattr(self, "vae", None) else 8`: the hook is for a pipeline that has the component
        test = ast.unparse(node.test)
        if test.startswith(("getattr(self", "hasattr(self")):
            return self.visit(node.body)
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        path = ast.unparse(node).split(".")
        if path[0] != "self":
            return self.generic_visit(node)
        if len(path) == 2:
            self.rule._derive(self.ctx, path[1], self.setup)
            return ast.Name(path[1], ast.Load())
        variable, keys = self.rule.config_of(self.ctx, path[1], self.setup)
        key = path[3] if len(path) == 4 and path[2] == "config" else path[2]
        if len(path) > 4 or key not in keys:
            raise Unmovable(f"it reads {'.'.join(path)}, which is no config value")
        return ast.Attribute(ast.Name(variable, ast.Load()), key, ast.Load())

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if any(c.name == node.id for c in self.rule.facts.components) or node.id in self.rule.facts.settings:
            raise Unmovable(f"it reads the constructor's {node.id}")
        if node.id not in self.setup:
            found = _assignments(self.rule.init, node.id)
            if found:
                self.rule._compute(self.ctx, node.id, found, self.setup)
        return node
