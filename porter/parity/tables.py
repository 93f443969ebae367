"""Tables and constants of a port, against those of its original: of the modules that hold them, and of the pipelines.

No call chooses every size of a table or every word of a template: their values are compared as they stand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from porter.parity.capture import Event, neural_components
from porter.parity.compare import compare_events
from porter.parity.flatten import flatten
from porter.parity.results import CaseResult

TABLES = "tables of the modules"
_DATA = (bool, int, float, str, list, tuple, dict, np.ndarray, torch.Tensor)


def check_tables(reference: Any, port: Any) -> CaseResult | None:
    """Compare what both sides hold under the same name: the pipelines, the modules that hold them, those of models.

    Args:
        reference: diffusers' pipeline.
        port: the ported pipeline.

    Returns:
        None if they share no such name.
    """
    stages = []
    for label, mine, its in _modules(reference, port):
        shared = [name for name, value in mine.items() if name in its and isinstance(value, _DATA)]
        if shared:
            first, theirs = (_event({name: space[name] for name in shared}) for space in (mine, its))
            stages.append(compare_events(first, theirs).model_copy(update={"stage": label}))
    if not stages:
        return None
    failed = next((stage for stage in stages if stage.failed), None)
    return CaseResult(
        name=TABLES,
        description="values that no call need choose",
        verdict="differs" if failed else "parity",
        stages=stages,
        first_difference=failed,
    )


def _event(values: dict[str, Any]) -> Event:
    return Event("module", 0, "schedule", flatten(values, "result"))


def _modules(reference: Any, port: Any) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The names on both sides: of the pipelines, of their modules, and of that of each model that is ported."""
    yield "pipeline, settings", _named(vars(reference), "_"), _named(vars(port), "_")
    yield "pipeline, module", _names(reference), _names(port)
    its = neural_components(port)
    for name, component in neural_components(reference).items():
        if name in its and type(its[name]).__module__ != type(component).__module__:
            yield f"{name}, module", _names(component), _names(its[name])


def _names(item: Any) -> dict[str, Any]:
    return _named(vars(sys.modules[type(item).__module__]), "__")


def _named(space: dict[str, Any], private: str) -> dict[str, Any]:
    """Names but for private ones: what a pipeline keeps of its last call, what Python keeps of a module."""
    return {name: value for name, value in space.items() if not name.startswith(private)}
