"""Build components where ``DiffusionPipeline`` was handed them."""

from __future__ import annotations

import ast
import itertools
import re
from typing import Any

import libcst as cst

from porter.facts.pipeline import Component, PipelineFacts
from porter.rules.engine import (
    SUPPORT,
    SURFACE,
    Context,
    Rule,
    bare,
    body_statements,
    code,
    names_in,
    nodes,
    rename,
    statements,
)
from porter.rules.fold import dotted
from porter.source import Definition

# What makes a tensor of floats in the default dtype if none is stated.
FACTORIES = {f"torch.{name}" for name in "tensor zeros ones full linspace arange logspace eye rand randn empty".split()}


class PipelineConstructor(Rule):
    """Rewrite ``__init__`` to take ``od_config`` and build each component (guide, step 1.2.2).

    Transformers and their controlnets are built from their config and filled through ``weights_sources``; every other
    component is loaded from its folder, as the class that ``model_index.json`` names. What the source's constructor
    derives from its components follows unchanged.
    """

    name = "pipeline-constructor"
    safety = SURFACE
    VALID = (
        """
        class ExampleTextModel(nn.Module):
            def __init__(self, vae, transformer):
                super().__init__()
                self.vae_scale_factor = vae.config.scale_factor
        """,
    )
    INVALID = (
        (
            """
            from ...models import AutoencoderKL, ExampleTransformer2DModel


            class ExamplePipeline(DiffusionPipeline):
                def __init__(
                    self, vae: AutoencoderKL, transformer: ExampleTransformer2DModel, is_distilled: bool = False
                ):
                    super().__init__()
                    self.register_modules(vae=vae, transformer=transformer)
                    self.register_to_config(is_distilled=is_distilled)
                    self.vae_scale_factor = vae.config.scale_factor
                    self.scales = torch.tensor(self.vae.config.scales)
            """,
            """
            from ...models import AutoencoderKL, ExampleTransformer2DModel


            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = ""):
                    super().__init__()
                    refuse_parallelism(od_config, "ExamplePipeline")
                    refuse_caching(od_config, "ExamplePipeline")
                    self.od_config = od_config
                    self.device = get_local_device()
                    self.weights_sources = [weights_source(od_config, "transformer")]
                    is_distilled = model_index_value(od_config, "is_distilled", False)
                    self.vae = load_component(od_config, "vae", AutoencoderKL)
                    transformer_kwargs = get_transformer_config_kwargs(
                        od_config.tf_model_config, ExampleTransformer2DModel
                    )
                    self.transformer = ExampleTransformer2DModel(od_config=od_config, **transformer_kwargs)
                    self.register_to_config(is_distilled=is_distilled)
                    self.vae_scale_factor = self.vae.config.scale_factor
                    with float32_by_default():
                        self.scales = torch.tensor(self.vae.config.scales)
                    self.setup_diffusion_pipeline_profiler(
                        enable_diffusion_pipeline_profiler=od_config.enable_diffusion_pipeline_profiler
                    )
            """,
        ),
        (
            """
            from ...models import ExampleTransformer2DModel


            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, tokenizer: CLIPTokenizer, refiner: ExampleTransformer2DModel | None = None):
                    super().__init__()
                    self.register_modules(tokenizer=tokenizer, refiner=refiner)
            """,
            """
            from ...models import ExampleTransformer2DModel


            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = ""):
                    super().__init__()
                    refuse_parallelism(od_config, "ExamplePipeline")
                    refuse_caching(od_config, "ExamplePipeline")
                    self.od_config = od_config
                    self.device = get_local_device()
                    self.weights_sources = []
                    self.tokenizer = load_component(od_config, "tokenizer")
                    self.refiner = build_component(od_config, "refiner", ExampleTransformer2DModel)
                    if self.refiner is not None:
                        self.weights_sources.append(weights_source(od_config, "refiner"))
                    self.setup_diffusion_pipeline_profiler(
                        enable_diffusion_pipeline_profiler=od_config.enable_diffusion_pipeline_profiler
                    )
            """,
        ),
        (
            """
            from ...models import ExampleTransformer2DModel
            from ...models.controlnets.controlnet_example import ExampleControlNetModel, ExampleMultiControlNetModel


            class ExamplePipeline(DiffusionPipeline):
                def __init__(
                    self,
                    transformer: ExampleTransformer2DModel,
                    controlnet: ExampleControlNetModel | list[ExampleControlNetModel] | ExampleMultiControlNetModel,
                ):
                    super().__init__()
                    self.register_modules(transformer=transformer, controlnet=controlnet)
            """,
            """
            from ...models import ExampleTransformer2DModel
            from ...models.controlnets.controlnet_example import ExampleControlNetModel, ExampleMultiControlNetModel


            class ExamplePipeline(DiffusionPipeline):
                def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = ""):
                    super().__init__()
                    refuse_parallelism(od_config, "ExamplePipeline")
                    refuse_caching(od_config, "ExamplePipeline")
                    self.od_config = od_config
                    self.device = get_local_device()
                    self.weights_sources = [weights_source(od_config, "transformer")]
                    transformer_kwargs = get_transformer_config_kwargs(
                        od_config.tf_model_config, ExampleTransformer2DModel
                    )
                    self.transformer = ExampleTransformer2DModel(od_config=od_config, **transformer_kwargs)
                    self.controlnet = build_component(
                        od_config, "controlnet", ExampleControlNetModel, stays=[ExampleMultiControlNetModel]
                    )
                    if self.controlnet is not None:
                        self.weights_sources.append(weights_source(od_config, "controlnet"))
                    else:
                        self.controlnet = load_component(od_config, "controlnet", ExampleMultiControlNetModel)
                    self.setup_diffusion_pipeline_profiler(
                        enable_diffusion_pipeline_profiler=od_config.enable_diffusion_pipeline_profiler
                    )
            """,
        ),
    )

    def __init__(self, facts: PipelineFacts, separate_guidance: bool = False) -> None:
        self.facts, self._separate_guidance = facts, separate_guidance

    def apply(self, ctx: Context, init: cst.FunctionDef) -> cst.FunctionDef:
        ctx.used(self)
        ctx.need("vllm_omni.diffusion.data", "OmniDiffusionConfig")
        ctx.need("vllm_omni.diffusion.distributed.utils", "get_local_device")
        built = statements(self._head(ctx))
        names = {c.name for c in self.facts.components}
        block = cst.IndentedBlock(body=[s for s in body_statements(init) if not _is_registration(s)])
        for name in names:
            block = _qualify(block, name)
        rest = _with_float32_tables(ctx, list(block.body))
        profiler = statements(
            "self.setup_diffusion_pipeline_profiler("
            "enable_diffusion_pipeline_profiler=od_config.enable_diffusion_pipeline_profiler)"
        )
        signature = cst.parse_statement('def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = ""): pass')
        assert isinstance(signature, cst.FunctionDef)
        return init.with_changes(
            params=signature.params,
            decorators=[],
            body=init.body.with_changes(body=[*built, *rest, *profiler]),
        )

    def _head(self, ctx: Context) -> str:
        converted = [c for c in self.facts.components if c.converted]
        ctx.need(SUPPORT, "refuse_parallelism")
        lines = [
            "super().__init__()",
            f'refuse_parallelism(od_config, "{self.facts.name}"{self._parallel()})',
            "self.od_config = od_config",
            "self.device = get_local_device()",
        ]
        ctx.need(SUPPORT, "refuse_caching")
        reason = f", {self.facts.uncached!r}" if self.facts.uncached else ""
        lines.insert(2, f'refuse_caching(od_config, "{self.facts.name}"{reason})')
        if converted:
            ctx.need(SUPPORT, "weights_source")
            sources = ", ".join(f'weights_source(od_config, "{c.name}")' for c in converted if not c.may_lack)
            lines.append(f"self.weights_sources = [{sources}]")
        else:
            lines.append("self.weights_sources = []")
        lines += [self._setting(ctx, name, default) for name, default in self.facts.settings.items()]
        for component in self.facts.components:
            lines += self._transformer(ctx, component) if component.converted else [self._loaded(ctx, component)]
        if converted and self._separate_guidance and not self.facts.uncached:
            ctx.need(SUPPORT, "cache_each_branch")
            lines.append("cache_each_branch(self)")
        return "\n".join(lines) + "\n"

    def _parallel(self) -> str:
        """What was derived for the pipeline's models: verified, derived, or why not."""
        found = {f"{name}_size": state for name, state in self.facts.parallel.items()}
        return f", {found!r}" if found else ""

    def _reads_undeclared(self, component: Component) -> bool:
        read = re.findall(rf"self\.{component.name}\.config\.(\w+)", self.facts.definition.code)
        return bool(set(read) - _declared(component.converted[0]) - {"get", "keys"})

    def _setting(self, ctx: Context, name: str, default: str | None) -> str:
        ctx.need(SUPPORT, "model_index_value")
        return f'{name} = model_index_value(od_config, "{name}", {default})'

    def _loaded(self, ctx: Context, component: Component) -> str:
        if component.made:
            return f"self.{component.name} = None  # diffusers hands over what it lists, and what has no default"
        ctx.need(SUPPORT, "load_component")
        names = component.others if component.converted else component.classes
        classes = [c for c in names if c in ctx.module.imports or c in ctx.module.definitions]
        arguments = ", ".join(["od_config", f'"{component.name}"', *classes])
        return f"self.{component.name} = load_component({arguments})"

    def _transformer(self, ctx: Context, component: Component) -> list[str]:
        name, model = component.name, component.converted[0].name
        if name == "transformer" and len(component.converted) == 1 and not component.optional:
            ctx.need("vllm_omni.diffusion.utils.tf_utils", "get_transformer_config_kwargs")
            lines = [
                f"transformer_kwargs = get_transformer_config_kwargs(od_config.tf_model_config, {model})",
                f"self.transformer = {model}(od_config=od_config, **transformer_kwargs)",
            ]
            if self._reads_undeclared(component):
                # diffusers keeps keys of config.json that the model's constructor does not take
                ctx.need("diffusers.configuration_utils", "FrozenDict")
                held = "**od_config.tf_model_config.to_dict(), **self.transformer.config"
                lines.append(f"self.transformer.config = FrozenDict({{{held}}})")
            return lines
        ctx.need(SUPPORT, "build_component")
        classes = ", ".join(d.name for d in component.converted)
        stays = f", stays=[{', '.join(component.others)}]" if component.others else ""
        lines = [f'self.{name} = build_component(od_config, "{name}", {classes}{stays})']
        if component.may_lack:
            lines += [
                f"if self.{name} is not None:",
                f'    self.weights_sources.append(weights_source(od_config, "{name}"))',
            ]
        if component.others:  # a checkpoint may hold one that stays diffusers' own: several controlnets in one
            lines += ["else:", f"    {self._loaded(ctx, component)}"]
        return lines


