"""Finds the submodule inside a component where a difference starts.

Module paths of a port are those of its original, so running both on the same arguments and comparing what each
submodule returned gives the first layer that computes something else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from porter.parity.capture import Event, bind
from porter.parity.compare import compare_events
from porter.parity.flatten import clone_tree, flatten
from porter.parity.metrics import Metrics


class LayerDifference(BaseModel):
    """How far a layer's result is from the reference's."""

    path: str
    call: int = 0
    rel_l2: float
    """Infinite where the results cannot be compared."""


class Location(BaseModel):
    """The layer at which a component starts to differ."""

    path: str
    """Dotted path inside the component; empty if the difference is in the component's own ``forward``."""
    call: int = 0
    arguments_differ: bool
    """Whether the layer got other arguments, so that the code that calls it is at fault."""
    part: str = ""
    metrics: Metrics | None = None
    note: str = ""
    reference_source: str = ""
    port_source: str = ""
    layers: list[LayerDifference] = Field(default_factory=list)
    """The results of all layers, in the order in which they returned."""


def locate(
    reference: torch.nn.Module, port: torch.nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> Location | None:
    """Run both modules on ``call`` and return the first differing layer in execution order; None if all agree."""
    mine, its = _trace(reference, call), _trace(port, call)
    theirs = {event.stage: event for event in its}
    pairs = [(event, theirs[event.stage]) for event in mine if event.stage in theirs]
    for event, other in pairs:  # in the order in which the calls returned: inner layers before outer ones
        found = compare_events(_common(event, other), _common(other, event))
        if found.failed:
            path = event.name.removeprefix(".")
            return Location(
                path=path,
                call=event.call,
                arguments_differ=found.arguments_differ,
                part=found.part,
                metrics=found.metrics,
                note=found.note,
                reference_source=source_line(reference, path, found.arguments_differ),
                port_source=source_line(port, path, found.arguments_differ),
                layers=[_layer(*pair) for pair in pairs],
            )
    return None


def _layer(event: Event, other: Event) -> LayerDifference:
    mine, its = (_results(each) for each in (event, other))
    found = compare_events(mine, its)
    distance = 0.0 if not found.failed else found.metrics.rel_l2 if found.metrics is not None else math.inf
    return LayerDifference(path=event.name.removeprefix("."), call=event.call, rel_l2=distance)


def _results(event: Event) -> Event:
    values = {path: leaf for path, leaf in event.values.items() if path.startswith("result")}
    return dataclasses.replace(event, values=values)


def source_line(module: torch.nn.Module, path: str, of_caller: bool = False) -> str:
    """``file:line`` of the forward of a submodule, or of the module that calls it."""
    if of_caller:
        path = path.rpartition(".")[0]
        while isinstance(module.get_submodule(path), (torch.nn.ModuleList, torch.nn.ModuleDict)):
            path = path.rpartition(".")[0]
    forward = inspect.unwrap(type(module.get_submodule(path)).forward)
    try:
        _, line = inspect.getsourcelines(forward)
        file = Path(inspect.getsourcefile(forward) or "")
    except (OSError, TypeError):
        return ""
    return f"{'/'.join(file.parts[-3:])}:{line}"


def _common(event: Event, other: Event) -> Event:
    """The event with the arguments that both sides name: a layer of the port may take fewer."""
    values = {path: leaf for path, leaf in event.values.items() if path in other.values or path.startswith("result")}
    return dataclasses.replace(event, values=values)


@torch.no_grad()
def _trace(module: torch.nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Event]:
    """What every submodule got and gave, in the order in which their calls returned."""
    events: list[Event] = []
    counts: dict[str, int] = {}
    pending: list[dict[str, Any]] = []

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Any) -> None:
        pending.append(flatten(bind(forward, args, kwargs), "args"))

    def after(name: str, result: Any) -> None:
        number = counts.get(name, 0)
        counts[name] = number + 1
        events.append(Event(name, number, "component", pending.pop() | flatten(result, "result")))

    with contextlib.ExitStack() as stack:
        for name, part in module.named_modules():
            handles = (
                part.register_forward_pre_hook(
                    lambda m, args, kwargs, f=part.forward: before(m, args, kwargs, f), with_kwargs=True
                ),
                part.register_forward_hook(lambda _, __, result, name=name: after(f".{name}" if name else "", result)),
            )
            for handle in handles:
                stack.callback(handle.remove)
        args, kwargs = clone_tree(call)
        module(*args, **kwargs)
    return events
