"""Time ports against diffusers, in one process and by turns: the denoiser, a whole step, and the overhead of code.

    python benchmarks/denoiser.py [--runs 5] [--only CASE …] [--compiled] [-o benchmarks/results/denoiser.json]

Medium configurations (16 heads of 64, 1,024 image tokens, 128 text tokens) say what arithmetic costs, tiny ones what
everything around it does. CPU seconds of one thread are counted, not the time that passes, so that a busy machine does
no harm; each run measures both sides, and who begins changes. Adds to the results that are there, and makes
``docs/performance.md`` from them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from porter.bench.results import Times
from porter.parity import checkpoint as checkpoints
from porter.parity import spec as specs
from porter.parity.recipes import decode
from porter.parity.request import to_request
from porter.parity.sides import Port, Reference, small_areas

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "denoiser.json", ROOT / "docs" / "performance.md"
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


WIDE: dict[str, Any] = {"num_attention_heads": 16, "attention_head_dim": 64}
CASES = {
    "Qwen-Image, medium": Case(
        "QwenImagePipeline",
        (1, 2),
        {"transformer": {**WIDE, "num_layers": 4, "axes_dims_rope": [16, 24, 24]}},
        {"prompt": TEXT, "negative_prompt": TEXT, "max_sequence_length": 128, "true_cfg_scale": 4.0, "tokens": 1024},
    ),
    "Flux, medium": Case(
        "FluxPipeline",
        (1, 2),
        {"transformer": {**WIDE, "num_layers": 2, "num_single_layers": 4, "axes_dims_rope": [16, 24, 24]}},
        {"prompt": TEXT, "max_sequence_length": 128, "tokens": 1024},
    ),
    "Qwen-Image, tiny": Case("QwenImagePipeline"),
    "Flux, tiny": Case("FluxPipeline"),
    "Wan, tiny": Case("WanPipeline"),
    "Sana, tiny": Case("SanaPipeline"),
    "Stable Diffusion 3, tiny": Case("StableDiffusion3Pipeline"),
    "Z-Image, tiny": Case("ZImagePipeline"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--compiled", action="store_true", help="compile the denoiser's forward on both sides")
    parser.add_argument("--models-dir", default=None, metavar="DIR", help="folder of ports; the committed ones if none")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        label = f"{name}, compiled" if args.compiled else name
        found = measure(CASES[name], args.runs, args.compiled, args.models_dir)
        keep(args.output, label, found)
        told = ", ".join(f"{key} {value['ratio']:.3f}" for key, value in found["quantities"].items())
        print(f"{label}: {told}", flush=True)
    if args.output == RESULTS:
        PAGE.write_text(page(json.loads(RESULTS.read_text("utf-8"))), "utf-8")


def measure(case: Case, runs: int, compiled: bool, models_dir: str | None) -> dict[str, Any]:
    """Both sides by turns: CPU seconds of a call of the denoiser and of a whole step, and port to diffusers."""
    recipe = {**specs.read(case.pipeline).inputs, **case.changes}
    tokens = recipe.pop("tokens", None)
    seconds: dict[str, dict[str, list[float]]] = {"diffusers": {}, "port": {}}
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
        clocks = {side: Clock(pipeline, compiled) for side, pipeline in pipelines.items()}
        with small_areas(*pipelines.values()):
            for run in range(-1, runs):
                for side in sorted(calls, reverse=run % 2 == 1):
                    found = one(calls[side], clocks[side], recipe, case.steps)
                    for name, value in found.items() if run >= 0 else ():
                        seconds[side].setdefault(name, []).append(value)
    quantities = {}
    for name in seconds["port"]:
        its, mine = seconds["diffusers"][name], seconds["port"][name]
        quantities[name] = {
            "diffusers": Times.of(its).model_dump(),
            "port": Times.of(mine).model_dump(),
            # Of neighbours in time, so that what the machine does besides meets both.
            "ratio": statistics.median(b / a for a, b in zip(its, mine, strict=True)),
        }
    return {"pipeline": case.pipeline, "steps": case.steps, "runs": runs, "quantities": quantities}


class Clock:
    """Counts the CPU seconds of a pipeline's denoisers."""

    def __init__(self, pipeline: Any, compiled: bool) -> None:
        self.seconds: list[float] = []
        found = (getattr(pipeline, name, None) for name in DENOISERS)
        for module in (module for module in found if isinstance(module, torch.nn.Module)):
            if compiled:
                module.forward = torch.compile(module.forward)  # type: ignore[method-assign]
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


def page(results: dict[str, Any]) -> str:
    """The page of a set of results."""
    versions = ", ".join(f"{name} {version}" for name, version in results["environment"].items())
    lines = [
        "# Speed",
        "",
        "Ports in `porter.runtime` against diffusers, float32, one thread of a CPU, both in one process and by turns",
        f"(`python benchmarks/denoiser.py`; {versions}).",
        "CPU milliseconds, medians; the ratio is the median over runs of port to diffusers: below 1 the port needs",
        "less. Differences under 5 % are noise.",
        "",
        "Medium: 16 heads of 64, 1,024 image and 128 text tokens, Qwen-Image with 4 layers, Flux with 2 + 4. Tiny",
        "models have next to no arithmetic: what is left is the overhead of code; on a machine that is busy with other",
        "things these vary by a tenth from run to run.",
        "",
        "| case | quantity | diffusers | port | ratio |",
        "|---|---|---|---|---|",
    ]
    for label, case in results["cases"].items():
        for name, found in case["quantities"].items():
            its, mine = (found[side]["median"] * 1e3 for side in ("diffusers", "port"))
            lines.append(f"| {label} | {name} | {its:.4g} | {mine:.4g} | {found['ratio']:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