def _with_float32_tables(ctx: Context, items: list[Any]) -> list[Any]:
    """Statements that make tensors of no stated dtype under diffusers' default; the engine's is that of the weights."""
    found: list[Any] = []
    for of_default, group in itertools.groupby(items, key=_makes_of_default_dtype):
        held = list(group)
        if of_default:
            ctx.need(SUPPORT, "float32_by_default")
            [block] = statements("with float32_by_default():\n    pass\n")
            held = [block.with_changes(body=block.body.with_changes(body=held))]
        found += held
    return found


def _makes_of_default_dtype(item: Any) -> bool:
    return any(dotted(call.func) in FACTORIES and "dtype" not in code(call) for call in nodes(item, cst.Call))


def _declared(definition: Definition) -> set[str]:
    """Constructor parameters of a class."""
    node = definition.node
    init = next((i for i in getattr(node, "body", []) if getattr(i, "name", "") == "__init__"), None)
    return {a.arg for a in [*init.args.args, *init.args.kwonlyargs]} if isinstance(init, ast.FunctionDef) else set()


def _is_registration(statement: cst.CSTNode) -> bool:
    return bare(statement).startswith(("super().__init__(", "self.register_modules("))


def _qualify(block: Any, name: str) -> Any:
    """``vae`` to ``self.vae``: the constructor's parameters became attributes."""
    return rename(block, name, f"self.{name}") if _reads(block, name) else block


def _reads(block: Any, name: str) -> bool:
    return name in names_in(block)
