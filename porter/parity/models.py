"""Parity of a single model: an original diffusers class against its port, without a pipeline around them."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from porter.parity.areas import small_areas
from porter.parity.capture import Event, bind, capture
from porter.parity.compare import StageResult, compare_events, largest_difference
from porter.parity.flatten import clone_tree, flatten
from porter.parity.locate import Location, locate
from porter.parity.model_spec import decode_calls
from porter.parity.sides import align_module, dtype_argument
from porter.parity.weight_check import WeightReport, compare_tensors
from porter.parity.weights import refill
from porter.runtime.diffusion.data import TransformerConfig
from porter.runtime.diffusion.utils.tf_utils import get_transformer_config_kwargs

Call = tuple[tuple[Any, ...], dict[str, Any]]
WEIGHTS = "diffusion_pytorch_model.safetensors"


class RemappedError(ValueError):
    """diffusers loads this configuration as another class, whose port is another one too."""


class ModelReport(BaseModel):
    """How a ported model compares with its original."""

    model: str
    dtype: str
    weights: WeightReport = WeightReport()
    unreported: list[str] = []
    """Tensors of the checkpoint that the port's ``load_weights`` did not say it had loaded."""
    calls: list[StageResult] = []
    location: Location | None = None
    refused: str = ""
    """Why the original cannot be built or run in this configuration; then the port must refuse as well."""
    error: str = ""
    """What the port raised where the original did not, or that it did not raise where the original did."""

    @property
    def passed(self) -> bool:
        """Whether the port has the same tensors and gives the same results, or refuses what the original refuses."""
        if self.error or self.unreported or not self.weights.passed:
            return False
        return not any(call.failed for call in self.calls)

    @property
    def compared(self) -> bool:
        """Whether results were compared, rather than refusals alone."""
        return bool(self.calls)

    @property
    def largest_difference(self) -> float:
        """Over all arguments and results; infinite if there was nothing to compare with."""
        return math.inf if self.error or not self.weights.passed else largest_difference(self.calls)


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

    The weights go through a safetensors file, from which the original is loaded by ``from_pretrained`` and the port by
    its own ``load_weights``, as in the engine.

    Args:
        original_class: the diffusers model class.
        config: its configuration.
        build_port: makes the port for that configuration.
        calls: arguments and keyword arguments of forward; :func:`record_calls` gives real ones.
        dtype: of weights and floating-point arguments.
        seed: of the weights.
        folder: where the checkpoint is written; None: a temporary folder.
    """
    pairs = [(call, call) for call in calls]
    report, _, _ = _check(original_class, config, build_port, lambda *_: pairs, dtype, seed, folder)
    return report


def check_recipes(
    original_class: Any,
    config: Mapping[str, Any],
    build_port: Callable[[], torch.nn.Module],
    recipes: list[dict[str, Any]],
    *,
    dtype: str = "float32",
    seed: int = 0,
    attach: Callable[[torch.nn.Module], None] | None = None,
) -> tuple[ModelReport, torch.nn.Module | None, torch.nn.Module | None]:
    """As :func:`check_model`, with calls given as recipes; returns both models too, where they were built.

    Args:
        attach: done to each model once its weights are compared: gives it what it shares with another model.
    """

    def calls(original: torch.nn.Module, port: torch.nn.Module) -> Iterator[tuple[Call, Call]]:
        if attach is not None:
            attach(original)
            attach(port)
        mine, its = (decode_calls(recipes, sys.modules[type(m).__module__]) for m in (original, port))
        return ((((), a), ((), b)) for a, b in zip(mine, its, strict=True))

    return _check(original_class, config, build_port, calls, dtype, seed, None)


def _check(
    original_class: Any,
    config: Mapping[str, Any],
    build_port: Callable[[], torch.nn.Module],
    make_calls: Callable[[Any, Any], Iterable[tuple[Call, Call]]],
    dtype: str,
    seed: int,
    folder: str | Path | None,
) -> tuple[ModelReport, torch.nn.Module | None, torch.nn.Module | None]:
    kind = getattr(torch, dtype)
    report = ModelReport(model=original_class.__name__, dtype=dtype)
    with tempfile.TemporaryDirectory(prefix="porter-model-") as scratch:
        place = Path(folder or scratch)
        original, refusal = _attempt(lambda: _original(original_class, config, kind, seed, place))
        port, error = _attempt(lambda: _build(build_port, kind))
        if refusal is not None:
            report.refused = _describe(refusal)
            if not isinstance(refusal, RemappedError) and type(refusal) is not type(error):
                report.error = f"original does not build: {_describe(refusal)}; port: {_describe(error)}"
            return report, None, None
        if error is not None:
            report.error = f"the port does not build: {_describe(error)}"
            return report, original, None
        expected = {name: tensor.clone() for name, tensor in load_file(place / WEIGHTS).items()}
        reported, error = _attempt(lambda: port.load_weights(iter(expected.items())))
        if error is not None:
            report.error = f"the port does not load: {_describe(error)}"
            return report, original, port
    align_module(port)
    report.weights = compare_tensors(original.state_dict(), port.state_dict(), _packing(port))
    if reported is not None:
        report.unreported = sorted(port.state_dict().keys() - set(reported) - _tied(port, set(reported)))
    for number, (mine, its) in enumerate(make_calls(original, port)):
        if not _compare_call(report, number, (original, _cast(mine, kind)), (port, _cast(its, kind))):
            break
    return report, original, port


def _compare_call(
    report: ModelReport, number: int, first: tuple[torch.nn.Module, Call], second: tuple[torch.nn.Module, Call]
) -> bool:
    """Run one call on both; whether it gave results."""
    mine, refusal = _attempt(lambda: call_model(*first, number))
    its, error = _attempt(lambda: call_model(*second, number))
    if refusal is not None or error is not None:
        if type(refusal) is not type(error):
            report.error = f"original: {_describe(refusal)}; port: {_describe(error)}"
        report.refused = _describe(refusal) if refusal is not None else ""
        return False
    result = compare_events(mine, its)
    report.calls.append(result)
    if result.failed and report.location is None:
        report.location, _ = _attempt(lambda: locate(first[0], second[0], first[1]))
    return True


def random_original(cls: Any, config: Mapping[str, Any], seed: int) -> torch.nn.Module:
    """A diffusers model with float32 weights, none constant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: torch.nn.Module = cls.from_config(dict(config)).float().eval()
    if type(made) is not cls:
        raise RemappedError(f"diffusers loads this configuration as {type(made).__name__}")
    refill(made, seed + 1)
    return made


