"""Tables and constants of the modules that hold a port, against those of the modules that hold its original.

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
    """Compare what both sides' modules hold under the same name, pipeline by pipeline and model by model.

    Args:
        reference: diffusers' pipeline.
        port: the ported pipeline.

    Returns:
        None if they share no such name.
    """
    stages = []
    for label, mine, its in _modules(reference, port):
        shared = [name for name, value in mine.items() if name in its and isinstance(value, _DATA) and name[:2] != "__"]
        if shared:
            first, theirs = (_event({name: space[name] for name in shared}) for space in (mine, its))
            stages.append(compare_events(first, theirs).model_copy(update={"stage": f"{label}, module"}))
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
    """The names of the modules on both sides: the pipelines', then those of each model that is ported."""
    yield "pipeline", _names(reference), _names(port)
    its = neural_components(port)
    for name, component in neural_components(reference).items():
        if name in its and type(its[name]).__module__ != type(component).__module__:
            yield name, _names(component), _names(its[name])


def _names(item: Any) -> dict[str, Any]:
    return vars(sys.modules[type(item).__module__])
