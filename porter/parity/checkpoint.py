"""Tiny checkpoints: built from a spec, with seeded random weights, in the form that ``from_pretrained`` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from porter.parity import spec as specs
from porter.parity.spec import SpecError, available

__all__ = ["SpecError", "available", "build", "check", "load_inputs", "write"]

# Loading these runs what is pickled in them.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def build(
    name: str,
    out_dir: str | Path,
    seed: int = 0,
    root: str | Path | None = None,
    configs: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """Write the tiny checkpoint of pipeline ``name`` to ``out_dir`` and return that folder.

    Same name and seed, same bytes of weights. ``root`` is a folder of specs outside the project; ``configs`` holds
    other values for settings of ``config.json``, by component.
    """
    out = Path(out_dir)
    spec = specs.read(name, root)
    for component, values in (configs or {}).items():
        path = f"{component}/config.json"
        spec.files[path] = (json.dumps({**json.loads(spec.files[path]), **values}, indent=2) + "\n").encode()
    return write(spec, out, seed)


def write(spec: specs.Spec, out: Path, seed: int = 0, like: tuple[specs.Spec, Path] | None = None) -> Path:
    """Write the tiny checkpoint that a spec describes to ``out`` and return that folder.

    Args:
        spec: what to write.
        out: the folder.
        seed: of the weights.
        like: a spec and the folder of its checkpoint, of the same seed; what is described alike is linked.

    Raises:
        Exception: whatever a component's class says to its configuration.
    """
    import torch

    from porter.parity import weights

    linked = _alike(spec, like[0]) if like is not None else set()
    for path, data in spec.files.items():
        target = out / path
        if path.partition("/")[0] in linked:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    for component, (library, class_name) in spec.components().items():
        if like is not None and component in linked:
            (out / component).symlink_to(like[1] / component, target_is_directory=True)
            continue
        cls = weights.component_class(library, class_name)
        if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
            module = weights.random_module(cls, out / component, weights.seed_for(seed, component))
            module.save_pretrained(str(out / component))
    return out


def _alike(spec: specs.Spec, other: specs.Spec) -> set[str]:
    """Components that two specs describe alike."""
    mine, its = spec.components(), other.components()
    changed = {path.partition("/")[0] for path, data in spec.files.items() if other.files.get(path) != data}
    return {name for name in mine if mine[name] == its.get(name)} - changed


def load_inputs(name: str, root: str | Path | None = None) -> dict[str, Any]:
    """Fresh keyword arguments of the small call of pipeline ``name``: equal at every call, shared with none."""
    from safetensors.torch import load_file

    from porter.parity import recipes

    spec = specs.read(name, root)
    return recipes.decode(spec.inputs, load_file(spec.tensors) if spec.tensors else None)


def check(folder: str | Path, name: str) -> None:
    """See that a checkpoint folder holds pipeline ``name``, whole, with weights in safetensors only.

    Raises:
        SpecError: it does not; the message says what to do.
    """
    folder = Path(folder)
    index = folder / "model_index.json"
    if not index.is_file():
        raise SpecError(f"{folder} holds no model_index.json: name the folder of a whole pipeline")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{index} is not valid JSON: {error}") from error
    found = entries.get("_class_name") if isinstance(entries, dict) else None
    if found != name:
        raise SpecError(
            f"{folder} is a checkpoint of {found}, not of {name}: name that pipeline, or another checkpoint"
        )
    for component, value in sorted(entries.items()):
        if isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value):
            _check_component(folder, component)


def _check_component(folder: Path, component: str) -> None:
    part = folder / component
    if not part.is_dir():
        raise SpecError(f"{folder} lacks the folder {component} that model_index.json names: fetch it again")
    files = [file for file in part.iterdir() if file.is_file()]
    for index in part.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (part / shard).is_file())
        if missing:
            raise SpecError(f"{part} lacks {', '.join(missing)}: fetch the checkpoint again")
    has_weights = any(file.suffix == ".safetensors" for file in files)
    pickled = sorted(file.name for file in files if file.suffix in _PICKLES)
    if pickled and not has_weights:
        raise SpecError(f"{part} has pickled weights only ({pickled[0]}); convert them to safetensors")
    if not has_weights and not pickled and _has_weights(part):
        raise SpecError(f"{part} has no weights: fetch the checkpoint again")


def _has_weights(part: Path) -> bool:
    """Whether a component is a model, by its config; schedulers, tokenizers and processors have none or another."""
    return (part / "config.json").is_file() and not any(
        (part / name).is_file()
        for name in ("scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")
    )
