"""A server under a mixed load, its requests side by side and one by one.

    python benchmarks/serve.py [--requests 200] [--clients 8] [--pipeline NAME] [-o benchmarks/results/serve.json]
    python benchmarks/serve.py --pipeline FluxPipeline --passes 1 -o benchmarks/results/serve_port.json

The mix is the same every time: sizes and steps of all sorts, 5 % of the requests cancelled, 5 % malformed. Every valid
answer is compared with what the offline engine makes of its seed. Prints JSON: what became of the requests, memory, and
the throughput of valid requests side by side over the one of one by one.

Without ``--pipeline`` the model is the hand-written port of the tests, whose pipeline takes steps together; NAME is a
pipeline that has a tiny checkpoint in porter.parity and a port with step execution.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "parity_tests" / "serve")]

import numpy as np
import psutil
from mix import CANCELLED, MALFORMED, Item, make_mix
from serving import Running, picture
from step_model import MODELS_DIR, write_checkpoint

from porter.runtime import Omni, OmniDiffusionSamplingParams

GENERATE = "/v1/images/generations"
# Denoising steps, as many as models take: what a request costs besides them should not be what is measured.
STEPS = (10, 20, 30)
# Of a port with a tiny checkpoint, whose text encoder and VAE are no bigger than its transformer.
PORT_STEPS = (4, 8, 12)
# Grey levels by which an answer may differ: steps that are taken together round another way in a float's last bit.
TOLERANCE = 1


def load(pipeline: str | None, models_dir: Path | None, scratch: Path) -> Omni:
    """The model, on the CPU."""
    if pipeline is None:
        folder = write_checkpoint(scratch / "toy", dim=64, layers=4)
        return Omni(model=folder, models_dir=MODELS_DIR, device="cpu", dtype="float32")
    from porter.cli.model_options import silence_pipeline
    from porter.parity import checkpoint

    logging.getLogger("porter").setLevel(logging.ERROR)  # what pipelines say about every prompt
    omni = Omni(model=checkpoint.build(pipeline, scratch / pipeline), models_dir=models_dir, device="cpu")
    silence_pipeline(omni)
    return omni


def mix_for(pipeline: str | None, count: int) -> list[Item]:
    """The requests: of a port in the size that its tiny checkpoint is called with, and twice as wide or high."""
    if pipeline is None:
        return make_mix(count, steps=STEPS)
    from porter.parity import spec

    inputs = spec.read(pipeline).inputs
    width, height = (inputs.get(side, 32) for side in ("width", "height"))
    sizes = [(width, height), (2 * width, height), (width, 2 * height)]
    return make_mix(count, tuple(f"{across}x{down}" for across, down in sizes), PORT_STEPS)


def expected_pictures(omni: Omni, mix: list[Item]) -> list[np.ndarray | None]:
    """What the offline engine makes of each valid request."""
    found: list[np.ndarray | None] = []
    for item in mix:
        if item.kind != "valid":
            found.append(None)
            continue
        width, height = map(int, item.body["size"].split("x"))
        params = OmniDiffusionSamplingParams(
            width=width, height=height, num_inference_steps=item.body["num_inference_steps"], seed=item.body["seed"]
        )
        found.append(np.asarray(omni.generate(item.body["prompt"], params)[0].images[0], dtype=int))
    return found


def run(
    omni: Omni, mix: list[Item], clients: int, side_by_side: int, expected: list[np.ndarray | None]
) -> dict[str, Any]:
    """One pass of the mix through a fresh server."""
    server = Running(omni, max_num_seqs=side_by_side, max_queue=len(mix))
    server.timeout = 3600.0

    def ask(item: Item) -> Any:
        if item.kind == CANCELLED:
            return hang_up(server, item.body)
        return server.ask("POST", GENERATE, item.body)

    try:
        began, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(ask, mix))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        if not server.idle():
            raise SystemExit("requests are left over")
        steps, batches = steps_and_batches(server)
    finally:
        server.stop()
    worst, answered, refused, lost = 0, 0, 0, 0
    for item, answer, picture_ in zip(mix, answers, expected, strict=True):
        if item.kind == MALFORMED:
            refused += answer.status == 400
        elif item.kind == "valid":
            if answer.status != 200:
                lost += 1
                continue
            difference = abs(np.asarray(picture(answer.json["data"][0]["b64_json"]), dtype=int) - picture_).max()
            worst, answered = max(worst, int(difference)), answered + 1
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "valid_answered": answered,
        "valid_lost": lost,
        "malformed_refused": refused,
        "cancelled": sum(item.kind == CANCELLED for item in mix),
        "valid_per_second": round(answered / seconds, 2),
        "largest_difference_of_255": worst,
        "steps_per_batch": round(steps / batches, 2) if batches else None,
    }


def hang_up(server: Running, body: dict[str, Any]) -> None:
    """Ask, and go away without waiting for the answer."""
    import socket

    data = json.dumps(body).encode()
    head = ["Host: x", "Content-Type: application/json", f"Content-Length: {len(data)}", "\r\n"]
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall("\r\n".join([f"POST {GENERATE} HTTP/1.1", *head]).encode() + data)
        time.sleep(0.05)


def resident(process: psutil.Process) -> float:
    """Megabytes in use: what was freed goes back to the system first, where the C library can be asked to."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return round(process.memory_info().rss / 2**20, 1)


def steps_and_batches(server: Running) -> tuple[float, float]:
    """Steps that were taken, and in how many batches."""
    lines = server.ask("GET", "/metrics").data.decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return float(values["porter_steps_total"]), float(values["porter_step_batch_size_count"])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pipeline")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--passes", type=int, default=3, help="of each kind; the fastest counts")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    mix = mix_for(arguments.pipeline, arguments.requests)
    process, memory = psutil.Process(), []
    with tempfile.TemporaryDirectory() as scratch:
        omni = load(arguments.pipeline, arguments.models_dir, Path(scratch))
        expected = expected_pictures(omni, mix)
        passes: dict[str, list[dict[str, Any]]] = {"side_by_side": [], "one_by_one": []}
        for _ in range(arguments.passes):
            for name, count in (("side_by_side", arguments.clients), ("one_by_one", 1)):
                passes[name].append(run(omni, mix, arguments.clients, count, expected))
                if hasattr(omni.pipeline, "calls"):
                    omni.pipeline.calls.clear()  # the toy writes down what it was called with
                memory.append(resident(process))
    best = {name: min(found, key=lambda item: item["seconds"]) for name, found in passes.items()}
    ratio = best["side_by_side"]["valid_per_second"] / best["one_by_one"]["valid_per_second"]
    # Of the processor's time, clients and pictures included: other work on the machine does not count.
    cpu = {name: min(item["cpu_seconds"] for item in found) for name, found in passes.items()}
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "pipeline": arguments.pipeline or "the hand-written port of the tests",
        "requests": arguments.requests,
        "clients": arguments.clients,
        **best,
        "throughput_ratio": round(ratio, 2),
        "throughput_ratio_by_cpu_seconds": round(cpu["one_by_one"] / cpu["side_by_side"], 2),
        "resident_megabytes_after_each_pass": memory,
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if arguments.output:
        arguments.output.write_text(text)
    every = [item for found in passes.values() for item in found]
    wrong = any(item["valid_lost"] or item["largest_difference_of_255"] > TOLERANCE for item in every)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