def _original(cls: Any, config: Mapping[str, Any], kind: torch.dtype, seed: int, folder: Path) -> torch.nn.Module:
    """The original with random weights, saved to ``folder`` and loaded from there as a checkpoint is."""
    made: Any = random_original(cls, config, seed)
    save_file({name: tensor.contiguous().clone() for name, tensor in made.state_dict().items()}, folder / WEIGHTS)
    made.save_config(str(folder))
    loaded = type(made).from_pretrained(str(folder), **dtype_argument(kind)).eval()
    align_module(loaded)
    return loaded


def build_port(port_class: Any, config: Mapping[str, Any]) -> torch.nn.Module:
    """A ported model of a configuration as the engine hands it over: of a ``config.json``."""
    made: torch.nn.Module = port_class(
        **get_transformer_config_kwargs(TransformerConfig.from_dict(dict(config)), port_class)
    )
    return made.eval()


def _build(build_port: Callable[[], torch.nn.Module], kind: torch.dtype) -> torch.nn.Module:
    """The port, built under the default dtype that the engine sets."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        return build_port().eval()
    finally:
        torch.set_default_dtype(before)


def _attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:  # noqa: BLE001 - whatever the original refuses, the port must refuse
        return None, error


def _describe(error: Exception | None) -> str:
    return "nothing raised" if error is None else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def record_calls(pipeline: Any, kwargs: dict[str, Any], component: str = "transformer") -> list[Call]:
    """The arguments of every call of a component's forward during one run of a diffusers pipeline."""
    with small_areas(pipeline), capture(pipeline, set()) as record:
        pipeline(**kwargs)
    return [event.raw for event in record.events if event.name == component and event.raw is not None]


@torch.no_grad()
def call_model(module: torch.nn.Module, call: Call, seed: int) -> Event:
    """Call a model with copies of the arguments: what tensors it got, and what it gave."""
    args, kwargs = clone_tree(call)
    torch.manual_seed(seed)  # some models draw noise
    named = bind(module.forward, args, kwargs)
    shared = {name: value for name, value in named.items() if isinstance(value, (torch.Tensor, list, tuple))}
    values = flatten(shared, "args")
    return Event("forward", seed, "component", values | flatten(module(*args, **kwargs), "result"))


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
