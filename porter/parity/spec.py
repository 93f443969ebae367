"""Where the description of a tiny pipeline comes from.

A *spec* is everything about a tiny pipeline but its weights: ``model_index.json``, the components' config files,
tokenizer files and the recipe of one small call. Two layouts are read:

* ``<root>/<Pipeline>.json``: the project's own form, one file a pipeline, tokenizers shared under
  ``<root>/../tokenizers/<id>/``;
* ``<root>/<Pipeline>/``: the form ``save_pretrained`` writes, less the weights, with ``inputs.json`` (and
  ``inputs.safetensors``) and, for shared tokenizers, ``tokenizers.json`` pointing into ``<root>/_tokenizers/``.

Nothing here imports torch, so that listing what is available is quick.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent / "data"
PIPELINES = DATA / "pipelines"

# Files of the folder layout that describe the call, not the checkpoint.
_CALL_FILES = frozenset({"inputs.json", "inputs.safetensors", "meta.json", "tokenizers.json"})


class SpecError(ValueError):
    """A spec is missing or malformed; the message is one line meant for the user."""


@dataclass(frozen=True)
class Spec:
    """A tiny pipeline without its weights."""

    name: str
    model_index: dict[str, Any]
    files: dict[str, bytes]
    """Every file of the checkpoint but the weights, by its path inside the checkpoint."""
    inputs: dict[str, Any]
    """Recipe of the call's keyword arguments; see :mod:`porter.parity.recipes`."""
    cases: list[dict[str, Any]] = field(default_factory=list)
    """Calls beyond those that follow from the signature, as fields of :class:`porter.parity.cases.Case`."""
    tensors: Path | None = field(default=None)
    """safetensors file with input values that are stored rather than drawn."""

    def components(self) -> dict[str, tuple[str, str]]:
        """Component name to (library, class name), absent ones left out, in a stable order."""
        found = {}
        for name, value in self.model_index.items():
            pair = isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)
            if pair and not name.startswith("_"):
                found[name] = (value[0], value[1])
        return dict(sorted(found.items()))


def available(root: str | Path | None = None) -> list[str]:
    """Names of the pipelines that have a spec, sorted."""
    folder = Path(root) if root is not None else PIPELINES
    if not folder.is_dir():
        raise SpecError(f"no such folder of pipeline specs: {folder}")
    names = {path.stem for path in folder.glob("*.json")}
    names |= {path.parent.name for path in folder.glob("*/model_index.json")}
    return sorted(names)


def read(name: str, root: str | Path | None = None) -> Spec:
    """Read the spec of pipeline ``name`` from ``root`` (default: the project's own)."""
    folder = Path(root) if root is not None else PIPELINES
    single, unpacked = folder / f"{name}.json", folder / name
    try:
        if single.is_file():
            return _read_single(name, single)
        if (unpacked / "model_index.json").is_file():
            return _read_folder(name, unpacked)
    except json.JSONDecodeError as error:
        raise SpecError(f"spec of {name} is not valid JSON: {error}") from error
    raise SpecError(f"no tiny checkpoint for {name} in {folder}")


def _read_single(name: str, path: Path) -> Spec:
    data = json.loads(path.read_text(encoding="utf-8"))
    files: dict[str, bytes] = {"model_index.json": _encode(data["model_index"])}
    for component, layers in data.get("tokenizers", {}).items():
        for layer in layers:  # a later layer overrides files of an earlier one
            files |= _below(path.parent.parent / "tokenizers" / layer, component)
    for component, configs in data["components"].items():
        files |= {f"{component}/{file}": _encode(value) for file, value in configs.items()}
    return Spec(name, data["model_index"], files, data.get("inputs", {}), data.get("cases", []))


def _read_folder(name: str, folder: Path) -> Spec:
    files: dict[str, bytes] = {}
    shared = folder / "tokenizers.json"
    if shared.is_file():
        for component, key in json.loads(shared.read_text(encoding="utf-8")).items():
            files |= _below(folder.parent / "_tokenizers" / key, component)
    files |= {path: data for path, data in _below(folder).items() if path not in _CALL_FILES}
    inputs = folder / "inputs.json"
    tensors = folder / "inputs.safetensors"
    return Spec(
        name,
        json.loads((folder / "model_index.json").read_text(encoding="utf-8")),
        files,
        json.loads(inputs.read_text(encoding="utf-8")) if inputs.is_file() else {},
        tensors=tensors if tensors.is_file() else None,
    )


def _below(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """All files under ``folder`` by relative path, with ``prefix`` in front."""
    if not folder.is_dir():
        raise SpecError(f"no such folder: {folder}")

    def walk() -> Iterator[tuple[str, bytes]]:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                relative = path.relative_to(folder).as_posix()
                yield (f"{prefix}/{relative}" if prefix else relative), path.read_bytes()

    return dict(walk())


def _encode(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
