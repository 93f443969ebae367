"""Measures both sides by turns."""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from porter.bench.results import BenchReport, Compared, Measured, Times
from porter.parity import checkpoint as checkpoints
from porter.parity import spec as specs
from porter.parity.areas import small_areas
from porter.parity.pictures import pictures
from porter.parity.recipes import decode
from porter.parity.request import to_request
from porter.parity.sides import Port, Reference

_PACKAGES = ("porter", "torch", "diffusers", "transformers")
_DENOISERS = ("transformer", "transformer_2", "unet", "prior")
_TINY = "tiny random"


def bench(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    models_dir: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    runs: int = 5,
    compiled: bool = False,
    arguments: dict[str, Any] | None = None,
    with_pictures: bool = False,
) -> BenchReport:
    """Time a pipeline of diffusers and its port in one process, by turns.

    Args:
        name: the pipeline class, with or without ``diffusers.`` in front.
        checkpoint: a folder; None: a tiny random one, which tells the overhead of code and nothing about a GPU.
        models_dir: folder of ports; None: the committed ones.
        device: where both run.
        dtype: of the weights.
        runs: of each side; one more of each comes first and does not count.
        compiled: measure both with ``torch.compile`` of the denoiser too.
        arguments: of the call, over those of the pipeline's spec.
        with_pictures: keep the first picture that each side makes, and their difference.

    Raises:
        SpecError: nothing says how to call the pipeline.
        RuntimeError: a side fails; the message is the side's.
    """
    name = name.removeprefix("diffusers.")
    spec = specs.read(name)
    recipe = {**spec.inputs, **(arguments or {})}
    with tempfile.TemporaryDirectory(prefix="porter-bench-") as scratch:
        folder = Path(checkpoint) if checkpoint else checkpoints.build(name, Path(scratch) / name)
        theirs = Reference(folder, device, getattr(torch, dtype))
        ours = Port(folder, models_dir, device, dtype)
        tensors = _tensors(spec)
        sides = {
            "diffusers": (theirs.pipeline, lambda: theirs.pipeline(**decode(recipe, tensors), return_dict=False)),
            "port": (ours.pipeline, lambda: ours.omni.generate(*to_request(decode(recipe, tensors)))),
        }
        with small_areas(theirs.pipeline, ours.pipeline) if checkpoint is None else contextlib.nullcontext():
            modes = [_mode("eager", sides, device, runs)]
            if compiled:
                for pipeline, _ in sides.values():
                    for denoiser in _denoisers(pipeline):
                        # Its forward alone: what times a step stands around it, not in the graph.
                        denoiser.forward = torch.compile(denoiser.forward)
                modes.append(_mode("compiled", sides, device, runs))
            shown = None
            if with_pictures:
                shown = pictures(*(side.run(decode(recipe, tensors)) for side in (theirs, ours)))
    return BenchReport(
        pipeline=name,
        checkpoint=str(checkpoint or _TINY),
        device=device,
        machine=_machine(device),
        dtype=dtype,
        threads=torch.get_num_threads(),
        runs=runs,
        memory="allocated on the device" if device != "cpu" else "growth of the process's resident memory in a call",
        environment={package: metadata.version(package) for package in _PACKAGES},
        modes=modes,
        pictures=shown.encode() if shown is not None else None,
        command=_command(name, checkpoint, device, dtype, runs, compiled, with_pictures),
    )


def _mode(mode: str, sides: dict[str, tuple[Any, Any]], device: str, runs: int) -> Measured:
    """Every side once for nothing, then by turns; who begins changes from run to run."""
    found: dict[str, dict[str, list[float]]] = {side: {} for side in sides}
    for _, call in sides.values():
        call()
    for run in range(runs):
        order = list(sides) if run % 2 == 0 else list(reversed(sides))
        for side in order:
            pipeline, call = sides[side]
            for quantity, value in _measure(pipeline, call, device).items():
                found[side].setdefault(quantity, []).append(value)
    compared = []
    for quantity in found["diffusers"]:
        theirs, ours = (Times.of(found[side][quantity]) for side in ("diffusers", "port"))
        compared.append(
            Compared(
                name=quantity,
                unit="MB" if quantity == "peak memory" else "s",
                diffusers=theirs,
                port=ours,
                ratio=ours.median / theirs.median if theirs.median else float(ours.median == theirs.median),
            )
        )
    return Measured(mode=mode, quantities=compared)


def _measure(pipeline: Any, call: Any, device: str) -> dict[str, float]:
    """One call: the median of its denoiser's steps, its time, its memory."""
    with _steps(pipeline, device) as steps, _peak(device) as peak:
        started = _now(device)
        call()
        seconds = _now(device) - started
    found = {"whole call": seconds, "peak memory": peak[0]}
    return {"denoiser step": Times.of(steps).median, **found} if steps else found


@contextlib.contextmanager
def _steps(pipeline: Any, device: str) -> Iterator[list[float]]:
    """Seconds of every call of a denoiser."""
    seconds: list[float] = []
    started: list[float] = []

    def before(*_: Any) -> None:
        started.append(_now(device))

    def after(*_: Any) -> None:
        seconds.append(_now(device) - started.pop())

    handles = []
    for denoiser in _denoisers(pipeline):
        handles += [denoiser.register_forward_pre_hook(before), denoiser.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _peak(device: str) -> Iterator[list[float]]:
    """Megabytes that a call needs on top of what is there, filled in at the end."""
    found = [0.0]
    if device != "cpu":
        accelerator = getattr(torch, device.partition(":")[0])
        accelerator.reset_peak_memory_stats(device)
        yield found
        found[0] = accelerator.max_memory_allocated(device) / 2**20
        return
    done = threading.Event()
    before = highest = _resident()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found[0] = (max(highest, _resident()) - before) / 2**20


def _resident() -> int:
    """Bytes of this process in memory; where the system does not tell, the most that there ever were."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _denoisers(pipeline: Any) -> list[torch.nn.Module]:
    found = (getattr(pipeline, name, None) for name in _DENOISERS)
    return [module for module in found if isinstance(module, torch.nn.Module)]


def _now(device: str) -> float:
    if device != "cpu":
        getattr(torch, device.partition(":")[0]).synchronize(device)
    return time.perf_counter()


def _tensors(spec: specs.Spec) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(spec.tensors) if spec.tensors else {}


def _machine(device: str) -> str:
    if device != "cpu":
        return str(getattr(torch, device.partition(":")[0]).get_device_name(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _command(
    name: str, checkpoint: Any, device: str, dtype: str, runs: int, compiled: bool, with_pictures: bool
) -> str:
    words = ["porter bench", name, "--runs", str(runs)]
    words += ["--checkpoint", str(checkpoint)] if checkpoint else []
    words += ["--device", device] if device != "cpu" else []
    words += ["--dtype", dtype] if dtype != "float32" else []
    words += ["--compiled"] if compiled else []
    return " ".join([*words, *(["--pictures"] if with_pictures else [])])
