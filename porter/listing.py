"""What there is to convert, and how each of it stands."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import porter
from porter.batch import Outcome
from porter.cache import Cache
from porter.emit.names import model_stem
from porter.facts.evidence import state, tier
from porter.facts.pipeline import TRANSFORMERS, derives_from_model, is_called, pipeline_facts
from porter.source import Definition, SourceError, SourceTree
from porter.targets import Target

DATA = Path(porter.__file__).parent / "parity" / "data"
RESULTS, MODEL_RESULTS = DATA / "results.json", DATA / "model_results.json"
MEASURED = DATA / "measured.json"
NOT_TESTED = "not tested"
BASE = "DiffusionPipeline"


@dataclass
class Row:
    """One pipeline or model class.

    Attributes:
        tier: deepest tier of which something was verified (``A``: structure-preserving), empty if it does not convert.
        parity: verdict of the committed results.
        residue: number of constructs that no rule translated.
        affects_results: whether results can depend on any of them.
        related: of a pipeline, the model classes it is made of; of a model, the pipelines that use it.
        features: what the port has, by name: ``verified``, ``derived``, ``yes`` or why not.
    """

    name: str
    family: str
    converts: bool
    tier: str = ""
    parity: str = NOT_TESTED
    residue: int = 0
    affects_results: bool = False
    error: str = ""
    related: list[str] = field(default_factory=list)
    features: dict[str, str] = field(default_factory=dict)


def live_pipelines(tree: SourceTree, cache: Cache | None = None) -> dict[str, list[str]]:
    """Pipelines that diffusers maintains and that have a transformer, each with its transformer classes."""
    return {name: models or [] for name, models in _maintained(tree, cache).items() if models != []}


def other_pipelines(tree: SourceTree, cache: Cache | None = None) -> list[str]:
    """Pipelines that diffusers maintains and whose denoiser is no transformer (a UNet, mostly)."""
    return [name for name, models in _maintained(tree, cache).items() if models == []]


def _maintained(tree: SourceTree, cache: Cache | None) -> dict[str, list[str] | None]:
    """Pipelines with their transformer classes; None for those in a source that does not parse.

    Left out are what stands below ``pipelines/deprecated``, classes that state a ``_last_supported_version``, and those
    that cannot be called.
    """
    kept = cache.read("maintained") if cache is not None else None
    if kept is not None:
        return kept
    found: dict[str, list[str] | None] = {}
    for name in tree.pipelines():
        module = tree.pipeline_module(name)
        if ".deprecated." in module:
            continue
        try:
            definition = tree.find_pipeline(name)
            if _is_deprecated(definition):
                continue
            components = pipeline_facts(tree, definition).components
            models = [model.name for component in components for model in component.converted]
            if models or is_called(definition):
                found[name] = list(dict.fromkeys(models))
        except SourceError:
            found[name] = None  # converting it says which
        finally:
            tree.forget(module)  # the trees of all pipelines together are half a gigabyte
    if cache is not None:
        cache.write("maintained", found)
    return found


def find_pipeline(tree: SourceTree, name: str) -> Definition:
    """The definition of a pipeline, by its class name, with or without ``diffusers.`` in front.

    Raises:
        SourceError: there is no such class, or it is no pipeline.
    """
    definition = tree.find_pipeline(name)
    if not _derives(tree, definition):
        raise SourceError(f"{definition.name} is a class of {definition.module.name}, not a pipeline.")
    return definition


def _derives(tree: SourceTree, definition: Definition | None, depth: int = 0) -> bool:
    if definition is None or not isinstance(definition.node, ast.ClassDef) or depth > 12:
        return False
    for base in definition.node.bases:
        name = base.id if isinstance(base, ast.Name) else ""
        if name == BASE or _derives(tree, tree.resolve(definition.module.name, name), depth + 1):
            return True
    return False


def _is_deprecated(definition: Definition) -> bool:
    assert isinstance(definition.node, ast.ClassDef)
    assigned = [item.targets[0] for item in definition.node.body if isinstance(item, ast.Assign)]
    return any(isinstance(target, ast.Name) and target.id == "_last_supported_version" for target in assigned)


def transformer_classes(tree: SourceTree) -> dict[str, Definition | SourceError]:
    """The model classes of ``diffusers/models/transformers``, by name; an error for those in a file that is broken."""
    found: dict[str, Definition | SourceError] = {}
    for name, modules in sorted(tree.class_index.items()):
        for module in modules:
            if not module.startswith(TRANSFORMERS):
                continue
            try:
                definition = tree.resolve(module, name)
            except SourceError as error:
                found[name] = error
                continue
            if (
                definition is not None
                and isinstance(definition.node, ast.ClassDef)
                and derives_from_model(definition.node)
            ):
                found[name] = definition
    return found


def pipeline_rows(outcomes: Iterable[Outcome], live: dict[str, list[str]]) -> list[Row]:
    """A row for each pipeline, from its conversion and the committed results."""
    verdicts = parity_results()
    rows = []
    for outcome in outcomes:
        models = live.get(outcome.name, [])
        parity = _verdict(verdicts.get(outcome.name))
        row = Row(outcome.name, outcome.family, outcome.converted, "", parity, error=outcome.error, related=models)
        if outcome.converted:
            row.tier, row.features = tier(outcome.features), outcome.features
            row.residue, row.affects_results = len(outcome.residue), not outcome.clean
        rows.append(row)
    return rows


def model_rows(tree: SourceTree, target: Target, live: dict[str, list[str]], cache: Cache | None = None) -> list[Row]:
    """A row for each transformer class, converted by itself."""
    kept = cache.read("models") if cache is not None else None
    if kept is None:
        kept = [asdict(_model_row(tree, target, name, found)) for name, found in transformer_classes(tree).items()]
        if cache is not None:
            cache.write("models", kept)
    verdicts = parity_results()
    users: dict[str, list[str]] = {}
    for pipeline, models in live.items():
        for model in models:
            users.setdefault(model, []).append(pipeline)
    return [
        Row(**{**row, "parity": _verdict(verdicts.get(row["name"])), "related": users.get(row["name"], [])})
        for row in kept
    ]


def _model_row(tree: SourceTree, target: Target, name: str, definition: Definition | SourceError) -> Row:
    if isinstance(definition, SourceError):
        return Row(name, "", False, error=str(definition))
    from porter.model_port import build_model

    family = model_stem(definition.name)
    try:
        text, built = build_model(tree, target, definition)
        ast.parse(text)
    except Exception as error:
        return Row(definition.name, family, False, error=" ".join(f"{type(error).__name__}: {error}".split()))
    affects = any(entry.affects_results for entry in built.residue)
    features = {name: state(definition.name, name, feature) for name, feature in built.features.items()}
    count = len(built.residue)
    return Row(definition.name, family, True, tier(features), "", count, affects, features=features)


def parity_results() -> dict[str, Any]:
    """The committed results, ``{name: {"verdict": …}}`` of pipelines and models; empty if there are none."""
    pipelines, models = (json.loads(f.read_text("utf-8")) if f.is_file() else {} for f in (RESULTS, MODEL_RESULTS))
    tallies = {name: result["float32"] for name, result in models.items() if result.get("float32", {}).get("compared")}
    return pipelines | {
        name: {"verdict": "differs" if tally["failing"] else "parity"} for name, tally in tallies.items()
    }


def measured_with() -> str:
    """The version of diffusers that the committed results were measured with; empty if it is not known."""
    return str(json.loads(MEASURED.read_text("utf-8"))["diffusers"]) if MEASURED.is_file() else ""


def _verdict(result: dict[str, Any] | None) -> str:
    return str(result["verdict"]) if result else NOT_TESTED
