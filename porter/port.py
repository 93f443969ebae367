"""From a pipeline's name to its port."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass, field
from pathlib import Path

from porter.emit.example import example_text
from porter.emit.hooks import post_process_text, pre_process_text
from porter.emit.module import header, notes, render
from porter.emit.names import controlnet_stem, family, pipeline_stem, transformer_stem
from porter.emit.safety import check_texts
from porter.emit.templates import fill
from porter.emit.write import OutputError, check_folder, write_ports
from porter.facts.evidence import DERIVED, NOT_APPLICABLE, REFUSED, Feature, fingerprint, state, together
from porter.facts.pipeline import PipelineFacts, called_apart, is_called, is_controlnet, pipeline_facts
from porter.facts.tiers import DEEPEST, check_tier
from porter.model_port import build_model
from porter.rules.build import Builder, PortedFile
from porter.rules.engine import BESIDE, SUPPORT, Residue
from porter.rules.pipeline.rewrite import PipelineRewriter
from porter.source import Definition, SourceError, SourceTree
from porter.targets import Target, get_target

__all__ = ["OutputError", "Port", "convert", "convert_all"]


# Variables of the generated forward and hook; a pipeline parameter of the same name is refused.
GENERATED_NAMES = {"req", "state", "given", "preprocessed", "request", "od_config"}


@dataclass
class Port:
    """A converted pipeline.

    Attributes:
        name: class name of the pipeline.
        family: folder of the port.
        files: what was written, relative to the output folder (absolute texts are on disk).
        residue: what no rule translated, with file, line and reason.
        features: what the port supports, by name.
        plans: what a feature was derived as, by name: a proof counts for one plan (``facts/evidence.py``).
        dropped: arguments and features of the original that it does not have.
        texts: the files, unformatted.
        built: files with the history of their definitions, where the converter records it.
    """

    name: str
    family: str
    stem: str
    files: list[str] = field(default_factory=list)
    residue: list[Residue] = field(default_factory=list)
    features: dict[str, str] = field(default_factory=dict)
    plans: dict[str, str] = field(default_factory=dict, repr=False)
    dropped: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict, repr=False)
    built: dict[str, PortedFile] = field(default_factory=dict, repr=False)

    @property
    def clean(self) -> bool:
        """No residue that results can depend on."""
        return not any(entry.affects_results for entry in self.residue)


class Converter:
    """Converts pipelines of one source tree for one target; shared model files are built once.

    Args:
        tree: the diffusers sources.
        target: what the ports import.
        record: keep what each step made of each definition, in :attr:`Port.built`.
        tier: how deep the ports go (:mod:`porter.facts.tiers`).

    Raises:
        ValueError: there is no such tier.
    """

    def __init__(self, tree: SourceTree, target: Target, record: bool = False, tier: str = DEEPEST) -> None:
        # Trees of libcst are many small objects that die by reference count; looking for cycles among them is a
        # tenth of the time.
        gc.set_threshold(500_000, 20, 100)
        self.tree, self.target, self._record, self.tier = tree, target, record, check_tier(tier)
        self._models: dict[str, tuple[str, PortedFile]] = {}
        self._families: dict[str, list[str]] = {}

    def port(self, name: str) -> Port:
        """Convert one pipeline, in memory.

        Raises:
            SourceError: unknown name, no pipeline, a source that does not parse, or one that does what no port may do.
        """
        definition = self.tree.find_pipeline(name)
        facts = pipeline_facts(self.tree, definition)
        if not is_called(definition):
            raise SourceError(
                f"{facts.name} is a class of {definition.module.name}, not a pipeline that can be called."
            )
        clash = GENERATED_NAMES & {p.name for p in facts.parameters}
        if clash:
            raise SourceError(f"{facts.name} has a parameter {clash.pop()!r}, which the generated code uses itself.")
        folder = self._family(facts)
        port = Port(facts.name, folder, pipeline_stem(facts.name, folder))
        relative: dict[str, str] = {}
        models: dict[str, PortedFile] = {}
        for component in facts.components:
            for model in component.converted:
                relative[model.name] = stem = self._stem(model, facts, folder)
                text, built = self._model(model)
                self._take(port, f"{stem}.py", text, built)
                models[model.name] = built
        facts.parallel = _parallel(models)
        caching = _caching(models, facts)
        facts.uncached = "" if caching.state == DERIVED else caching.told
        rewriter = PipelineRewriter(facts, self.tier)
        public, record = facts.argument_classes, self._record
        builder = Builder(self.tree, self.target.symbols, rewriter, relative, False, public, record)
        built = builder.build([definition])
        self._hooks(port, facts, rewriter, built)
        text = self._pipeline_text(port, facts, rewriter, built)
        port.features = _features(port, rewriter, text) | facts.parallel
        port.features |= _blocks(models, facts)
        port.features["cache_dit"] = state(port.name, "cache_dit", caching, "pipelines")
        held = _hoisting(models, rewriter, port.features["step_execution"])
        port.features["hoisting"] = state(port.name, "hoisting", held, "pipelines")
        top = header(built, self.tree)
        text = header(built, self.tree, notes(self.tier, port.features)) + text.removeprefix(top)
        self._take(port, f"pipeline_{port.stem}.py", text, built)
        port.texts[f"{port.family}/__init__.py"] = f'"""Ported pipelines of the {port.family} family."""\n'
        for beside in BESIDE:
            port.texts[f"{port.family}/{beside.removeprefix('.')}.py"] = self._beside(beside)
        port.texts[f"examples/{port.stem}.py"] = example_text(
            port.stem, facts, rewriter.post_process, self.tree, self.target
        )
        plans = {"cache_dit": caching.fingerprint, "hoisting": held.fingerprint}
        port.plans = rewriter.plans | {feature: plan for feature, plan in plans.items() if plan}
        port.files = sorted(port.texts)
        check_texts(port.texts)
        return port

    def _stem(self, model: Definition, facts: PipelineFacts, family: str) -> str:
        denoisers = self._families[facts.folder]
        if is_controlnet(model):
            return controlnet_stem(model.name, family, denoisers)
        return f"{transformer_stem(model.name, family, denoisers)}_transformer"

    def _take(self, port: Port, file: str, text: str, built: PortedFile) -> None:
        port.texts[f"{port.family}/{file}"] = text
        if self._record:
            port.built[f"{port.family}/{file}"] = built
        port.residue += [r for r in built.residue if r not in port.residue]
        port.dropped += [d for d in built.dropped if d not in port.dropped]

    def _model(self, definition: Definition) -> tuple[str, PortedFile]:
        key = f"{definition.module.name}.{definition.name}"
        if key not in self._models:
            self._models[key] = build_model(self.tree, self.target, definition, self._record, self.tier)
        return self._models[key]

    def _family(self, facts: PipelineFacts) -> str:
        if facts.folder not in self._families:
            package = self.tree.root / "pipelines" / facts.folder
            pattern = re.compile(r"^ {8}transformer\w*: (\w+Transformer\w+),", re.MULTILINE)
            found = {name for file in package.glob("*.py") for name in pattern.findall(file.read_text("utf-8"))}
            self._families[facts.folder] = sorted(found)
        return family(facts.folder, facts.models, self._families[facts.folder])

    def _hooks(self, port: Port, facts: PipelineFacts, rewriter: PipelineRewriter, built: PortedFile) -> None:
        module = facts.definition.module
        built.imports["OmniDiffusionConfig"] = ("vllm_omni.diffusion.data", "OmniDiffusionConfig")
        if rewriter.post_process.settings:
            built.relative["model_index_value"] = SUPPORT.removeprefix(".")
        if rewriter.post_process.calls:
            built.relative["requested_output_type"] = SUPPORT.removeprefix(".")
        if rewriter.pre_process is not None:
            built.imports["OmniDiffusionRequest"] = ("vllm_omni.diffusion.request", "OmniDiffusionRequest")
            for helper in (
                "component_config",
                "request_arguments",
                "request_state",
                "with_failure",
                "with_preprocessed",
            ):
                built.relative[helper] = SUPPORT.removeprefix(".")
        vendored = {origin.rpartition(".")[2] for origin in built.vendored}
        for name in rewriter.post_process.needs:
            if name in vendored:  # it is in the file
                continue
            bound = module.imports.get(name)
            target = self.tree.resolve(bound.module, bound.name) if bound and bound.name else None
            if target is not None:
                built.imports[name] = (target.module.name, target.name)

    def _pipeline_text(self, port: Port, facts: PipelineFacts, rewriter: PipelineRewriter, built: PortedFile) -> str:
        text = render(built, self.tree, self.target)
        hook = post_process_text(port.stem, facts.name, rewriter.post_process)
        if rewriter.pre_process is None:
            return f"{text}\n\n{hook}"
        before = pre_process_text(port.stem, facts.name, rewriter.pre_process)
        return f"{text}\n\n{before}\n\n{hook}"

    def _beside(self, name: str) -> str:
        text = fill(f"{name.removeprefix('.')}.py.j2")
        pattern = re.compile(r"^(\s*from )(vllm(?:_omni)?[\w.]*)( import )", re.MULTILINE)
        return pattern.sub(lambda found: found[1] + self.target.module(found[2]) + found[3], text)


def _features(port: Port, rewriter: PipelineRewriter, text: str) -> dict[str, str]:
    """What the port, its pipeline's ``text`` and its models, supports; what was not verified is refused when built."""
    texts = "".join([*port.texts.values(), text])
    return {
        "attention_backends": "yes" if "Attention(num_heads=" in texts else "diffusers' own",
        "image_input": "yes" if "support_image_input" in texts else "no",
        "pre_process_hook": "yes" if rewriter.pre_process is not None else "no",
        "post_process_hook": "yes" if rewriter.post_process.calls else "no",
        **rewriter.features,
    }


