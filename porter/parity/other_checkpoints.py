"""Runs a pipeline and its port with checkpoints that differ from the tiny one in one thing: see ``other_specs``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from porter.parity.areas import small_areas
from porter.parity.capture import Capture, neural_components
from porter.parity.cases import Case
from porter.parity.checkpoint import write
from porter.parity.flatten import to_numpy
from porter.parity.one_call import run_case
from porter.parity.other_specs import other_specs
from porter.parity.recipes import decode
from porter.parity.results import CaseResult
from porter.parity.sides import PortSide, Reference, rejection, restored
from porter.parity.spec import Spec

OTHER = "another checkpoint: "


@dataclass(frozen=True)
class OtherCheckpoint:
    """A checkpoint that diffusers runs, and what it did.

    Attributes:
        folder: where it is.
        case: the call; its name says what is unlike the pipeline's own checkpoint.
        recipe: of the call.
        reference: diffusers with it.
        capture: its run.
    """

    folder: Path
    case: Case
    recipe: dict[str, Any]
    reference: Reference
    capture: Capture


def other_checkpoints(
    spec: Spec,
    pipeline: Any,
    tensors: dict[str, torch.Tensor],
    own: Path,
    scratch: Path,
    methods: AbstractSet[str],
    wanted: Collection[str] | None = None,
) -> Iterator[OtherCheckpoint]:
    """The other checkpoints of a pipeline, each made when it is asked for.

    Args:
        spec: the pipeline's own.
        pipeline: diffusers' pipeline, loaded from it.
        tensors: what recipes name.
        own: the folder of that checkpoint.
        scratch: the folder to put others into.
        methods: of the pipeline, that are watched.
        wanted: names of the cases to make; None: all.
    """
    described = {OTHER + label: made for label, made in other_specs(spec, pipeline)}
    for number, (name, made) in enumerate(described.items()):
        for place, other in enumerate(made if wanted is None or name in wanted else ()):
            folder = scratch / f"other-{number}-{place}"
            found = _run(name, spec, other, tensors, own, pipeline, folder, methods)
            if found is not None:
                yield found
                break


def check_other(
    other: OtherCheckpoint, tensors: dict[str, torch.Tensor], load: Callable[[Path], PortSide]
) -> CaseResult:
    """Compare the port with diffusers on another checkpoint.

    Args:
        tensors: what recipes name.
        load: makes the port of a checkpoint.
    """
    try:
        port = load(other.folder)
    except Exception as error:
        told = f"the port does not load: {type(error).__name__}: {rejection(error)}"
        return CaseResult(name=other.case.name, description=told, verdict="differs", port_error=told)
    with small_areas(other.reference.pipeline, port.pipeline):
        return run_case(other.case, other.recipe, tensors, other.reference, port, done=other.capture)


def _run(
    name: str,
    spec: Spec,
    other: Spec,
    tensors: dict[str, torch.Tensor],
    own: Path,
    pipeline: Any,
    folder: Path,
    methods: AbstractSet[str],
) -> OtherCheckpoint | None:
    """What diffusers does with a checkpoint; None if it does not run with it, or computes what is no number."""
    try:
        write(other, folder, like=(spec, own))
        parts = neural_components(pipeline)
        held = {name: parts[name] for name in other.components() if name in parts and (folder / name).is_symlink()}
        reference = Reference(folder, "cpu", torch.float32, held)
    except Exception:
        return None
    for changes in _sizes(spec.inputs):
        case = Case(name=name, changes=changes)
        recipe = case.recipe(spec.inputs)
        with small_areas(reference.pipeline), restored(reference.pipeline, dict(vars(reference.pipeline))):
            seen = reference.run(decode(recipe, tensors), methods)
        output = [leaf for event in seen.events if event.name == "output" for leaf in event.values.values()]
        if seen.error is None and not seen.stopped and all(map(_is_finite, output)):
            return OtherCheckpoint(folder, case, recipe, reference, seen)
    return None


def _is_finite(leaf: Any) -> bool:
    return bool(np.isfinite(to_numpy(leaf)).all())


def _sizes(inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Changes of the call: none, then room for larger patches, twice as high and three times as wide."""
    yield {}
    larger = {"height": 2, "width": 3}
    if changes := {name: inputs[name] * times for name, times in larger.items() if isinstance(inputs.get(name), int)}:
        yield changes
