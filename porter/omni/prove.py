"""What ports do in vLLM-Omni's worker, one pipeline after the other.

    python -m porter.omni.prove WORK --mode one|cfg|cache|batch|held [--rank R --port P]

``WORK/jobs.json`` names the pipelines, ``WORK/ports`` holds them. ``one`` runs a request whole and two requests of
different step counts in turns, compares them, and keeps the first result in ``WORK``; ``cfg``, started once for each of
two ranks, runs the same request there with its guidance on both; ``cache`` runs one with Cache-DiT and without;
``batch`` runs two together and alone; ``held`` runs one that holds results over its steps, and one that does not.
``WORK/<mode>.<rank>.jsonl`` says how each went.

Each pipeline is run by a fork of this process: one that crashes or waits for ever costs itself only, groups of ranks
are set up afresh, and what all need is imported once.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from porter.omni.forks import Stopped, in_fork, preload

SECONDS = 300  # that a pipeline may take: tiny ones need ten, and on a busy machine a minute
MODES = ("one", "cfg", "cache", "batch", "held")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--mode", choices=MODES, default="one")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--port", type=int, default=29556, help="of the first pipeline; the next takes the next")
    args = parser.parse_args()
    from porter import omni

    omni.start()
    torch.set_num_threads(1)
    preload()
    jobs = json.loads((args.work / "jobs.json").read_text())
    with (args.work / f"{args.mode}.{args.rank}.jsonl").open("a") as log:
        for number, name in enumerate(jobs):
            entry = went(args, name, args.port + number)
            log.write(json.dumps({"pipeline": name, **entry}) + "\n")
            log.flush()


def went(args: argparse.Namespace, name: str, port: int) -> dict[str, Any]:
    """How a pipeline went in a process of its own."""
    try:
        entry: dict[str, Any] = in_fork(partial(run, args.mode, args.work, name, args.rank, port), SECONDS)
    except (Stopped, RuntimeError) as error:
        entry = {"error": str(error)}
    return entry


def run(mode: str, work: Path, name: str, rank: int, port: int) -> dict[str, Any]:
    """What a mode finds out about a pipeline."""
    from porter.omni.batched import batched
    from porter.omni.cached import cached
    from porter.omni.held import held
    from porter.omni.turns import alone, shared

    if mode == "cfg":
        return shared(work, name, rank, port)
    return {"one": alone, "cache": cached, "batch": batched, "held": held}[mode](work, name)


if __name__ == "__main__":
    main()
