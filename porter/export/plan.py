"""What an export writes, decided before anything is; then all of it, or nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import porter
from porter.emit.templates import fill
from porter.emit.write import place_files
from porter.export import ExportError
from porter.export.checkout import METADATA, REGISTRY, Checkout
from porter.export.evidence import measured, pictures_of, read_evidence
from porter.export.folder import MARK, missing_imports, module_texts, package_text, place
from porter.export.pages import (
    FEATURES_PAGE,
    MODELS_PAGE,
    RECIPES_PAGE,
    Exported,
    checkpoint_of,
    page_texts,
)
from porter.export.review import answers, lost_entries
from porter.export.tables import extra_arguments, extras, family_of, metadata_text, registry_text, replaced
from porter.omni.card import card_of
from porter.port import Converter

PULL_REQUEST, PICTURES = "PULL_REQUEST.md", "PULL_REQUEST"
# What several models have entries in.
SHARED = ".buildkite/"
PAGES = (MODELS_PAGE, FEATURES_PAGE, RECIPES_PAGE)
BACKUP = ".orig"
# Where the text of the pull request tells what becomes of files that were there.
_DIFF = "\n## Everything that was there\n"


@dataclass
class ExportPlan:
    """Files of an export.

    Attributes:
        checkout: where they go.
        models: what is exported.
        files: what is to be there, by path in the tree.
        changed: files of vLLM-Omni that entries are put into.
        backups: copies of files that are replaced, by path.
    """

    checkout: Checkout
    models: list[Exported] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    backups: dict[str, str] = field(default_factory=dict)

    @property
    def differing(self) -> list[str]:
        """Files that are not there yet as they are to be, sorted."""
        return sorted(name for name, text in self.files.items() if self.checkout.read(name) != text)

    def diff(self) -> str:
        """What becomes of the repository's own files, in the form of ``diff -u``; without what ports bring."""
        lines: list[str] = []
        for name in sorted(set(self.changed)):
            held = self.checkout.read(name)
            if held is not None and held != self.files[name]:
                before, after = held.splitlines(), self.files[name].splitlines()
                lines += difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", lineterm="")
        return "\n".join(lines)

    @property
    def conflicts(self) -> list[str]:
        """Files that are there, differ, and are neither a table that is added to nor made anew with every port."""
        made_anew = {PULL_REQUEST, *self.changed}
        names = (name for name in self.differing if name not in made_anew and not name.endswith("/__init__.py"))
        found = (name for name in names if not name.startswith(f"{PICTURES}/"))
        return [name for name in found if self.checkout.read(name) is not None]


def plan_export(
    converter: Converter, names: Sequence[str], checkout: Checkout, evidence: Sequence[Path] = ()
) -> ExportPlan:
    """Convert pipelines and lay out what they are in a tree of vLLM-Omni. Nothing is written.

    Args:
        converter: for the target ``vllm-omni``.
        names: of the pipelines.
        checkout: the tree.
        evidence: files with results of ``porter bench --json`` and ``porter parity --json``.

    Raises:
        ExportError: a port is not complete, the tree is not as vLLM-Omni has it, or evidence is of something else.
        SourceError: there is no such pipeline.
    """
    plan = ExportPlan(checkout)
    speed, parity = read_evidence(evidence)
    stray = sorted((speed.keys() | parity.keys()) - set(names))
    if stray:
        raise ExportError(f"--evidence is of {_listed(stray)}, which is not exported")
    modules_of: dict[str, dict[str, str]] = {}

    def read(name: str) -> str:
        return plan.files.get(name) or checkout.text(name)

    for name in names:
        exported = _exported(converter, name, checkout)
        exported = replace(exported, bench=speed.get(name), in_process=parity.get(name, exported.in_process))
        port, card, folder = exported.port, exported.card, exported.folder
        modules = module_texts(port, card, folder, exported.warm_up)
        missing = missing_imports(modules, converter.target.symbols)
        if missing:
            raise ExportError(
                f"{port.name} needs what vLLM-Omni {checkout.version} and the diffusers that it pins do not have "
                f"({_listed(missing)}): export it from that diffusers (--source), or report it as a defect of porter"
            )
        modules_of[port.name] = modules
        plan.files |= modules
        init = f"vllm_omni/diffusion/models/{folder}/__init__.py"
        plan.files[init] = package_text(checkout, folder, plan.files)
        family = family_of(read(REGISTRY), port, folder)
        tables = {REGISTRY: registry_text(read(REGISTRY), port, folder)}
        tables[METADATA] = metadata_text(read(METADATA), card, family)
        plan.files |= tables
        declared = extras(checkout, read, port, exported.extra_arguments)
        plan.files |= declared
        plan.changed += [file for file in (*tables, *declared) if file.endswith(("registry.py", "model_metadata.py"))]
        pages, exported = page_texts(exported, checkout, read)
        plan.files |= pages
        plan.changed += [file for file in pages if file.startswith(SHARED) or file in PAGES]
        plan.models.append(exported)
    plan.files |= _pull_request(plan, modules_of, converter.tree.version, read)
    return plan


