"""Compares two captures, stage by stage, and names the first stage that differs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel

from porter.parity.capture import Capture, Event
from porter.parity.flatten import Leaf, to_numpy
from porter.parity.gates import gate_for
from porter.parity.metrics import Metrics, measure

Verdict = Literal["equal", "within gate", "differs", "missing", "extra", "not a number", "unobserved"]
FAILING: frozenset[str] = frozenset({"differs", "missing", "extra", "not a number"})

# A port may inline a helper or move pre-processing into a hook; then the stages behind it tell.
SOFT = frozenset({"method", "processor"})
"""Kinds of stages that may be called another number of times, or in another order."""

# How a result is handed over, not what it is.
_IGNORED = frozenset({"args.return_dict"})

_EQUAL = Metrics(equal=True)


class StageResult(BaseModel):
    """How one stage of the port compares with the reference's."""

    stage: str
    kind: str
    verdict: Verdict
    part: str = ""
    """The argument or result that differs most importantly: arguments before results, in order."""
    metrics: Metrics | None = None
    """The distance at ``part``; None if nothing there can be measured."""
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether the stage keeps the port from passing."""
        return self.verdict in FAILING

    @property
    def arguments_differ(self) -> bool:
        """Whether the difference came in from outside."""
        return self.part.startswith("args")


def compare(
    reference: Capture, port: Capture, device: str = "cpu", done: Mapping[str, StageResult] | None = None
) -> list[StageResult]:
    """Every stage in the reference's order, then what the port did beyond that.

    Args:
        reference: what diffusers did.
        port: what the port did.
        device: where both ran.
        done: stages that were compared as they came.
    """
    theirs = {event.stage: event for event in port.events}
    counts = Counter(event.name for event in reference.events), Counter(event.name for event in port.events)
    results = []
    for event in reference.events:
        other = _counterpart(event, theirs, device)
        soft = event.kind in SOFT
        mine, its = counts[0][event.name], counts[1][event.name]
        if soft and mine != its:
            note = f"called {mine} times by the reference, {its} by the port"
            results.append(StageResult(stage=event.stage, kind=event.kind, verdict="unobserved", note=note))
        elif other is None:
            note = f"called {mine} times by the reference, {its} by the port"
            results.append(StageResult(stage=event.stage, kind=event.kind, verdict="missing", note=note))
        elif event.name == "output" and not event.values:
            results.append(_result(event, "not a number", "", None, "no arrays in the output, nothing was compared"))
        else:
            found = (done or {}).get(event.stage)
            results.append(compare_events(event, other, device) if found is None else found)
    for event in theirs.values():
        verdict: Verdict = "unobserved" if event.kind in SOFT else "extra"
        note = f"called {counts[0][event.name]} times by the reference, {counts[1][event.name]} by the port"
        results.append(StageResult(stage=event.stage, kind=event.kind, verdict=verdict, note=note))
    return results


def _counterpart(event: Event, theirs: dict[str, Event], device: str) -> Event | None:
    """The port's event for one of the reference, taken out of ``theirs``.

    Calls of image processors may come in another order: a hook runs those that it can before the forward runs the rest.
    """
    if event.kind == "processor":
        for stage, other in theirs.items():
            if other.name == event.name and not compare_events(event, other, device).failed:
                return theirs.pop(stage)
    return theirs.pop(event.stage, None)


def first_difference(results: list[StageResult]) -> StageResult | None:
    """The first failing stage in pipeline order."""
    return next((result for result in results if result.failed), None)


def compare_events(reference: Event, port: Event, device: str = "cpu") -> StageResult:
    """Compare all arguments and results of one call."""
    gate = gate_for(reference.kind, device)
    nearest: tuple[str, Metrics] | None = None
    for path in _paths(reference.values, port.values):
        if path not in reference.values or path not in port.values:
            side = "reference" if path not in port.values else "port"
            return _result(reference, "differs", path, None, f"only in the {side}")
        mine, its = reference.values[path], port.values[path]
        if _same(mine, its):
            continue
        note = _kind_note(mine, its)
        if note:
            return _result(reference, "differs", path, None, note)
        a, b = to_numpy(mine), to_numpy(its)
        if (
            path.startswith("result")
            and reference.kind in ("component", "step", "final")
            and _has_nan(a)
            and _has_nan(b)
        ):
            return _result(reference, "not a number", path, None, "NaN on both sides proves nothing")
        found = measure(a, b, _medium(reference.kind, a))
        if not gate.passes(found):
            return _result(reference, "differs", path, found, _shape_note(a, b))
        if not found.equal and (nearest is None or found.rel_l2 > nearest[1].rel_l2):
            nearest = path, found
    if nearest:
        return _result(reference, "within gate", nearest[0], nearest[1], "")
    return _result(reference, "equal", "", _EQUAL, "")


def _paths(reference: Mapping[str, Leaf], port: Mapping[str, Leaf]) -> list[str]:
    """Paths to compare: arguments first; what is absent on one side and says nothing on the other is no difference."""
    if list(reference) == list(port):  # as nearly always; a call's arguments come before its results
        return [path for path in reference if path not in _IGNORED]
    paths = list(dict.fromkeys([*reference, *port]))
    paths = [path for path in paths if path not in _IGNORED and not _silent(path, reference, port)]
    return sorted(paths, key=lambda path: not path.startswith("args"))


def _silent(path: str, reference: Mapping[str, Leaf], port: Mapping[str, Leaf]) -> bool:
    if path in reference and path in port:
        return False
    value = reference.get(path, port.get(path))
    return value is None or isinstance(value, (bool, str))


def _same(mine: Leaf, its: Leaf) -> bool:
    """Whether both are the same at a glance, tensors without NaN: nearly all are, and nothing need be measured then."""
    if isinstance(mine, torch.Tensor) and isinstance(its, torch.Tensor):
        return mine.dtype == its.dtype and mine.device == its.device and torch.equal(mine, its)
    if _is_array(mine) or _is_array(its):
        return False
    numbers = isinstance(mine, (int, float)) and isinstance(its, (int, float))
    return (numbers or type(mine) is type(its)) and bool(mine == its)


def _kind_note(mine: Leaf, its: Leaf) -> str:
    """Why two leaves that are not the same at a glance cannot be equal; empty if their values have to be looked at."""
    if not (_is_array(mine) and _is_array(its)):
        return f"{_show(mine)} became {_show(its)}"
    if isinstance(mine, torch.Tensor) and isinstance(its, torch.Tensor) and mine.dtype != its.dtype:
        return f"{mine.dtype} became {its.dtype}"
    return ""


def _shape_note(a: np.ndarray, b: np.ndarray) -> str:
    return f"shape {a.shape} became {b.shape}" if a.shape != b.shape else ""


def _show(leaf: Leaf) -> str:
    if isinstance(leaf, (torch.Tensor, np.ndarray)):
        return f"{type(leaf).__name__}{tuple(leaf.shape)}"
    return repr(leaf)


def _is_array(leaf: Leaf) -> bool:
    return isinstance(leaf, (torch.Tensor, np.ndarray))


def _has_nan(array: np.ndarray) -> bool:
    return array.dtype.kind in "fc" and bool(np.isnan(array).any())


def _medium(kind: str, array: np.ndarray) -> str:
    """What a final output is, by its shape: pictures have a channel axis of 1, 3 or 4, sound a long last one."""
    if kind != "final" or array.ndim < 1:
        return "tensor"
    if array.ndim >= 3 and (array.shape[-1] in (1, 3, 4) or array.shape[-3] in (1, 3, 4)):
        return "image"
    return "audio" if array.ndim <= 3 and array.shape[-1] >= 64 and array.dtype.kind == "f" else "tensor"


def _result(event: Event, verdict: Verdict, part: str, metrics: Metrics | None, note: str) -> StageResult:
    return StageResult(stage=event.stage, kind=event.kind, verdict=verdict, part=part, metrics=metrics, note=note)


def largest_difference(results: list[StageResult]) -> float:
    """The largest absolute difference over all stages; infinite if some could not be compared."""
    worst = 0.0
    for result in results:
        if result.metrics is not None:
            worst = max(worst, result.metrics.max_abs)
        elif result.failed:
            worst = math.inf
    return worst
