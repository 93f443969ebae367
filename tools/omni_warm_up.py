"""Send the engine's start-up request to every port: does it survive, and where it does not, is it the port's doing?

    .venv-omni/bin/python tools/omni_warm_up.py [--only NAME …] [--resume] [--full]

The request is the one that vLLM-Omni makes itself (512×512, two steps, guidance 0, one frame, a picture for models that
take one). It runs in the engine's own worker, each port in a fork with a limit of time and memory. A tiny checkpoint's
VAE scales by 2 or so where a real one scales by 8: 512×512 would be sixteen times the latents, and attention over them
256 times the work. So the size is the one that makes 64 latents a side, as 512 does otherwise; with ``--full`` the
real one comes after it. A port that refuses is asked again with arguments of its tiny call, which tells what is too
large for the tiny checkpoint from what the pipeline does not take at all.
Writes ``porter/parity/data/omni_warm_up.json``, which ``tools/omni_table.py`` puts into its page.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from omni_table import comparable, line, quiet

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "porter" / "parity" / "data" / "omni_warm_up.json"
FULL = 512
MEMORY = 10 << 30
# What the request says itself, or is no setting of a checkpoint's size.
SAID = {"prompt", "num_inference_steps", "guidance_scale", "generator", "output_type"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--resume", action="store_true", help="leave out what the results already hold")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=int, default=120, help="of computing that a port may take")
    parser.add_argument("--full", action="store_true", help="and at full size, where that is another")
    args = parser.parse_args()
    from porter import omni

    omni.start()
    quiet()
    from porter.omni.forks import preload

    preload()
    results: dict[str, Any] = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for name in args.only or comparable():
        if args.resume and name in results:
            continue
        started = time.perf_counter()
        results[name] = warm(name, args.seconds, args.full)
        print(name, json.dumps(results[name]), f"| {time.perf_counter() - started:.0f} s", flush=True)
        args.results.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    return 0


def warm(name: str, seconds: int, full: bool) -> dict[str, Any]:
    """How the start-up request went: ``verdict`` (runs, cold, not asked, error), its ``size`` and the ``reason``."""
    from porter.omni.forks import Stopped, in_fork
    from porter.parity import checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = checkpoint.build(name, Path(scratch) / name)
        except Exception as error:  # noqa: BLE001 - the checkpoint is made for another release of diffusers, say
            return {"verdict": "no checkpoint", "reason": line(error)}
        held = Path(scratch) / "found.json"
        for limited in (False, True):
            try:
                in_fork(partial(ask, name, folder, held, full, limited), 10 * seconds, MEMORY, seconds)
            except Stopped as error:
                if held.is_file():  # it is the request of full size that takes too long
                    return {**json.loads(held.read_text()), "reason at 512": line(error)}
                stopped = {"verdict": "too much", "reason": line(error)}
            except RuntimeError as error:
                return {"verdict": "error", "reason": line(error)}
            else:
                found: dict[str, Any] = json.loads(held.read_text())
                return (
                    found if not limited or found["verdict"] != "runs" else {**stopped, "runs with": found["runs with"]}
                )
        return stopped


def ask(name: str, folder: Path, held: Path, full: bool, limited: bool) -> None:
    """Load a model and send it the request, first at the size that makes 64 latents a side; ``held`` gets the answers.

    They are written after each request: one of full size may take more time or memory than there is. ``limited``: all
    arguments of the tiny call go with it.
    """
    from porter.omni.plugin import use_port
    from porter.omni.worker import OneWorker, dummy_request
    from porter.parity.areas import small_areas

    use_port(name)
    worker = OneWorker(folder)
    small = small_size(worker.pipeline)
    found: dict[str, Any] = {"verdict": "not asked", "size": FULL}
    if dummy_request(worker.config) is not None:
        tiny = settings(name) if limited else {}
        with small_areas(worker.pipeline):
            for size in (small, FULL) if full and small < FULL else (small,):
                reason = sent(worker, size, **tiny)
                found |= {"verdict": "runs" if reason is None else "cold", "size": size, "runs with": sorted(tiny)}
                if reason is not None:
                    found |= {"reason": reason, "runs with": limits(name, worker, size)}
                    break
                held.write_text(json.dumps(found))
    held.write_text(json.dumps(found))


def sent(worker: Any, size: int, **arguments: Any) -> str | None:
    """Why the request, with further arguments, was refused; None if it ran."""
    from porter.omni import warm_up

    told: list[str] = []

    def warning(text: str, *said: Any) -> None:
        told.append(line(said[-1]))

    before, warm_up.logger.warning = warm_up.logger.warning, warning  # type: ignore[method-assign]
    try:
        worker.warm_up(size, **arguments)
    finally:
        warm_up.logger.warning = before  # type: ignore[method-assign]
    return told[0] if told else None


def limits(name: str, worker: Any, size: int) -> list[str]:
    """Arguments of the tiny checkpoint's call that make the request run: what is refused is too large for its tables.

    One argument if one is enough, else all of them; none if they do not help.
    """
    call = settings(name)
    sides = {key: call.pop(key) for key in ("height", "width") if key in call}
    tries = [{key: value} for key, value in call.items()] + ([sides] if sides else []) + [{**call, **sides}]
    return next((sorted(tried) for tried in tries if tried and sent(worker, size, **tried) is None), [])


def settings(name: str) -> dict[str, Any]:
    """What the tiny call of a pipeline says that may be about sizes."""
    from porter.parity.checkpoint import load_inputs

    return {key: value for key, value in load_inputs(name).items() if key not in SAID and plain(value)}


def plain(value: Any) -> bool:
    """Whether an argument is a setting: no picture, no tensor."""
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def small_size(pipeline: Any) -> int:
    """Height and width of 64 latents a side, at most the engine's own."""
    scales = [v for n, v in vars(pipeline).items() if n.startswith("vae_scale_factor") and isinstance(v, int)]
    return min(FULL, 64 * max(scales, default=8))


if __name__ == "__main__":
    sys.exit(main())
