"""Time a denoising step with what is the same in all steps held, against the same step that computes all of it.

    python benchmarks/hoist.py [--runs 7] [--threads 1] [--layers 4] [--only MODEL …] [-o benchmarks/results/hoist.json]

Models of medium size (16 heads of 64, 1,024 image and 128 text tokens), with random weights: a step is one prediction
for each branch of guidance. Steps with and without held results alternate; medians of CPU time are compared, and the
predictions have to be equal bit for bit. Operations of matrix products are counted as well: a busy machine does not
change them. A run of a model is four predictions, of a second (Wan) to four (Lumina2, whose feed-forwards are the
largest) each. Each model's result is written as soon as it is there, and ``docs/performance.md`` is made anew.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import page
import torch
from torch.utils.flop_counter import FlopCounterMode

from porter.model_port import load_model, port_model, write_models
from porter.source import SourceTree
from porter.targets import get_target

TEXT_TOKENS, TEXT_WIDTH, SIDE = 128, 2048, 32  # SIDE: image tokens along an edge

MODELS: dict[str, dict[str, Any]] = {
    "WanTransformer3DModel": {
        "config": {"num_attention_heads": 16, "attention_head_dim": 64, "ffn_dim": 4096, "text_dim": TEXT_WIDTH},
        "sample": (16, 1, 2 * SIDE, 2 * SIDE),
    },
    "SanaTransformer2DModel": {
        "config": {
            "in_channels": 32,
            "out_channels": 32,
            "num_attention_heads": 16,
            "attention_head_dim": 64,
            "num_cross_attention_heads": 16,
            "cross_attention_head_dim": 64,
            "cross_attention_dim": 1024,
            "caption_channels": TEXT_WIDTH,
            "sample_size": SIDE,
        },
        "sample": (32, SIDE, SIDE),
    },
    "PixArtTransformer2DModel": {
        "config": {
            "num_attention_heads": 16,
            "attention_head_dim": 64,
            "cross_attention_dim": 1024,
            "caption_channels": TEXT_WIDTH,
            "sample_size": 2 * SIDE,
            "use_additional_conditions": False,
        },
        "sample": (4, 2 * SIDE, 2 * SIDE),
        "more": {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    },
    "Lumina2Transformer2DModel": {
        "config": {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_kv_heads": 8,
            "axes_dim_rope": (16, 24, 24),
            "cap_feat_dim": TEXT_WIDTH,
        },
        "sample": (16, 2 * SIDE, 2 * SIDE),
        "mask": True,
    },
}


def measure(name: str, layers: int, runs: int, folder: Path) -> dict[str, Any]:
    """Medians for one model."""
    made = MODELS[name]
    file = write_models(folder / name, [port_model(SourceTree(), get_target("porter"), name)])[name]
    cls = load_model(file, name)
    invariants = importlib.import_module(f"{cls.__module__.rpartition('.')[0]}.invariants")
    torch.manual_seed(0)
    model = cls(num_layers=layers, **made["config"]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    texts = torch.randn(2, TEXT_TOKENS, TEXT_WIDTH)
    constants = {"texts": texts, "mask": torch.ones(1, TEXT_TOKENS, dtype=torch.bool)}
    held = invariants.Invariants(2**34)
    held.know(constants)

    def step(number: int) -> list[torch.Tensor]:
        more = dict(made.get("more", {}))
        if made.get("mask"):
            more["encoder_attention_mask"] = constants["mask"]
        sample = torch.randn(1, *made["sample"], generator=torch.Generator().manual_seed(number))
        time_of_step = torch.tensor([1000.0 - number])
        return [
            model(
                sample, timestep=time_of_step, encoder_hidden_states=texts[half : half + 1], return_dict=False, **more
            )[0]
            for half in (0, 1)
        ]

    seconds: dict[bool, list[float]] = {True: [], False: []}
    same = True
    with torch.no_grad():
        for number in range(runs + 1):  # the first computes what is held
            results = {}
            for on in (True, False) if number % 2 else (False, True):
                with invariants.holding(held if on else None):
                    started = time.process_time()
                    results[on] = step(number)
                    seconds[on].append(time.process_time() - started)
            same &= all(torch.equal(a, b) for a, b in zip(results[True], results[False], strict=True))
        counted = {}
        for on in (True, False):
            with invariants.holding(held if on else None), FlopCounterMode(display=False) as counter:
                step(0)
            counted[on] = counter.get_total_flops()
    on, off = (statistics.median(seconds[key][1:]) for key in (True, False))
    return {
        "model": name,
        "runs": runs,
        "bit_identical": same,
        "milliseconds_held": round(on * 1000, 1),
        "milliseconds_computed": round(off * 1000, 1),
        # Of neighbours in time, so that what the machine does besides meets both.
        "ratio": round(statistics.median(a / b for a, b in zip(seconds[True][1:], seconds[False][1:])), 4),
        "ratio_of_operations": round(counted[True] / counted[False], 4),
        "results_held": held.results,
        "mebibytes_held": round(held.nbytes / 2**20, 2),
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("-o", "--output", type=Path, default=page.HELD)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="porter-hoist-") as folder:
        for name in options.only:
            found = measure(name, options.layers, options.runs, Path(folder))
            print(json.dumps(found), flush=True)
            keep(options, found)
    if options.output == page.HELD:
        page.write()


def keep(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Put one model's result in its place among those that were measured in the same way."""
    held = json.loads(options.output.read_text("utf-8")) if options.output.is_file() else {}
    models = {entry["model"]: entry for entry in held.get("models", ()) if held.get("layers") == options.layers}
    models[found["model"]] = found
    report = {
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": options.threads,
            "load": f"{os.getloadavg()[0]:.1f}",
            **{package: metadata.version(package) for package in ("porter", "torch", "diffusers")},
        },
        "layers": options.layers,
        "models": [models[name] for name in MODELS if name in models],
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
