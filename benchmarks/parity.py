"""Time a comparison as a user sees it, and how much of it is comparing rather than running both sides.

    python benchmarks/parity.py [--pipeline NAME] [--runs 3] [-o benchmarks/results/parity.json]

``porter parity NAME`` is run as a cold process, with the tiny checkpoint and all calls. Then, in one process, every
call is run on both sides without being watched, and at once again compared: the difference of the medians is what
watching and comparing cost. CPU seconds are told beside wall seconds, since a busy machine stretches the latter. The
budget is 10 s, and a tenth of the time of running both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

CODE = "import sys; from porter.cli import main; sys.exit(main())"


def process(name: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak resident megabytes of ``porter parity``."""
    started = time.perf_counter()
    running = subprocess.Popen([sys.executable, "-c", CODE, "parity", name], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise SystemExit(f"porter parity {name} failed with exit code {running.returncode}")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # Linux counts in KiB, macOS in bytes
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit


def inside(name: str, passes: int = 21) -> dict[str, float]:
    """CPU seconds of running both sides of all calls, and of comparing them as well."""
    import torch

    from porter.cli.common import hush_libraries, hush_warnings
    from porter.parity import checkpoint, spec
    from porter.parity.areas import small_areas
    from porter.parity.calls import all_calls
    from porter.parity.cases import Case
    from porter.parity.imports import uncollected
    from porter.parity.one_call import run_case
    from porter.parity.recipes import decode
    from porter.parity.request import to_request
    from porter.parity.run import load_tensors
    from porter.parity.sides import Port, Reference

    hush_libraries()
    hush_warnings()
    torch.set_num_threads(1)
    held = spec.read(name)
    tensors = load_tensors(held)
    with tempfile.TemporaryDirectory(prefix="porter-bench-") as scratch:
        with uncollected():  # as the command itself does
            folder = checkpoint.build(name, Path(scratch) / name)
        reference, port = Reference(folder, "cpu", torch.float32), Port(folder, None, "cpu", "float32")
        dropped = getattr(port.pipeline, "dropped_arguments", ())
        cases = [case for case in all_calls(reference, held, tensors, (), dropped) if not case.first_call_only]

        def bare(case: Case) -> None:
            for call in (
                lambda kwargs: reference.pipeline(**kwargs, return_dict=False),
                lambda kwargs: port.omni.generate(*to_request(kwargs)),
            ):
                try:
                    call(decode(case.recipe(held.inputs), tensors))
                except Exception:  # noqa: BLE001, S112 - a refusal costs what it costs
                    continue

        def compared(case: Case) -> None:
            run_case(case, case.recipe(held.inputs), tensors, reference, port)

        seconds: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
        with small_areas(reference.pipeline, port.pipeline):
            for turn in range(passes + 1):
                for case in cases:  # one beside the other: the machine is not always as fast
                    both = cpu(lambda: bare(case)), cpu(lambda: compared(case))  # noqa: B023 - called at once
                    if turn:
                        seconds[case.name].append(both)
    running = sum(statistics.median(a for a, _ in pairs) for pairs in seconds.values())
    comparing_too = sum(statistics.median(b for _, b in pairs) for pairs in seconds.values())
    share = comparing_too / running - 1
    return {"running": running, "comparing_too": comparing_too, "calls": len(cases), "share": share}


def cpu(action: Any) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pipeline", default="FluxPipeline")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    wall, seconds, memory = (list(values) for values in zip(*(process(args.pipeline) for _ in range(args.runs))))
    result = {
        "command": f"porter parity {args.pipeline}",
        "wall_seconds": round(statistics.median(wall), 2),
        "cpu_seconds": round(statistics.median(seconds), 2),
        "peak_megabytes": round(max(memory), 1),
        "inside": {key: round(value, 3) for key, value in inside(args.pipeline).items()},
        "machine": {
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("torch", "diffusers")},
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
