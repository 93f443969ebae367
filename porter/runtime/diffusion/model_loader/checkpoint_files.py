"""Which weight files a component folder offers, and the tensors in them, one at a time."""

from __future__ import annotations

import fnmatch
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from porter.runtime.errors import CheckpointFileError
from porter.runtime.transformers_utils.repo_utils import download_snapshot, is_hub_id

# Names that diffusers and transformers save under, without any variant (".fp16") in them.
_SAFETENSORS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLED = ("diffusion_pytorch_model.bin", "pytorch_model.bin")


@dataclass(frozen=True)
class CheckpointFiles:
    """The files to read, in order, and the tensor names that an index promises (None without an index)."""

    files: tuple[Path, ...]
    promised: frozenset[str] | None = None


def find_checkpoint_files(
    model: str,
    subfolder: str | None,
    revision: str | None = None,
    *,
    fall_back_to_pt: bool = True,
    allow_patterns: list[str] | None = None,
) -> CheckpointFiles:
    """The weight files of one component, downloaded if ``model`` is a hub id (those files only).

    safetensors first, sharded before whole; ``.bin`` files only if there are no safetensors and ``fall_back_to_pt``.
    With ``allow_patterns`` (relative to the subfolder) exactly the matching files are read.

    Raises:
        CheckpointFileError: there are no such files, or an index names a file that is not there.
        ModelNotFoundError: the model itself cannot be reached.
    """
    folder = _folder(model, subfolder, revision, ["*.json"])
    if allow_patterns is not None:
        folder = _folder(model, subfolder, revision, allow_patterns)
        present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        matching = [name for name in present if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)]
        if not matching:
            raise CheckpointFileError(f"{folder}: no weight file matches {allow_patterns}")
        return CheckpointFiles(tuple(folder / name for name in matching))

    kinds = (_SAFETENSORS, _PICKLED) if fall_back_to_pt else (_SAFETENSORS,)
    for names in kinds:
        for name in names:
            index = folder / f"{name}.index.json"
            if index.is_file():
                return _from_index(index, model, subfolder, revision)
        folder = _folder(model, subfolder, revision, names)
        for name in names:
            if (folder / name).is_file():
                return CheckpointFiles((folder / name,))
    wanted = " or ".join(name for names in kinds for name in names)
    hint = "" if fall_back_to_pt else " (.bin files are not read: fall_back_to_pt is off)"
    raise CheckpointFileError(f"{folder}: no weights here; {wanted}, or the index of a sharded one, is needed{hint}")


def iterate_tensors(checkpoint: CheckpointFiles) -> Iterator[tuple[str, torch.Tensor]]:
    """``(name, tensor)`` of every tensor on the CPU, one in memory at a time (``.bin``: one file at a time).

    Raises:
        CheckpointFileError: a file cannot be read, a name comes twice, or a promised name does not come.
    """
    seen: set[str] = set()
    for path in checkpoint.files:
        for name, tensor in _iterate_file(path):
            if name in seen:
                raise CheckpointFileError(f"{path}: tensor {name!r} stands in more than one file; save the model again")
            seen.add(name)
            yield name, tensor
    lacking = (checkpoint.promised or frozenset()) - seen
    if lacking:
        folder = checkpoint.files[0].parent
        raise CheckpointFileError(f"{folder}: the index names tensors that its files do not hold", missing=lacking)


def _iterate_file(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointFileError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error
        return
    try:
        # Only the zip format, PyTorch's since 1.6, can be mapped instead of read whole.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise CheckpointFileError(f"{path}: not a readable file of plain tensors ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointFileError(f"{path}: not a state dict of plain tensors")
    yield from state.items()


def _from_index(index: Path, model: str, subfolder: str | None, revision: str | None) -> CheckpointFiles:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointFileError(f"{index}: not a weight index with a weight_map ({error!r})") from error
    outside = [name for name in names if not isinstance(name, str) or os.path.basename(name) != name]
    if outside:
        raise CheckpointFileError(f"{index}: names files outside its folder: {outside}")
    folder = _folder(model, subfolder, revision, names)
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise CheckpointFileError(f"{index}: names files that are not there: {lacking}; fetch the checkpoint again")
    return CheckpointFiles(tuple(folder / name for name in names), frozenset(weight_map))


def _folder(model: str, subfolder: str | None, revision: str | None, names: Iterable[str]) -> Path:
    inner = f"{subfolder}/" if subfolder else ""
    patterns = [inner + name for name in names]
    root = download_snapshot(model, patterns, revision)
    folder = root / subfolder if subfolder else root
    if not is_hub_id(model) and not folder.is_dir():
        raise CheckpointFileError(f"{root}: has no folder {subfolder!r}, whose weights the model needs")
    return folder
