"""Copying a checkpoint tensor into a parameter, and fetching weight files."""

from __future__ import annotations

import torch

from porter.runtime.errors import CheckpointError
from porter.runtime.transformers_utils.repo_utils import download_snapshot


def default_weight_loader(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
    """Copy ``loaded_weight`` into ``param``, converting the dtype to the parameter's.

    Raises:
        CheckpointError: the shapes differ (nothing is broadcast).
    """
    if param.shape != loaded_weight.shape:
        raise CheckpointError(misshapen=[shape_mismatch(loaded_weight.shape, param.shape)])
    param.data.copy_(loaded_weight)


def shape_mismatch(found: torch.Size | list[int], wanted: torch.Size | list[int]) -> str:
    """The text that an error gives for a tensor of the wrong shape; the caller prepends the name."""
    return f"checkpoint {list(found)}, model {list(wanted)}"


def download_weights_from_hf_specific(
    model_name_or_path: str,
    cache_dir: str | None,
    allow_patterns: list[str],
    revision: str | None = None,
    ignore_patterns: str | list[str] | None = None,
    require_all: bool = False,
) -> str:
    """Folder of a model, holding the files that match ``allow_patterns`` (all of them; a folder is returned as is).

    Raises:
        ModelNotFoundError: the model cannot be reached.
    """
    del require_all  # Fetching every pattern also satisfies the callers that would stop at the first.
    ignored = [ignore_patterns] if isinstance(ignore_patterns, str) else ignore_patterns
    return str(
        download_snapshot(model_name_or_path, allow_patterns, revision, ignore_patterns=ignored, cache_dir=cache_dir)
    )
