"""Write ports: staged beside their place, formatted, then moved in, or not at all.

Files are moved one by one, the registry last, so that it never names what is not there. Should the process be killed
between two of them, the next one that writes there finishes the work: what is staged whole is marked so.
"""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from porter.emit.format import format_folder
from porter.emit.templates import fill

TABLES = ("_DIFFUSION_MODELS", "_DIFFUSION_PRE_PROCESS_FUNCS", "_DIFFUSION_POST_PROCESS_FUNCS")
Registry = dict[str, dict[str, object]]
REGISTRY = "registry.py"
STAGING, WHOLE = ".porter-", ".whole"


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


def write_ports(folder: Path, ports: Sequence[Written]) -> None:
    """Write ports and the registry that names them, merged with the registry that is there.

    Raises:
        OutputError: the folder cannot be used.
        FormatError: a text is not Python; nothing was written.
    """
    with reserved(folder):
        tables = read_registry(folder)
        files: dict[str, str] = {}
        for port in ports:
            files.update(port.texts)
            _register(tables, port)
        files[REGISTRY] = registry_text(tables)
        files.setdefault("__init__.py", '"""Generated vLLM-Omni models."""\n')
        write_files(folder, files)


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
    """Write ``files`` (relative path to text) below ``folder``, formatted, all of them or none.

    Raises:
        OutputError: the folder cannot be used.
        FormatError: a text is not Python; nothing was written.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    try:
        for name, text in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        format_folder(staging)
        (staging / WHOLE).touch()
        _move_in(staging, folder)
        return [folder / name for name in files]
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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
    staged = [path.relative_to(staging) for path in staging.rglob("*") if path.is_file() and path.name != WHOLE]
    for name in sorted(staged, key=lambda path: (path.name == REGISTRY, path)):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, place)


def registry_text(tables: Registry) -> str:
    """The text of ``registry.py``, entries sorted by name."""
    ordered = [dict(sorted(tables[name].items())) for name in TABLES]
    return fill("registry.py.j2", models=ordered[0], pre=ordered[1], post=ordered[2])
