"""Fetching several component folders of a hub model before the components are built."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from porter.runtime.transformers_utils.repo_utils import download_snapshot, is_hub_id


def prefetch_subfolders(
    model: str,
    subfolders: Iterable[str],
    *,
    local_files_only: bool | None = None,
    revision: str | None = None,
    include_root_metadata: bool = True,
) -> None:
    """Download the folders of a hub model, and the JSON and text files at its root; a local folder needs nothing.

    Raises:
        ModelNotFoundError: the model cannot be reached.
    """
    if local_files_only or not is_hub_id(model):
        return
    patterns = [f"{folder.strip('/')}/*" for folder in subfolders if folder]
    if include_root_metadata:
        patterns += ["*.json", "*.txt"]
    if patterns:
        download_snapshot(model, patterns, revision)


def from_pretrained_with_prefetch(
    factory: Callable[..., Any],
    model: str,
    *,
    subfolder: str,
    prefetch_list: Iterable[str],
    local_files_only: bool = False,
    **from_pretrained_kwargs: Any,
) -> Any:
    """``factory(model, subfolder=..., **kwargs)`` after the folders of ``prefetch_list`` have been fetched."""
    prefetch_subfolders(
        os.fspath(model),
        prefetch_list,
        local_files_only=local_files_only,
        revision=from_pretrained_kwargs.get("revision"),
    )
    return factory(model, subfolder=subfolder, local_files_only=local_files_only, **from_pretrained_kwargs)
