"""The native port of a model that a command runs: a committed one, or one made now."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from porter.cli.common import Failure


def ports_for(
    model: str, models_dir: Path | None, load_format: str, model_class: str | None, revision: str | None, quiet: bool
) -> Path | None:
    """The folder of ports that a model is to be loaded from.

    Args:
        model: a checkpoint folder or a hub id.
        models_dir: that was asked for; it is the answer then.
        load_format: ``default`` wants a port, ``diffusers`` none.
        model_class: the pipeline class, if not the one that the checkpoint names.
        revision: of a hub model.
        quiet: do not say that a port was made.

    Returns:
        None for the committed ports, and where the loader itself says best what is wrong with the model.

    Raises:
        Failure: the pipeline does not convert, or its results would depend on what was left.
    """
    if models_dir is not None or load_format != "default":
        return models_dir
    from porter.emit.write import read_registry
    from porter.on_demand import ConversionRefused, converted, is_kept
    from porter.runtime.diffusion.registry import find_models_dir
    from porter.runtime.entrypoints.load import DIFFUSERS_INSTEAD, verdict_of
    from porter.source import SourceError, SourceTree

    name = model_class or _class_of(model, revision)
    committed = find_models_dir()
    if name is None or (committed is not None and name in read_registry(committed)["_DIFFUSION_MODELS"]):
        return None
    try:
        tree = SourceTree()
        if name not in tree.pipelines():
            return None
    except SourceError:  # no diffusers that could be read: the loader says so
        return None
    verdict = verdict_of(name)
    if verdict not in ("parity", "not tested"):
        raise Failure(
            f"there is no port of {name} that could be trusted: porter's own was found to be at {verdict!r}. "
            f"{DIFFUSERS_INSTEAD}"
        )
    from porter.cache import Cache

    cache = Cache(tree.root, "porter")
    kept, began = is_kept(name, cache), time.monotonic()
    try:
        folder = converted(name, tree, "porter", cache, "pass --models-dir DIR")
    except ConversionRefused as error:
        raise Failure(str(error)) from error
    if not quiet:
        how = "made before" if kept else f"made in {time.monotonic() - began:.1f} s"
        known = "; such ports were at parity with tiny checkpoints" if verdict == "parity" else "; not verified"
        print(f"porter: {name}: a port from diffusers {tree.version}, {how}{known} ({folder})", file=sys.stderr)
    return folder


def _class_of(model: str, revision: str | None) -> str | None:
    """The pipeline class that a checkpoint names; None if that cannot be read."""
    from porter.runtime.errors import ModelNotFoundError
    from porter.runtime.transformers_utils.config import get_hf_file_to_dict

    try:
        index = get_hf_file_to_dict("model_index.json", model, revision or "main")
    except (ModelNotFoundError, OSError):
        return None
    found = (index or {}).get("_class_name")
    return found if isinstance(found, str) else None
