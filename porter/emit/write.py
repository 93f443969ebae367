"""Write a port: staged beside its place, formatted, then moved in file by file, or not at all."""

from __future__ import annotations

import ast
import os
import shutil
import tempfile
from pathlib import Path

from porter.emit.format import format_folder
from porter.emit.templates import fill

TABLES = ("_DIFFUSION_MODELS", "_DIFFUSION_PRE_PROCESS_FUNCS", "_DIFFUSION_POST_PROCESS_FUNCS")
Registry = dict[str, dict[str, object]]


class OutputError(ValueError):
    """The output folder cannot be used; nothing was written."""


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
    file = folder / "registry.py"
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


def write_files(folder: Path, files: dict[str, str]) -> list[Path]:
    """Write ``files`` (relative path to text) below ``folder``, formatted; earlier files are replaced one by one.

    Raises:
        OutputError: the folder cannot be used.
        FormatError: a text is not Python; nothing was written.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".porter-", dir=folder))
    try:
        for name, text in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        format_folder(staging)
        written = []
        for name in files:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, place)
            written.append(place)
        return written
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def registry_text(tables: Registry) -> str:
    """The text of ``registry.py``, entries sorted by name."""
    ordered = [dict(sorted(tables[name].items())) for name in TABLES]
    return fill("registry.py.j2", models=ordered[0], pre=ordered[1], post=ordered[2])