def _parallel(models: dict[str, PortedFile]) -> dict[str, str]:
    """Parallel features of a pipeline, from those of its models."""
    return {
        name: together({model: state(model, name, built.features[name]) for model, built in models.items()}, True)
        for name in ("tensor_parallel", "sequence_parallel", "merged_projections")
    }


def _blocks(models: dict[str, PortedFile], facts: PipelineFacts) -> dict[str, str]:
    """What the engine can do with the blocks of a pipeline's models.

    It leaves a model without blocks as it is, but for HSDP, which it refuses then. Outside of its forward, a model's
    weights are in parts under HSDP.
    """
    names = ("regional_compile", "layerwise_offload", "hsdp")
    states = {
        name: {model: state(model, name, built.features[name]) for model, built in models.items()} for name in names
    }
    found = {name: together(states[name], name != "hsdp") for name in names}
    apart = called_apart(facts)
    if apart and not found["hsdp"].startswith((REFUSED, NOT_APPLICABLE)):
        found["hsdp"] = f"{REFUSED}: it calls {apart} by itself, where weights are in parts"
    return found


def _hoisting(models: dict[str, PortedFile], rewriter: PipelineRewriter, steps: str) -> Feature:
    """Whether results are held from step to step, from the models and from how the pipeline runs its steps."""
    found = [built.features["hoisting"] for built in models.values()]
    if all(feature.state != DERIVED for feature in found):
        return found[0] if found else Feature(NOT_APPLICABLE, "no model of it is converted")
    if steps.startswith((REFUSED, NOT_APPLICABLE)):
        return Feature(REFUSED, f"a request holds nothing, its steps are not apart ({steps.partition(': ')[2]})")
    calls = {name: built.features["hoisting"].fingerprint for name, built in models.items()}
    return Feature(DERIVED, fingerprint=fingerprint([calls, sorted(rewriter.constants)]))