def _pull_request(
    plan: ExportPlan, modules: dict[str, dict[str, str]], diffusers: str, read: Callable[[str], str]
) -> dict[str, str]:
    """The text of the pull request and its pictures; where nothing was measured, it says so."""
    models, files = plan.models, {}
    for model in models:
        if model.bench is None:
            continue
        from porter.bench.plot import plot

        files[f"{PICTURES}/{model.port.name}_speed.svg"] = plot(model.bench)
        shown = pictures_of(model.bench)
        if shown:
            files[f"{PICTURES}/{model.port.name}_output.svg"] = shown
    text = fill(
        "export/pull_request.md.j2",
        models=models,
        names=" ".join(model.port.name for model in models),
        porter=porter.__version__,
        diffusers=diffusers,
        vllm_omni=plan.checkout.version,
        reviews=[answers(model, modules[model.port.name]) for model in models],
        lost=lost_entries(plan.checkout, read),
        diff=plan.diff(),
    )
    held = plan.checkout.read(PULL_REQUEST)
    if held is not None and not plan.diff() and held.partition(_DIFF)[0] == text.partition(_DIFF)[0]:
        text = held  # exported before: what it changed then is what it changes
    files[PULL_REQUEST] = text
    return files


def _exported(converter: Converter, name: str, checkout: Checkout) -> Exported:
    port = converter.port(name)
    if not port.clean:
        left = next(entry for entry in port.residue if entry.affects_results)
        raise ExportError(
            f"{port.name} was not converted completely, and its results may differ from diffusers' ({left.file}:"
            f"{left.line}: {left.reason}): finish it by hand first (`porter convert {port.name} --target vllm-omni`)"
        )
    text = port.texts[f"{port.family}/pipeline_{port.stem}.py"]
    card = card_of(text, port.name, f"get_{port.stem}_post_process_func")
    engine = measured("omni").get(port.name, {})
    refused = str(engine.get("warm_up", ""))
    return Exported(
        port=port,
        card=card,
        folder=place(checkout, port.family),
        checkpoint=checkpoint_of(converter.tree.find_pipeline(name).module.path.read_text("utf-8")),
        replaces=replaced(checkout, port.name),
        extra_arguments=extra_arguments(checkout, card),
        warm_up=refused.partition(": ")[2] if refused.startswith("refused") else "",
        in_process=measured("results").get(port.name, {}),
        in_engine=engine,
    )


def check_plan(plan: ExportPlan, force: bool) -> None:
    """Refuse to write where something of somebody else's would be lost.

    With ``force`` what is replaced is kept beside, and the plan says where.

    Raises:
        ExportError: files differ, or the tree has changes that git has not recorded; the message has the list.
    """
    differing = plan.differing
    if not differing:
        return
    if force:
        for name in differing:
            held = plan.checkout.read(name)
            if held is not None and MARK not in held:
                plan.backups[_free(plan.checkout.root, name)] = held
        for name in plan.conflicts:
            held = plan.checkout.read(name)
            if held is not None and held not in plan.backups.values():
                plan.backups[_free(plan.checkout.root, name)] = held
        return
    dirty = [name for name in plan.checkout.dirty() if plan.files.get(name) != plan.checkout.read(name)]
    if dirty:
        raise ExportError(
            f"{plan.checkout.root} has changes that are not committed ({_listed(dirty)}): commit or stash them, so "
            "that the pull request holds the export alone; --force writes all the same and keeps copies"
        )
    if plan.conflicts:
        raise ExportError(
            f"these files are there already and differ: {_listed(plan.conflicts)}; remove them, or say --force to "
            f"replace them and keep each as FILE{BACKUP}"
        )


def write_plan(plan: ExportPlan) -> list[str]:
    """Write what differs, all of it or nothing; names of what was written, copies left out."""
    differing = plan.differing
    if differing:
        place_files(plan.checkout.root, {**plan.backups, **{name: plan.files[name] for name in differing}})
    return differing


def _free(root: Path, name: str) -> str:
    number, kept = 1, name + BACKUP
    while (root / kept).exists():
        number += 1
        kept = f"{name}{BACKUP}{number}"
    return kept


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
