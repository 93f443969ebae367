"""What an export writes, decided before anything is; then all of it, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from porter.emit.write import place_files
from porter.export import ExportError
from porter.export.checkout import METADATA, REGISTRY, Checkout
from porter.export.evidence import measured
from porter.export.folder import MARK, missing_imports, module_texts, package_text, place
from porter.export.pages import Exported, checkpoint_of, page_texts, pull_request
from porter.export.tables import extra_arguments, extras, family_of, metadata_text, registry_text, replaced
from porter.omni.card import card_of
from porter.port import Converter

PULL_REQUEST = "PULL_REQUEST.md"
BACKUP = ".orig"


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

    @property
    def conflicts(self) -> list[str]:
        """Files that are there, differ, and are neither a table that is added to nor made anew with every port."""
        made_anew = {PULL_REQUEST, *self.changed}
        found = (name for name in self.differing if name not in made_anew and not name.endswith("/__init__.py"))
        return [name for name in found if self.checkout.read(name) is not None]


def plan_export(converter: Converter, names: Sequence[str], checkout: Checkout) -> ExportPlan:
    """Convert pipelines and lay out what they are in a tree of vLLM-Omni. Nothing is written.

    Args:
        converter: for the target ``vllm-omni``.
        names: of the pipelines.
        checkout: the tree.

    Raises:
        ExportError: a port is not complete, or the tree is not as vLLM-Omni has it.
        SourceError: there is no such pipeline.
    """
    plan = ExportPlan(checkout)

    def read(name: str) -> str:
        return plan.files.get(name) or checkout.text(name)

    for name in names:
        exported = _exported(converter, name, checkout)
        port, card, folder = exported.port, exported.card, exported.folder
        modules = module_texts(port, card, folder, exported.warm_up)
        missing = missing_imports(modules, converter.target.symbols)
        if missing:
            raise ExportError(
                f"{port.name} needs what vLLM-Omni {checkout.version} and the diffusers that it pins do not have "
                f"({_listed(missing)}): export it from that diffusers (--source), or report it as a defect of porter"
            )
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
        pages, added_to = page_texts(exported, checkout, read)
        plan.files |= pages
        plan.changed += added_to
        plan.models.append(exported)
    plan.files[PULL_REQUEST] = pull_request(plan.models, checkout, converter.tree.version)
    return plan


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
