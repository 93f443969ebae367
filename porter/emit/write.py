"""Write ports: staged beside their place, formatted, then moved in, or not at all.

Files are moved one by one, the registry last, so that it never names what is not there. Should the process be killed
between two of them, the next one that writes there finishes the work: what is staged whole is marked so. What somebody
wrote by hand is kept (:mod:`porter.emit.edits`), also what was written between a crash and the next write.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from porter.emit import generations
from porter.emit.edits import BASE, FAIL, Conflict, Plan, plan_files
from porter.emit.edits import ORIGINAL as ORIGINAL
from porter.emit.errors import OutputError as OutputError
from porter.emit.format import formatted
from porter.emit.manifest import MANIFEST, digest, manifest_text, read_manifest
from porter.emit.overrides import apply_overrides
from porter.emit.safety import check_texts
from porter.emit.templates import fill
from porter.facts.tiers import DEEPEST, tier_of

TABLES = ("_DIFFUSION_MODELS", "_DIFFUSION_PRE_PROCESS_FUNCS", "_DIFFUSION_POST_PROCESS_FUNCS")
Registry = dict[str, dict[str, object]]
REGISTRY = "registry.py"
STAGING, WHOLE = ".porter-", ".whole"


class EditConflict(OutputError):
    """What somebody wrote by hand cannot be kept as it is; nothing was written.

    Attributes:
        conflicts: each with both sides.
        summary: what happened, in one line; the text of the error has the sides too.
    """

    def __init__(self, folder: Path, conflicts: Sequence[Conflict]) -> None:
        self.conflicts = list(conflicts)
        places = ", ".join(f"{folder / conflict.file}:{conflict.line}" for conflict in self.conflicts[:3])
        more = f" and {len(self.conflicts) - 3} more" if len(self.conflicts) > 3 else ""
        self.summary = (
            f"what was written by hand conflicts with what porter writes, and nothing was written: {places}{more}. "
            "Mend it there, or choose a side for the lines that both changed: --conflicts mine or --conflicts porter."
        )
        super().__init__("\n".join([self.summary, *map(str, self.conflicts)]))


def check_folder(folder: Path) -> None:
    """Refuse an output folder before anything is converted.

    Raises:
        OutputError: it is a file, leaves the tree by ``..``, or cannot be written to.
    """
    if ".." in folder.parts:
        raise OutputError(f"{folder} leaves the tree by '..'; name the folder directly.")
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"{existing} is a file; name a folder for the output.")
    if not os.access(existing, os.W_OK):
        raise OutputError(f"{existing} is not writable.")


def read_registry(folder: Path) -> Registry:
    """The tables of an earlier ``registry.py`` in ``folder``, read as literals; empty ones if there is none."""
    tables: Registry = {name: {} for name in TABLES}
    file = folder / REGISTRY
    if not file.is_file():
        return tables
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in tables:
                tables[node.targets[0].id] = ast.literal_eval(node.value)
    except (SyntaxError, ValueError) as error:
        raise OutputError(f"{file} is no registry that porter wrote ({error}); move it away.") from error
    return tables


class Written(Protocol):
    """What is written of a port: see :class:`porter.port.Port`."""

    name: str
    family: str
    stem: str
    texts: dict[str, str]


def write_ports(folder: Path, ports: Sequence[Written], conflicts: str = FAIL) -> Plan:
    """Write ports and the registry that names them, merged with the registry that is there; edits are kept.

    Args:
        folder: of ports.
        ports: what is written.
        conflicts: what to do where an edit and porter changed the same lines: ``fail``, ``mine`` or ``porter``.

    Raises:
        OutputError: the folder cannot be used, or holds other ports of a family in another tier, which share files;
            :class:`EditConflict` where an edit or override cannot be kept.
        FormatError: a text is not Python; nothing was written.
    """
    with reserved(folder):
        tables = read_registry(folder)
        _check_tiers(folder, ports, tables)
        files, problems = generation(folder, ports, tables)
        plan = plan_files(folder, files, conflicts)
        plan.conflicts += problems
        carry_out(folder, plan)
        return plan


def registered_tier(folder: Path, entry: object) -> str:
    """The tier of a port that a registry of ``folder`` names; the deepest, if its file is not there."""
    family, module = entry[0], entry[1]  # type: ignore[index]
    file = folder / str(family) / f"{module}.py"
    return tier_of(file.read_text("utf-8", errors="replace")) if file.is_file() else DEEPEST


def _check_tiers(folder: Path, ports: Sequence[Written], tables: Registry) -> None:
    """Refuse to leave a family with pipelines of one tier and models of another."""
    written = {port.name for port in ports}
    for port in ports:
        tier = tier_of(port.texts[f"{port.family}/pipeline_{port.stem}.py"])
        for name, entry in tables["_DIFFUSION_MODELS"].items():
            if entry[0] != port.family or name in written:  # type: ignore[index]
                continue
            other = registered_tier(folder, entry)
            if other != tier:
                raise OutputError(
                    f"{folder / port.family} holds {name} in tier {other}, and {port.name} shares its files; "
                    f"convert both with --tier {tier}, or into another folder."
                )


def generation(folder: Path, ports: Sequence[Written], tables: Registry) -> tuple[dict[str, str], list[Conflict]]:
    """What porter writes to ``folder``, formatted, overrides in place; and overrides that cannot be.

    Args:
        folder: of ports; its override files are read.
        ports: what is written.
        tables: the registry that they are added to.

    Raises:
        FormatError: a text is not Python.
    """
    files: dict[str, str] = {}
    for port in ports:
        files.update(port.texts)
        _register(tables, port)
    files[REGISTRY] = registry_text(tables)
    files.setdefault("__init__.py", '"""Generated vLLM-Omni models."""\n')
    files = formatted(files)
    overridden, problems = apply_overrides(folder, files)
    return files | formatted(overridden), problems


def carry_out(folder: Path, plan: Plan) -> None:
    """Do what a plan says, all of it or nothing; the folder is reserved.

    Raises:
        EditConflict: the plan has conflicts.
    """
    if plan.conflicts:
        raise EditConflict(folder, plan.conflicts)
    known = {name: value for name, value in read_manifest(folder).items() if (folder / name).is_file()}
    hashes = {name: value for name, value in known.items() if name not in plan.remove} | plan.hashes
    seen = {name: "" if text is None else digest(text) for name, text in plan.before.items()}
    changed = {name: plan.files[name] for name in plan.differing}
    _stage(folder, {**plan.aside, **changed, MANIFEST: manifest_text(hashes)}, seen)
    for name in plan.remove:
        if name not in seen or _hash(folder / name) == seen[name]:  # else somebody has just edited it
            (folder / name).unlink(missing_ok=True)
    generations.remember(text for name, text in plan.files.items() if digest(text) == plan.hashes.get(name))


def _register(tables: Registry, port: Written) -> None:
    module = f"pipeline_{port.stem}"
    tables["_DIFFUSION_MODELS"][port.name] = (port.family, module, port.name)
    for table, kind in (("_DIFFUSION_PRE_PROCESS_FUNCS", "pre"), ("_DIFFUSION_POST_PROCESS_FUNCS", "post")):
        function = f"get_{port.stem}_{kind}_process_func"
        if f"def {function}(" in port.texts[f"{port.family}/{module}.py"]:
            tables[table][port.name] = function
        else:
            tables[table].pop(port.name, None)


def write_files(folder: Path, files: dict[str, str]) -> list[Path]:
    """Write ``files`` (relative path to text) below ``folder``, formatted, all of them or none. Keeps no edits.

    Raises:
        OutputError: the folder cannot be used.
        FormatError: a text is not Python; nothing was written.
        UnsafeCode: a text does what no port may do; nothing was written.
    """
    check_folder(folder)
    check_texts(files)
    texts = formatted(files)
    folder.mkdir(parents=True, exist_ok=True)
    _stage(folder, texts)
    return [folder / name for name in files]


def place_files(folder: Path, files: dict[str, str]) -> None:
    """Write ``files`` (relative path to text) below ``folder`` as they are, all of them or none.

    Should the process be killed in between, the next one that writes there finishes the work.

    Raises:
        OutputError: the folder cannot be used, or a file does not lie in it.
    """
    with reserved(folder):
        _stage(folder, files)


def _stage(folder: Path, files: dict[str, str], seen: dict[str, str] | None = None) -> None:
    """Write files beside their place, then move them in.

    Args:
        folder: where to.
        files: relative path to text.
        seen: hashes of what they were made to replace; of what is there now, for those that are not named.
    """
    for name in files:
        _check_inside(folder, name)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    try:
        for name, text in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        expected = {name: (seen or {}).get(name, _hash(folder / name)) for name in files}
        (staging / WHOLE).write_text(json.dumps(expected), encoding="utf-8")
        _move_in(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_inside(folder: Path, name: str) -> None:
    """Refuse a file that does not lie in the folder, by its name or through a link."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise OutputError(f"{name!r} does not lie in {folder}.")
    root = folder.resolve()
    if not (folder / path).parent.resolve().is_relative_to(root):
        raise OutputError(f"{folder / path} leaves {folder} through a symbolic link.")


