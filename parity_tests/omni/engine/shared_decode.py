"""Run for each rank: a request of ports whose VAE is cut into small tiles, alone or shared by two ranks.

    python -m parity_tests.omni.engine.shared_decode WORK --mode one|shared --rank R --port P

``WORK/jobs.json`` names the pipelines, ``WORK/ports`` holds them. Each rank keeps what it got as
``WORK/<pipeline>.<mode>.<rank>.pt``; ``WORK/<mode>.<rank>.jsonl`` has the class of the VAE, how often its decoder was
called and which collectives the decoding took.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from porter.omni.forks import in_fork, preload

TILE, STRIDE, PICTURE = 8, 6, 14  # in latents
MULTIPLE = 32  # of pixels, that pipelines ask for


def small_tiles(vae: Any) -> int:
    """Cut what ``vae`` decodes into tiles of a few latents; how many pixels a latent is wide."""
    pixels = getattr(vae, "spatial_compression_ratio", None) or 2 ** (len(vae.config.block_out_channels) - 1)
    for name in vars(vae):
        if found := re.fullmatch(r"tile_(sample|latent)_(min|stride)_(size|height|width)", name):
            size = TILE if found[2] == "min" else STRIDE
            setattr(vae, name, size * (pixels if found[1] == "sample" else 1))
    return int(pixels)


def decoded(work: Path, name: str, mode: str, rank: int, port: int) -> dict[str, Any]:
    """Run one pipeline on this rank."""
    from porter.omni.ranks import Traffic
    from porter.omni.turns import prepare, request, results
    from porter.omni.worker import OneWorker
    from porter.parity.sides import align

    alone: dict[str, Any] = {"settings": {"vae_use_tiling": True}}
    together = {"parallel": {"vae_patch_parallel_size": 2}, "rank": rank, "port": port}
    with tempfile.TemporaryDirectory() as folder:
        worker = OneWorker(prepare(work, name, folder), **(alone if mode == "one" else together))
        try:
            vae = worker.pipeline.vae
            align(worker.pipeline)
            pixels = small_tiles(vae)
            prompt, params = request(name, worker, 0)
            params.height = params.width = -(-PICTURE * pixels // MULTIPLE) * MULTIPLE
            calls: list[int] = []
            vae.decoder.register_forward_hook(lambda *_: calls.append(1))
            traffic = Traffic()
            found = results(worker.run(prompt, params)[0])
            torch.save(found, work / f"{name}.{mode}.{rank}.pt")
            return {"class": type(vae).__name__, "calls": len(calls), "collectives": dict(traffic.calls)}
        finally:
            worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--mode", choices=("one", "shared"), default="one")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--port", type=int, default=29557)
    args = parser.parse_args()
    from porter import omni

    omni.start()
    torch.set_num_threads(1)
    preload()
    with (args.work / f"{args.mode}.{args.rank}.jsonl").open("a") as log:
        for number, name in enumerate(json.loads((args.work / "jobs.json").read_text())):
            try:
                entry = in_fork(partial(decoded, args.work, name, args.mode, args.rank, args.port + number), 300)
            except RuntimeError as error:
                entry = {"error": str(error)}
            log.write(json.dumps({"pipeline": name, **entry}) + "\n")
            log.flush()


if __name__ == "__main__":
    main()
