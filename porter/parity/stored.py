"""Runs kept on disk, so that the two sides of a comparison need not be in memory at once.

What the reference did is written to safetensors, one file an event. The port is then compared as it runs: each of its
events against the stored one, after which its tensors are let go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from porter.parity.capture import Capture, Event, neural_components
from porter.parity.compare import SOFT, StageResult, compare_events
from porter.parity.flatten import Leaf
from porter.parity.weight_check import tensors


class StoredLeaves(Mapping[str, Leaf]):
    """The values of one event, read when they are asked for and not kept."""

    def __init__(self, file: Path, plain: dict[str, Any], arrays: dict[str, str]) -> None:
        self._file, self._plain, self._arrays = file, plain, arrays

    def __getitem__(self, path: str) -> Leaf:
        if path in self._plain:
            value: Leaf = self._plain[path]
            return value
        with safe_open(self._file, framework="pt") as held:
            tensor: torch.Tensor = held.get_tensor(path)
        return tensor.numpy() if self._arrays[path] == "numpy" else tensor

    def __iter__(self) -> Iterator[str]:
        return iter([*self._plain, *self._arrays])

    def __len__(self) -> int:
        return len(self._plain) + len(self._arrays)


def store(record: Capture, folder: Path) -> Capture:
    """The record with its values in ``folder``, and without the arguments of components."""
    folder.mkdir(parents=True)
    kept = Capture(error=record.error, watched=record.watched, stopped=record.stopped)
    for number, event in enumerate(record.events):
        held = {path: leaf for path, leaf in event.values.items() if isinstance(leaf, (torch.Tensor, np.ndarray))}
        file = folder / f"{number}.safetensors"
        save_file({path: _tensor(leaf) for path, leaf in held.items()}, file)
        kinds = {path: "numpy" if isinstance(leaf, np.ndarray) else "torch" for path, leaf in held.items()}
        plain = {path: leaf for path, leaf in event.values.items() if path not in held}
        kept.events.append(Event(event.name, event.call, event.kind, StoredLeaves(file, plain, kinds)))
    return kept


def _tensor(leaf: torch.Tensor | np.ndarray) -> torch.Tensor:
    tensor = leaf if isinstance(leaf, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(leaf))
    return tensor.detach().cpu().contiguous().clone()


class Comparing(Capture):
    """A record of the port that compares each event with the reference's as it comes, and lets its tensors go.

    Stages whose calls may come in another order are kept until the end.
    """

    def __init__(self, reference: Capture, device: str) -> None:
        super().__init__()
        self._stored = {event.stage: event for event in reference.events}
        self._device = device
        self.done: dict[str, StageResult] = {}

    def add(self, name: str, kind: str, values: Mapping[str, Leaf], raw: Any = None) -> None:
        super().add(name, kind, values)
        event = self.events[-1]
        other = self._stored.get(event.stage)
        if other is not None and kind not in SOFT:
            self.done[event.stage] = compare_events(other, event, self._device)
            event.values = {}


def store_weights(pipeline: Any, folder: Path) -> None:
    """Write the parameters and persistent buffers of all neural components, a file each."""
    folder.mkdir(parents=True)
    for name, module in neural_components(pipeline).items():
        save_file({key: _tensor(tensor) for key, tensor in tensors(module).items()}, folder / f"{name}.safetensors")


def stored_weights(folder: Path) -> dict[str, Mapping[str, torch.Tensor]]:
    """Tensors by component, mapped into memory from what :func:`store_weights` wrote."""
    return {file.name.removesuffix(".safetensors"): load_file(file) for file in sorted(folder.glob("*.safetensors"))}
