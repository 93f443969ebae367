"""Parity of a single model: an original diffusers class against its port, without a pipeline around them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from porter.parity.capture import Event, bind, capture
from porter.parity.compare import StageResult, compare_events
from porter.parity.flatten import clone_tree, flatten
from porter.parity.locate import Location, locate
from porter.parity.sides import small_areas
from porter.parity.weight_check import WeightReport, compare_tensors
from porter.parity.weights import refill

Call = tuple[tuple[Any, ...], dict[str, Any]]


class ModelReport(BaseModel):
    """How a ported model compares with its original."""

    model: str
    dtype: str
    weights: WeightReport
    unreported: list[str] = []
    """Tensors of the checkpoint that the port's ``load_weights`` did not say it had loaded."""
    calls: list[StageResult] = []
    location: Location | None = None

    @property
    def passed(self) -> bool:
        """Whether the port has the same tensors and gives the same results."""
        return self.weights.passed and not self.unreported and not any(call.failed for call in self.calls)


def check_model(
    original_class: Any,
    config: Mapping[str, Any],
    build_port: Callable[[], torch.nn.Module],
    calls: Iterable[Call],
    *,
    dtype: str = "float32",
    seed: int = 0,
    folder: str | Path | None = None,
) -> ModelReport:
    """Build both with the same weights, none constant, and compare their results exactly.

    The weights go through a safetensors file and the port's own ``load_weights``, as they do in the engine.

    Args:
        original_class: the diffusers model class.
        config: its configuration.
        build_port: makes the port for that configuration.
        calls: arguments and keyword arguments of forward; :func:`record_calls` gives real ones.
        dtype: of weights and floating-point arguments.
        seed: of the weights.
        folder: where the weights are written; None: a temporary folder.
    """
    kind = getattr(torch, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        original = original_class.from_config(dict(config)).float().eval()
    refill(original, seed + 1)
    original = original.to(kind)
    with tempfile.TemporaryDirectory(prefix="porter-model-") as scratch:
        file = Path(folder or scratch) / "model.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in original.state_dict().items()}, file)
        before = torch.get_default_dtype()
        torch.set_default_dtype(kind)  # as the engine's loader does
        try:
            port = build_port().eval()
        finally:
            torch.set_default_dtype(before)
        expected = {name: tensor.clone() for name, tensor in load_file(file).items()}
        reported = port.load_weights(iter(expected.items()))
    report = ModelReport(
        model=original_class.__name__,
        dtype=dtype,
        weights=compare_tensors(original.state_dict(), port.state_dict(), _packing(port)),
    )
    if reported is not None:
        report.unreported = sorted(port.state_dict().keys() - set(reported) - _tied(port, set(reported)))
    for number, call in enumerate(calls):
        call = _cast(call, kind)
        mine, its = _call(original, call, number), _call(port, call, number)
        result = compare_events(mine, its)
        report.calls.append(result)
        if result.failed and report.location is None:
            report.location = locate(original, port, call)
    return report


def record_calls(pipeline: Any, kwargs: dict[str, Any], component: str = "transformer") -> list[Call]:
    """The arguments of every call of a component's forward during one run of a diffusers pipeline."""
    with small_areas(pipeline), capture(pipeline, set()) as record:
        pipeline(**kwargs)
    return [event.raw for event in record.events if event.name == component and event.raw is not None]


@torch.no_grad()
def _call(module: torch.nn.Module, call: Call, number: int) -> Event:
    args, kwargs = clone_tree(call)
    named = bind(module.forward, args, kwargs)
    shared = {name: value for name, value in named.items() if isinstance(value, (torch.Tensor, list, tuple))}
    values = flatten(shared, "args")
    return Event("forward", number, "component", values | flatten(module(*args, **kwargs), "result"))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _packing(module: torch.nn.Module) -> list[tuple[str, str]]:
    return [(str(entry[0]), str(entry[1])) for entry in getattr(module, "stacked_params_mapping", None) or []]


def _tied(module: torch.nn.Module, reported: set[str]) -> set[str]:
    """Names whose tensor was loaded under another name."""
    state = module.state_dict()
    loaded = {state[name].data_ptr() for name in reported if name in state}
    return {name for name, tensor in state.items() if tensor.data_ptr() in loaded}