def _hash(path: Path) -> str:
    """The hash of a file's text, empty if there is none."""
    return digest(path.read_text("utf-8", errors="replace")) if path.is_file() else ""


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to ``folder``, after finishing what an interrupted one left there.

    Raises:
        OutputError: the folder cannot be used.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _finish_interrupted(folder)
        yield
    finally:
        os.close(handle)


def _finish_interrupted(folder: Path) -> None:
    """Move in what an interrupted run staged whole; remove what it did not."""
    for staging in sorted(folder.glob(f"{STAGING}*")):
        if (staging / WHOLE).is_file():
            _move_in(staging, folder)
        shutil.rmtree(staging, ignore_errors=True)


def _move_in(staging: Path, folder: Path) -> None:
    """Move what is staged to its place, but for what somebody has changed since it was staged."""
    staged = [path.relative_to(staging) for path in staging.rglob("*") if path.is_file() and path.name != WHOLE]
    marker = (staging / WHOLE).read_text("utf-8")
    seen: dict[str, str] = json.loads(marker) if marker else {}
    changed = [
        name
        for name in map(Path.as_posix, staged)
        if name in seen and _hash(folder / name) not in (seen[name], _hash(staging / name))
    ]
    if changed and (staging / MANIFEST).is_file():
        known, hashes = read_manifest(folder), read_manifest(staging)
        kept = {name: known[name] for name in changed if name in known}
        hashes = {name: value for name, value in hashes.items() if name not in changed} | kept
        (staging / MANIFEST).write_text(manifest_text(hashes), "utf-8")
    for name in sorted(staged, key=lambda path: (path.name == REGISTRY, path.name == MANIFEST, path)):
        if name.as_posix().removesuffix(BASE) in changed and name.name != MANIFEST:
            continue
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, place)


def registry_text(tables: Registry) -> str:
    """The text of ``registry.py``, entries sorted by name."""
    ordered = [dict(sorted(tables[name].items())) for name in TABLES]
    return fill("registry.py.j2", models=ordered[0], pre=ordered[1], post=ordered[2])
