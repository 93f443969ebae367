"""Time ports against diffusers, in one process and by turns: the denoiser, a whole step, and the overhead of code.

    python benchmarks/denoiser.py [--runs 5] [--only CASE …] [--compiled whole|blocks] [-o RESULTS.json]

Medium configurations (16 heads of 64, 1,024 image tokens, 128 text tokens) say what arithmetic costs, tiny ones what
everything around it does. CPU seconds of one thread are counted, not the time that passes, so that a busy machine does
no harm; each run measures both sides, and who begins changes. Adds to the results that are there, and makes
``docs/performance.md`` from them.

With ``--compiled`` inductor compiles both sides, in the same way: ``whole`` the denoiser's forward, ``blocks`` that of
each repeated block, as vLLM-Omni does. The first run, which compiles, does not count. What dynamo made of each side is
kept beside the times: graphs, breaks between them, and graphs that only later runs asked for. Without, the operations
of torch in one prediction are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import page
import torch
from operations import Operations, compared
from torch._dynamo.utils import counters

from porter.bench.results import Times
from porter.parity import checkpoint as checkpoints
from porter.parity import spec as specs
from porter.parity.areas import small_areas
from porter.parity.recipes import decode
from porter.parity.request import to_request
from porter.parity.sides import Port, Reference

# Steps of a call whose last prediction is like those of longer calls: what is held is held by then.
STEADY = 3
DENOISERS = ("transformer", "transformer_2", "unet", "prior")
# A word is a token or two of the tiny tokenizers: enough for 128 of them.
TEXT = "a painting of a squirrel that eats a burger " * 15


@dataclass
class Case:
    """One pipeline in one configuration.

    Attributes:
        pipeline: class name.
        steps: of the shorter and of the longer call: their difference is so many steps and nothing else.
        configs: settings of components other than the tiny ones.
        changes: arguments of the call other than those of the spec.
    """

    pipeline: str
    steps: tuple[int, int] = (2, 42)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)


COMPILED = ("whole", "blocks")
WIDE: dict[str, Any] = {"num_attention_heads": 16, "attention_head_dim": 64}
CASES = {
    "Qwen-Image, medium": Case(
        "QwenImagePipeline",
        (1, 5),
        {"transformer": {**WIDE, "num_layers": 4, "axes_dims_rope": [16, 24, 24]}},
        {"prompt": TEXT, "negative_prompt": TEXT, "max_sequence_length": 128, "true_cfg_scale": 4.0, "tokens": 1024},
    ),
    "Flux, medium": Case(
        "FluxPipeline",
        (1, 5),
        {"transformer": {**WIDE, "num_layers": 2, "num_single_layers": 4, "axes_dims_rope": [16, 24, 24]}},
        {"prompt": TEXT, "max_sequence_length": 128, "tokens": 1024},
    ),
    "Qwen-Image, tiny": Case("QwenImagePipeline"),
    "Flux, tiny": Case("FluxPipeline"),
    "Wan, tiny": Case("WanPipeline"),
    "Sana, tiny": Case("SanaPipeline"),
    "Stable Diffusion 3, tiny": Case("StableDiffusion3Pipeline"),
    "Z-Image, tiny": Case("ZImagePipeline"),
    "Lumina2, tiny": Case("Lumina2Pipeline"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument(
        "--compiled", choices=COMPILED, default=None, help="what to compile on both sides; else nothing"
    )
    parser.add_argument("--models-dir", default=None, metavar="DIR", help="folder of ports; the committed ones if none")
    parser.add_argument("-o", "--output", type=Path, default=page.STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of processes would import torch first
    for name in args.only:
        label = f"{name}, {args.compiled} compiled" if args.compiled else name
        found = measure(CASES[name], args.runs, args.compiled, args.models_dir)
        keep(args.output, label, found)
        told = ", ".join(f"{key} {value['ratio']:.3f}" for key, value in found["quantities"].items())
        print(f"{label}: {told}", flush=True)
    if args.output == page.STEPS:
        page.write()


def measure(case: Case, runs: int, compiled: str | None, models_dir: str | None) -> dict[str, Any]:
    """Both sides by turns: CPU seconds of a call of the denoiser and of a whole step, and port to diffusers."""
    recipe = {**specs.read(case.pipeline).inputs, **case.changes}
    tokens = recipe.pop("tokens", None)
    seconds: dict[str, dict[str, list[float]]] = {"diffusers": {}, "port": {}}
    compiling: dict[str, Compiling] = {side: Compiling() for side in seconds}
    torch.compiler.reset()
    with tempfile.TemporaryDirectory(prefix="porter-bench-") as folder:
        checkpoint = checkpoints.build(case.pipeline, folder, configs=case.configs)
        theirs, ours = Reference(checkpoint, "cpu", torch.float32), Port(checkpoint, models_dir, "cpu", "float32")
        if tokens:
            # A token is two by two latents.
            side = int(tokens**0.5) * 2 * theirs.pipeline.vae_scale_factor
            recipe |= {"height": side, "width": side}
        calls = {
            "diffusers": lambda made: theirs.pipeline(**decode(made, {}), return_dict=False),
            "port": lambda made: ours.omni.generate(*to_request(decode(made, {}))),
        }
        pipelines = {"diffusers": theirs.pipeline, "port": ours.pipeline}
        blocks = [name for model in denoisers(ours.pipeline) for name in getattr(model, "_repeated_blocks", ())]
        clocks = {side: Clock(pipeline, compiled, blocks) for side, pipeline in pipelines.items()}
        with small_areas(*pipelines.values()):
            for run in range(-1, runs):
                for side in sorted(calls, reverse=run % 2 == 1):
                    with compiling[side].counting(first=run < 0):
                        found = one(calls[side], clocks[side], recipe, case.steps)
                    for name, value in found.items() if run >= 0 else ():
                        seconds[side].setdefault(name, []).append(value)
            told: dict[str, Any] = {"compiling": {side: vars(found) for side, found in compiling.items()}}
            if not compiled:
                counted = {side: Operations() for side in calls}
                for side, operations in counted.items():
                    with operations.of(denoisers(pipelines[side])):
                        calls[side]({**recipe, "num_inference_steps": STEADY})
                told = {"operations": compared(**counted)}
    quantities = {}
    for name in seconds["port"]:
        its, mine = seconds["diffusers"][name], seconds["port"][name]
        quantities[name] = {
            "diffusers": Times.of(its).model_dump(),
            "port": Times.of(mine).model_dump(),
            # Of neighbours in time, so that what the machine does besides meets both.
            "ratio": statistics.median(b / a for a, b in zip(its, mine, strict=True)),
        }
    return {"pipeline": case.pipeline, "steps": case.steps, "runs": runs, "quantities": quantities, **told}


def denoisers(pipeline: Any) -> list[torch.nn.Module]:
    """The models that a step of a pipeline calls."""
    found = (getattr(pipeline, name, None) for name in DENOISERS)
    return [module for module in found if isinstance(module, torch.nn.Module)]


@dataclass
class Compiling:
    """What dynamo did for one side.

    Attributes:
        graphs: that it captured in the first run.
        breaks: of graphs, in the first run.
        later: graphs that it captured in the runs that count, which then were not of compiled code alone.
    """

    graphs: int = 0
    breaks: int = 0
    later: int = 0

    @contextlib.contextmanager
    def counting(self, first: bool) -> Iterator[None]:
        """Count what happens in the block."""
        counters.clear()
        yield
        graphs = counters["stats"]["unique_graphs"]
        if first:
            self.graphs, self.breaks = graphs, sum(counters["graph_break"].values())
        else:
            self.later += graphs


class Clock:
    """Counts the CPU seconds of a pipeline's denoisers."""

    def __init__(self, pipeline: Any, compiled: str | None, blocks: list[str]) -> None:
        self.seconds: list[float] = []
        for module in denoisers(pipeline):
            chosen = [m for m in module.modules() if type(m).__name__ in blocks] if compiled == "blocks" else [module]
            for part in chosen if compiled else ():
                part.forward = torch.compile(part.forward)  # type: ignore[method-assign]
            module.register_forward_pre_hook(lambda *_: self.seconds.append(-time.process_time()))
            module.register_forward_hook(self._end)

    def _end(self, *_: Any) -> None:
        self.seconds[-1] += time.process_time()


def one(call: Any, clock: Clock, recipe: dict[str, Any], steps: tuple[int, int]) -> dict[str, float]:
    """A short call and a longer one: seconds of a call of the denoiser, and of a step."""
    clock.seconds.clear()
    spent = []
    for count in steps:
        started = time.process_time()
        call({**recipe, "num_inference_steps": count})
        spent.append(time.process_time() - started)
    step = (spent[1] - spent[0]) / (steps[1] - steps[0])
    return {"denoiser": statistics.median(clock.seconds), "whole step": step}


def keep(file: Path, label: str, found: dict[str, Any]) -> None:
    """Add one result to those that are there."""
    held = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    packages = ("torch", "diffusers", "transformers")
    held["environment"] = {package: metadata.version(package) for package in packages}
    held.setdefault("cases", {})[label] = found
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(held, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
