"""From the name of a model class to its port, without a pipeline around it."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from porter.emit.module import notes, render
from porter.emit.names import model_stem
from porter.emit.templates import fill
from porter.emit.write import write_files
from porter.facts.evidence import DERIVED, NOT_APPLICABLE, REFUSED, Feature, fingerprint
from porter.facts.pipeline import CONTROLNETS, TRANSFORMERS, derives_from_model
from porter.facts.tiers import DEEPEST, left_out
from porter.rules.build import Builder, PortedFile
from porter.rules.engine import INVARIANTS, Residue, code
from porter.rules.model.block_features import block_features
from porter.rules.model.cache_blocks import cache_blocks
from porter.rules.model.hoisting import HoistInvariants, held_by
from porter.rules.model.rewrite import ModelRewriter
from porter.rules.model.split import record_all, split_over_ranks
from porter.source import Definition, SourceError, SourceTree
from porter.targets import Target

FOLDERS = (TRANSFORMERS, CONTROLNETS)


@dataclass
class ModelPort:
    """A converted model class.

    Attributes:
        name: of the class, in diffusers and in the port.
        stem: of the file, without ``.py``.
        text: of the file, before it is formatted.
        residue: what no rule translated, with file, line and reason.
        rules: names of the rules that changed something, and how often.
    """

    name: str
    stem: str
    text: str = field(repr=False)
    residue: list[Residue] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)


def model_names(tree: SourceTree) -> list[str]:
    """Names of all classes below ``models/transformers`` and ``models/controlnets``, sorted."""
    return sorted(name for name, modules in tree.class_index.items() if any(m.startswith(FOLDERS) for m in modules))


def is_model(tree: SourceTree, name: str) -> bool:
    """Whether a class is a model of its own: one that has weights and a configuration to load."""
    node = find_model(tree, name).node
    return isinstance(node, ast.ClassDef) and derives_from_model(node)


def find_model(tree: SourceTree, name: str) -> Definition:
    """The definition of a model class of ``diffusers/models/transformers`` or ``…/controlnets``.

    Raises:
        SourceError: there is no such class; the nearest names are given.
    """
    short = name.removeprefix("diffusers.")
    for module in tree.class_index.get(short, []):
        if module.startswith(FOLDERS):
            definition = tree.resolve(module, short)
            if definition is not None:
                return definition
    near = difflib.get_close_matches(short, model_names(tree), n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise SourceError(f"diffusers {tree.version} has no transformer or controlnet called {short!r}.{hint}")


def port_model(tree: SourceTree, target: Target, name: str) -> ModelPort:
    """Convert one model class, in memory.

    Raises:
        SourceError: there is no such class, or its source does not parse.
    """
    definition = find_model(tree, name)
    text, built = build_model(tree, target, definition)
    stem = f"{model_stem(definition.name)}_transformer"
    return ModelPort(definition.name, stem, text, built.residue, built.applied)


def build_model(
    tree: SourceTree, target: Target, definition: Definition, record: bool = False, tier: str = DEEPEST
) -> tuple[str, PortedFile]:
    """The file of one model class, as text and as what it was made of.

    Args:
        tree: the diffusers sources.
        target: what the file imports.
        definition: of the class.
        record: as for :class:`Builder`.
        tier: how deep the port goes (:mod:`porter.facts.tiers`).
    """
    built = Builder(tree, target.symbols, ModelRewriter(), record=record).build([definition])
    split_over_ranks(built, definition, tier)
    _hoist(built, tree, definition, tier)
    cache_blocks(built, definition.name, tier)
    built.features |= block_features(built.nodes, definition.name)
    features = {name: feature.told for name, feature in built.features.items()}
    return render(built, tree, target, notes(tier, features)), built


def _hoist(built: PortedFile, tree: SourceTree, model: Definition, tier: str) -> None:
    """Wrap what is the same in each step of a request, in place; see :class:`HoistInvariants`."""
    if tier < DEEPEST:
        built.features["hoisting"] = Feature(REFUSED, left_out(tier))
        return
    rule = HoistInvariants()
    built.nodes[:], changed = rule.apply(built.nodes, model.name, built.imports, tree)
    record_all(built, rule.name, built.nodes, changed)
    built.relative |= dict.fromkeys(held_by(built.nodes[place] for place in changed), INVARIANTS.removeprefix("."))
    reason = "nothing that its forward calls depends on the request alone"
    calls = sorted(
        call for place in changed for call in re.findall(r"\bonce\w*\(\s*([\w.]+)", code(built.nodes[place]))
    )
    held = Feature(DERIVED, fingerprint=fingerprint(calls))
    built.features["hoisting"] = held if changed else Feature(NOT_APPLICABLE, reason)


def write_models(folder: Path, ports: list[ModelPort]) -> dict[str, Path]:
    """Write ports, formatted, with what their texts import from beside them; returns the file of each class.

    Raises:
        OutputError: the folder cannot be used; nothing was written.
        FormatError: a text is not Python: a defect of a rule.
    """
    files = {f"{port.stem}.py": port.text for port in ports}
    if any(f"from {INVARIANTS} import" in text for text in files.values()):
        stem = INVARIANTS.removeprefix(".")
        files[f"{stem}.py"] = fill(f"{stem}.py.j2")
    write_files(folder, files)
    return {port.name: folder / f"{port.stem}.py" for port in ports}


def load_model(file: Path, name: str) -> type[Any]:
    """The class ``name`` of a file that :func:`write_models` wrote, imported under a name of its own."""
    package = types.ModuleType(f"porter_model_port_{abs(hash(file.resolve())):x}")
    package.__path__ = [str(file.parent)]
    sys.modules[package.__name__] = package
    module_name = f"{package.__name__}.{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # torch.compile and dataclasses look a module up by name
    spec.loader.exec_module(module)
    found: type[Any] = getattr(module, name)
    return found
