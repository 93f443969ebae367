"""Denoisers by themselves, in configurations that are not their checkpoint's.

A tiny checkpoint leaves much untold: two widths are equal, a factor is one, a norm is never made, a mask never given.
So each denoiser of a pipeline is built anew with one constructor parameter changed, given the same weights on both
sides, and called as the pipeline called it; and in its own configuration with the masks that the pipeline leaves out,
and with what it denoises longer along one axis.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from porter.parity.capture import Capture, Event, bind, is_denoiser, neural_components
from porter.parity.compare import StageResult, compare_events, first_difference, largest_difference
from porter.parity.models import Call, build_port, call_model, random_original
from porter.parity.results import CaseResult
from porter.parity.sides import Reference, align_module, rejection
from porter.parity.variants import variants
from porter.source import SourceTree

ALONE = "denoisers alone"
_SEED = 20
# Weights times this make values so small that what a norm adds to them, lest it divide by zero, is seen.
_FAINT = 1e-5


@dataclass(frozen=True)
class Variation:
    """A denoiser in one configuration, and what the original computes there.

    Attributes:
        component: its name in the pipeline.
        label: what is unlike the pipeline's own call.
        tensors: the weights.
        event: arguments and results of the original.
    """

    component: str
    label: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    call: Call
    event: Event


def variations(reference: Reference, record: Capture) -> list[Variation]:
    """What the denoisers of a pipeline can be tried with: all that the originals compute numbers from.

    Args:
        reference: diffusers.
        record: its run of a call, with the arguments of the denoisers.
    """
    found: list[Variation] = []
    classes: set[type] = set()
    tree = SourceTree()
    for name, module in neural_components(reference.pipeline).items():
        event = next((event for event in record.events if event.name == name and event.raw is not None), None)
        if event is None or event.raw is None or not is_denoiser(module) or type(module) in classes:
            continue
        classes.add(type(module))
        definition = tree.resolve(type(module).__module__, type(module).__name__)
        if definition is None:
            continue
        config = {key: value for key, value in dict(module.config).items() if not key.startswith("_")}
        tried: list[tuple[str, dict[str, Any], Call]] = [("its own configuration", {}, event.raw)]
        changes = list(variants(tree, definition, config))
        tried += [(label, change, event.raw) for label, change in (*changes, *_together(changes))]
        tried += [(label, {}, call) for label, call in (*_masked(module, event.raw), *_longer(module, event.raw))]
        made = [_variation(name, type(module), label, config | change, call) for label, change, call in tried]
        made += [
            _variation(name, type(module), f"{label}, faint weights", config | change, call, _FAINT)
            for label, change, call in tried
            if all(isinstance(value, str) for value in change.values())
        ]
        found += [each for each in made if each is not None]
    return found


def check_alone(found: Iterable[Variation], port: Any) -> CaseResult | None:
    """Compare the port's denoisers in those configurations; None if there are none.

    Args:
        port: the ported pipeline.
    """
    started = time.perf_counter()
    stages = [stage for variation in found if (stage := compare_alone(variation, port)) is not None]
    if not stages:
        return None
    first = first_difference(stages)
    return CaseResult(
        name=ALONE,
        description=f"{len(stages)} configurations and calls that are not the checkpoint's",
        verdict="parity" if first is None else "differs",
        stages=stages,
        first_difference=first,
        largest_difference=largest_difference(stages),
        seconds_port=time.perf_counter() - started,
    )


def compare_alone(variation: Variation, port: Any) -> StageResult | None:
    """How a port's denoiser does in one configuration; None if diffusers' own class serves there."""
    held = neural_components(port).get(variation.component)
    if held is None or type(held).__module__.startswith("diffusers."):
        return None
    stage = f"{variation.component}, {variation.label}"
    try:
        made = build_port(type(held), variation.config)
        loaded = made.load_weights(iter([(name, tensor.clone()) for name, tensor in variation.tensors.items()]))
        align_module(made)
        if missing := set(made.state_dict()) - set(loaded):
            raise ValueError(f"not loaded: {sorted(missing)[0]}")
        event = call_model(made, variation.call, _SEED)
    except Exception as error:
        note = f"the port raises {type(error).__name__}: {rejection(error)[:160]}"
        return StageResult(stage=stage, kind="component", verdict="differs", note=note)
    return compare_events(variation.event, event).model_copy(update={"stage": stage})


def _variation(
    component: str, cls: type, label: str, config: dict[str, Any], call: Call, scale: float = 1.0
) -> Variation | None:
    """What the original computes; None if it refuses the configuration or the call, or computes what is no number."""
    try:
        original = random_original(cls, config, _SEED)
        align_module(original)
        for parameter in original.parameters():
            parameter.data *= scale
        event = call_model(original, call, _SEED)
    except Exception:
        return None
    results = [leaf for name, leaf in event.values.items() if name.startswith("result")]
    if not all(bool(torch.isfinite(leaf).all()) for leaf in results if isinstance(leaf, torch.Tensor)):
        return None
    tensors = {name: tensor.detach() for name, tensor in original.state_dict().items()}
    return Variation(component, label, config, tensors, call, event)


def _together(changes: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each switch together with each list: what a switch turns on reads lists of its own."""
    for switch, turned in changes:
        if all(isinstance(value, bool | str) for value in turned.values()):
            for label, change in changes:
                if all(isinstance(value, list) for value in change.values()):
                    yield f"{switch}, {label}", turned | change


def _masked(module: torch.nn.Module, call: Call) -> Iterator[tuple[str, Call]]:
    """The call with a mask where it has none, for each length that the mask may be of."""
    args, kwargs = call
    given = bind(module.forward, args, kwargs)
    sequences = (value for value in given.values() if isinstance(value, torch.Tensor) and value.ndim == 3)
    shapes = dict.fromkeys(tuple(value.shape[:2]) for value in sequences)
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if "mask" not in name or given.get(name) is not None or parameter.kind is parameter.VAR_KEYWORD:
            continue
        for batch, length in shapes:
            mask = torch.ones(batch, length, dtype=torch.bool)
            mask[:, -max(1, length // 3) :] = False
            yield f"{name} of {length}", (args, {**kwargs, name: mask})


def _longer(module: torch.nn.Module, call: Call) -> Iterator[tuple[str, Call]]:
    """The call with its first argument, be it a tensor or a list of them, twice as long along one of its axes."""
    args, kwargs = call
    name, value = next(iter(bind(module.forward, args, kwargs).items()), ("", None))
    tensors: list[Any] = value if isinstance(value, list) else [value]
    if not tensors or not all(isinstance(item, torch.Tensor) for item in tensors):
        return
    for axis in range(0 if tensors is value else 1, tensors[0].ndim):  # the first axis of a single tensor is the batch
        items = [torch.cat([item, item * 0.5], dim=axis) for item in tensors]
        changed = items if tensors is value else items[0]
        given = ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, name: changed})
        yield f"{name} longer along axis {axis}", given
