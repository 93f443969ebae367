"""Where the port of a pipeline lies: in a folder that somebody names, in the cache, or among the committed ones.

The cache is keyed by the sources of the installed diffusers and by porter's own code (:class:`porter.cache.Cache`), so
a port in it is never older than what it was made from. Each port has a folder of its own with its own registry:
processes that convert the same pipeline at the same time do not meet.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from porter.cache import Cache
from porter.emit.write import read_registry, registry_text
from porter.omni.imports import for_engine
from porter.omni.log import logger
from porter.on_demand import ConversionRefused, converted, is_kept
from porter.runtime.diffusion.registry import find_models_dir
from porter.source import SourceTree

TARGET = "vllm-omni"
# A folder that `porter convert -o` wrote; its ports come before those converted on demand.
MODELS_DIR = "PORTER_OMNI_MODELS_DIR"


def available() -> list[str]:
    """Names of all pipelines that a port can be had for, sorted: the installed diffusers' and the committed ones."""
    committed = find_models_dir()
    names = set(_tree().pipelines())
    for folder in (given_folder(), committed):
        names |= set(_names(folder)) if folder is not None else set()
    return sorted(names)


def given_folder() -> Path | None:
    """The folder that ``PORTER_OMNI_MODELS_DIR`` names.

    Raises:
        ModelNotFoundError: it is no such folder.
    """
    value = os.environ.get(MODELS_DIR)
    return find_models_dir(value) if value else None


@cache
def port_folder(name: str) -> Path:
    """The folder of the port of pipeline ``name`` for the engine, converted now if it has to be.

    A folder named by ``PORTER_OMNI_MODELS_DIR`` comes first; then the installed diffusers, converted into the cache;
    then, for pipelines which that diffusers does not have yet, the committed ports.

    Raises:
        ConversionRefused: there is no such pipeline, it does not convert, or results would depend on what was left.
    """
    given, committed = given_folder(), find_models_dir()
    if given is not None and name in _names(given):
        return _translated(given, name)
    if name in _tree().pipelines():
        return _converted(name)
    if committed is not None and name in _names(committed):
        return _translated(committed, name)
    raise ConversionRefused(f"diffusers {_tree().version} has no pipeline {name}, and porter has no port of it.")


@cache
def _tree() -> SourceTree:
    return SourceTree()


@cache
def _cache() -> Cache:
    return Cache(_tree().root, TARGET)


@cache
def _names(folder: Path) -> tuple[str, ...]:
    return tuple(read_registry(folder)["_DIFFUSION_MODELS"])


def _converted(name: str) -> Path:
    fresh = not is_kept(name, _cache())
    folder = converted(name, _tree(), TARGET, _cache(), f"set {MODELS_DIR}=DIR")
    if fresh:
        logger.info("porter: %s was converted from diffusers %s; the code is in %s", name, _tree().version, folder)
    return folder


def _translated(source: Path, name: str) -> Path:
    """A copy of a port of whatever target, with the imports of the engine."""
    tables = read_registry(source)
    entry: Any = tables["_DIFFUSION_MODELS"][name]
    family = entry[0]
    files = {path.relative_to(source).as_posix(): path for path in sorted((source / family).rglob("*.py"))}
    texts = {relative: for_engine(path.read_text("utf-8")) for relative, path in files.items()}
    own = {table: {key: value for key, value in entries.items() if key == name} for table, entries in tables.items()}
    texts["registry.py"] = registry_text(own)
    digest = hashlib.sha256("\0".join(f"{key}\0{text}" for key, text in texts.items()).encode()).hexdigest()[:16]
    folder = _cache().folder / "ports" / f"{name}-{digest}"
    if not (folder / "registry.py").is_file():

        def write(staging: Path) -> None:
            for relative, text in texts.items():
                (staging / relative).parent.mkdir(parents=True, exist_ok=True)
                (staging / relative).write_text(text, "utf-8")

        _place(folder, write)
        logger.info("porter: %s comes from %s; the code is in %s", name, source, folder)
    return folder


def _place(folder: Path, write: Any) -> None:
    """Write into a folder beside ``folder`` and move it there whole; who comes second keeps the first one's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{re.sub(r'[^A-Za-z0-9]', '', folder.name)}-"))
    try:
        write(staging)
        try:
            os.rename(staging, folder)
        except OSError:
            if not (folder / "registry.py").is_file():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