def _caching(models: dict[str, PortedFile], facts: PipelineFacts) -> Feature:
    """Whether Cache-DiT runs the blocks of a pipeline's models; of all of them, since the engine asks for all."""
    for model, built in models.items():
        feature = built.features["cache_dit"]
        used = [name for name in feature.without if re.search(rf"\b{name}\s*=[^=]", facts.definition.code)]
        if used:
            return Feature(REFUSED, f"{used[0]} changes the states between blocks of {model}")
        if feature.state != DERIVED:
            return feature
    if not models:
        return Feature(NOT_APPLICABLE, "no model of it is converted")
    return Feature(
        DERIVED,
        fingerprint=fingerprint({name: built.features["cache_dit"].fingerprint for name, built in models.items()}),
    )


def convert(
    name: str,
    output_dir: str | Path | None = None,
    target: str = "porter",
    source: str | Path | None = None,
    tier: str = DEEPEST,
) -> Port:
    """Convert one diffusers pipeline.

    Args:
        name: ``diffusers.QwenImageEditPipeline`` or ``QwenImageEditPipeline``.
        output_dir: where to write the port; None converts without writing.
        target: ``porter`` or ``vllm-omni``.
        source: a diffusers source folder; the installed package by default.
        tier: how deep the port goes: ``A`` keeps diffusers' structure, ``B`` adds tensor parallelism, ``C`` sequence
            parallelism, ``D`` guidance on ranks, step-wise execution and caches.

    Raises:
        SourceError: unknown pipeline (with the nearest names), a class that is none, a source that does not parse.
        OutputError: the folder cannot be used, or holds ports of the family of another tier; nothing was written.
        ValueError: there is no such target or tier.
    """
    return convert_all([name], output_dir, target, source, tier)[0]


def convert_all(
    names: list[str],
    output_dir: str | Path | None = None,
    target: str = "porter",
    source: str | Path | None = None,
    tier: str = DEEPEST,
) -> list[Port]:
    """Convert several pipelines; they share model files where they share models. See :func:`convert`."""
    folder = Path(output_dir) if output_dir is not None else None
    if folder is not None:
        check_folder(folder)
    converter = Converter(SourceTree(source), get_target(target), tier=tier)
    ports = [converter.port(name) for name in names]
    if folder is not None:
        write_ports(folder, ports)
    return ports
