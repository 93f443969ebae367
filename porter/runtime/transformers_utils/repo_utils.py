"""A model is a folder or a hub id: finding its files either way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from porter.runtime.errors import ModelNotFoundError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(model: str | os.PathLike[str]) -> bool:
    """Whether ``model`` can only be a hub repository: no such path exists and the text has a hub id's form."""
    text = os.fspath(model)
    return not os.path.exists(text) and _HUB_ID.fullmatch(text) is not None


def require_local_dir(model: str | os.PathLike[str]) -> Path:
    """The model as a folder.

    Raises:
        ModelNotFoundError: it is no folder.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise ModelNotFoundError(f"model {str(model)!r} is a file; a checkpoint folder or a hub id is needed")
    raise ModelNotFoundError(f"model folder {str(model)!r} does not exist, and the text is no hub id either")


def find_repo_file(model: str | os.PathLike[str], file_name: str, revision: str | None = None) -> Path | None:
    """Path of one file of a model, downloaded if the model is a hub id; None if the model has no such file.

    Raises:
        ModelNotFoundError: the model itself, or that revision of it, cannot be reached.
    """
    if not is_hub_id(model):
        path = require_local_dir(model) / file_name
        return path if path.is_file() else None

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(os.fspath(model), file_name, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        # Offline, and not in the cache: whether the file exists cannot be known, so this is no plain "no".
        if _cached_as_absent(os.fspath(model), file_name, revision):
            return None
        raise _unreachable(model, revision, error) from error
    except (OSError, ValueError) as error:
        raise _unreachable(model, revision, error) from error


def download_snapshot(
    model: str | os.PathLike[str],
    allow_patterns: Iterable[str],
    revision: str | None = None,
    *,
    ignore_patterns: Iterable[str] | None = None,
    cache_dir: str | None = None,
) -> Path:
    """The model's folder, holding at least the files that match; a hub id is downloaded, with progress.

    Raises:
        ModelNotFoundError: the model, or that revision of it, cannot be reached.
    """
    if not is_hub_id(model):
        return require_local_dir(model)

    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            os.fspath(model),
            revision=revision,
            allow_patterns=list(allow_patterns),
            ignore_patterns=list(ignore_patterns) if ignore_patterns is not None else None,
            cache_dir=cache_dir,
        )
    except (OSError, ValueError) as error:
        raise _unreachable(model, revision, error) from error
    return Path(folder)


def _cached_as_absent(model: str, file_name: str, revision: str | None) -> bool:
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(model, file_name, revision=revision) is _CACHED_NO_EXIST


def _unreachable(model: object, revision: str | None, error: Exception) -> ModelNotFoundError:
    at = f" at revision {revision!r}" if revision else ""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelNotFoundError(
        f"no folder {str(model)!r} here, and the hub model of that name{at} cannot be had: {reason}"
    )
