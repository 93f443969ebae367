"""The two sides of a comparison: diffusers itself, and the port in the engine."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from packaging.version import Version

from porter.parity.areas import asked_areas
from porter.parity.capture import Capture, Enough, capture, neural_components
from porter.parity.flatten import flatten
from porter.parity.request import to_request

_ADDRESS = re.compile(r"at 0x[0-9A-Fa-f]+")


# What can run a port: porter's own runtime, and vLLM-Omni itself (see :mod:`porter.omni`).
ENGINES = ("porter", "vllm-omni")


class Side(Protocol):
    """Runs calls and records them."""

    pipeline: Any

    def run(self, kwargs: dict[str, Any], methods: AbstractSet[str] | None = None, stop: bool = False) -> Capture:
        """Run one call, up to the first prediction if ``stop``; an exception is recorded, not raised."""
        ...


class PortSide(Side, Protocol):
    """A side that has an engine to give up."""

    def close(self) -> None:
        """Unload the model."""
        ...


class Reference:
    """The diffusers pipeline.

    Args:
        checkpoint: its folder.
        device: where it runs.
        dtype: of its weights.
        held: components that need not be loaded, by name.
    """

    def __init__(
        self, checkpoint: Path, device: str, dtype: torch.dtype, held: Mapping[str, torch.nn.Module] | None = None
    ) -> None:
        import diffusers

        # Pickled weights are refused: loading them runs what is in them.
        self.pipeline = diffusers.DiffusionPipeline.from_pretrained(
            str(checkpoint), use_safetensors=True, **dtype_argument(dtype), **(held or {})
        )
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        align(self.pipeline)

    def run(self, kwargs: dict[str, Any], methods: AbstractSet[str] | None = None, stop: bool = False) -> Capture:
        """Call the pipeline."""

        def call() -> list[Any]:
            result = self.pipeline(**kwargs, return_dict=False)
            return list(result) if isinstance(result, tuple) else [result]

        return record(self.pipeline, kwargs, call, methods, stop)


class Port:
    """The port, through the engine."""

    def __init__(self, checkpoint: Path, models_dir: str | Path | None, device: str, dtype: str) -> None:
        from porter.runtime import Omni

        self.omni = Omni(model=str(checkpoint), models_dir=models_dir, device=device, dtype=dtype)
        self.pipeline: Any = self.omni.pipeline
        if hasattr(self.pipeline, "set_progress_bar_config"):
            self.pipeline.set_progress_bar_config(disable=True)
        align(self.pipeline)

    def close(self) -> None:
        """Nothing is held besides memory."""

    def run(
        self,
        kwargs: dict[str, Any],
        methods: AbstractSet[str] | None = None,
        stop: bool = False,
        into: Capture | None = None,
    ) -> Capture:
        """Send the call as a request."""

        def call() -> list[Any]:
            prompt, params = to_request(kwargs)
            [result] = self.omni.generate(prompt, params)
            return result.media()

        return record(self.pipeline, kwargs, call, methods, stop, into)


def start_engine(engine: str) -> None:
    """Load what an engine wants loaded before diffusers and transformers are.

    Raises:
        EngineMissing: the engine is not in this environment; the message says how to get it.
    """
    if engine == "vllm-omni":
        from porter.omni import start

        start()


def port_side(engine: str, checkpoint: Path, models_dir: str | Path | None, device: str, dtype: str) -> PortSide:
    """The port in the engine of this name (one of :data:`ENGINES`)."""
    if engine == "vllm-omni":
        from porter.omni.side import EnginePort

        return EnginePort(checkpoint, models_dir, device, dtype)
    return Port(checkpoint, models_dir, device, dtype)


def align(pipeline: Any) -> None:
    """Copy all weights to memory of their own, and let none want gradients.

    Safetensors files are mapped into memory at whatever offset a tensor has; kernels take other paths for unaligned
    storage, and the last bits differ. They may as well where torch folds the dimensions of a product, which it does
    for a weight that wants gradients, as diffusers' do and vLLM's do not.
    """
    for module in neural_components(pipeline).values():
        align_module(module)


def align_module(module: torch.nn.Module) -> None:
    """As :func:`align`, for one module."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.requires_grad_(False)
        tensor.data = tensor.data.clone()


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument by which ``from_pretrained`` of the installed diffusers takes a dtype; its name changed in 0.42."""
    import diffusers

    return {"torch_dtype" if Version(diffusers.__version__) < Version("0.42") else "dtype": dtype}


def rejection(error: BaseException | None) -> str:
    """The text of an exception, in one form for both sides: without line breaks and addresses in memory."""
    return _ADDRESS.sub("at 0x…", " ".join(str(error).split())) if error is not None else ""


@contextlib.contextmanager
def restored(pipeline: Any, before: dict[str, Any]) -> Iterator[None]:
    """Give the pipeline the attributes ``before`` for the block, and those it has now after it.

    Some pipelines keep an embedding between calls. A repeated call has to start where the first one started, and must
    not leave a trace, so that what reference and port keep from one case to the next can be compared.
    """
    now = dict(vars(pipeline))
    vars(pipeline).clear()
    vars(pipeline).update(before)
    try:
        yield
    finally:
        vars(pipeline).clear()
        vars(pipeline).update(now)


def seed_globals() -> None:
    """Begin as every run begins: some components draw from the global generators when none is handed in."""
    random.seed(0)
    np.random.seed(0)
    # Without an accelerator, torch notes down who would have seeded it, which takes longer than all else here.
    seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed(0)


def record(
    pipeline: Any,
    kwargs: dict[str, Any],
    call: Callable[[], list[Any]],
    methods: AbstractSet[str] | None,
    stop: bool,
    into: Capture | None = None,
) -> Capture:
    """Watch ``call`` run ``pipeline``: its stages, what it returns, the state of its generators, or how it failed."""
    seed_globals()
    areas = asked_areas(pipeline)
    areas.clear()
    with capture(pipeline, methods, stop, into) as seen:
        try:
            final = call()
        except Enough:
            final = None
        except Exception as error:
            seen.error = error
            return seen
    if areas:
        seen.add("target areas", "final", {"result": np.array(sorted(areas))})
    if final is None:
        return seen
    seen.add("output", "final", final_leaves(final))
    generators = kwargs.get("generator")
    if generators is not None:
        seen.add("generator state", "final", flatten(generators, "result"))
    return seen


def final_leaves(outputs: list[Any]) -> dict[str, Any]:
    """The arrays of a call's output in order; how they were nested and what was flagged beside them is left out."""
    leaves = [leaf for leaf in flatten(outputs).values() if isinstance(leaf, (torch.Tensor, np.ndarray))]
    leaves = [leaf for leaf in leaves if leaf.dtype not in (torch.bool, np.bool_)]
    return {f"result.{index}": leaf for index, leaf in enumerate(leaves)}
