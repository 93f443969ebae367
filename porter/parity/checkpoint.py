"""Tiny checkpoints: built from a spec, with seeded random weights, in the form that ``from_pretrained`` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from porter.parity import spec as specs
from porter.parity.spec import SpecError, available

__all__ = ["SpecError", "available", "build", "load_inputs"]


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
    import torch

    from porter.parity import weights

    spec = specs.read(name, root)
    out = Path(out_dir)
    for path, data in spec.files.items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    for component, values in (configs or {}).items():
        file = out / component / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}, indent=2) + "\n", "utf-8")
    for component, (library, class_name) in spec.components().items():
        cls = weights.component_class(library, class_name)
        if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
            module = weights.random_module(cls, out / component, weights.seed_for(seed, component))
            module.save_pretrained(str(out / component))
    return out


def load_inputs(name: str, root: str | Path | None = None) -> dict[str, Any]:
    """Fresh keyword arguments of the small call of pipeline ``name``: equal at every call, shared with none."""
    from safetensors.torch import load_file

    from porter.parity import recipes

    spec = specs.read(name, root)
    return recipes.decode(spec.inputs, load_file(spec.tensors) if spec.tensors else None)
