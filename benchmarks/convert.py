"""Time a conversion as a user sees it: a cold process, from the command line to the written port.

    python benchmarks/convert.py [--runs 5] [--all] [--jobs 2] [-o benchmarks/results/convert.json]

Prints JSON: the median of the wall times and the largest peak of resident memory. The budget for one pipeline on two
cores is 3 s and 300 MB. ``--all`` also times every pipeline, once without the cache and once from it.
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

PIPELINE = "diffusers.QwenImageEditPipeline"
CODE = "import sys; from porter.cli import main; sys.exit(main())"


def measure(arguments: list[str], cache: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak resident megabytes of ``porter …`` (of its largest process)."""
    # As pip installs it: with bytecode. Development environments often forbid to write any.
    bytecode = {"PYTHONPYCACHEPREFIX": str(cache.parent / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    environment = {**os.environ, **bytecode, "PORTER_CACHE_DIR": str(cache)}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", CODE, *arguments], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"porter {' '.join(arguments)} failed with exit code {process.returncode}")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # Linux counts in KiB, macOS in bytes
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit


def one_pipeline(runs: int, scratch: Path) -> dict[str, Any]:
    """Cold runs of one conversion; one before them that only leaves the bytecode."""
    measure(["convert", PIPELINE, "--no-cache", "-o", str(scratch / "first")], scratch / "cache")
    found = [
        measure(["convert", PIPELINE, "--no-cache", "-o", str(scratch / f"out{run}")], scratch / "cache")
        for run in range(runs)
    ]
    wall, cpu, memory = (list(values) for values in zip(*found))
    return {
        "command": f"porter convert {PIPELINE} --no-cache",
        "wall_seconds": round(statistics.median(wall), 2),
        "cpu_seconds": round(statistics.median(cpu), 2),
        "peak_megabytes": round(max(memory), 1),
        "wall_seconds_of_each_run": [round(value, 2) for value in wall],
    }


def all_pipelines(jobs: int, scratch: Path) -> list[dict[str, Any]]:
    """Everything: converted, then from the cache."""
    found = []
    for name in ("converted", "from the cache"):
        arguments = ["convert", "--all", "--jobs", str(jobs), "-o", str(scratch / "all")]
        wall, cpu, memory = measure(arguments, scratch / "cache")
        command = f"porter convert --all --jobs {jobs}, {name}"
        figures = {"wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1), "peak_megabytes": round(memory, 1)}
        found.append({"command": command, **figures})
    return found


def environment() -> dict[str, str]:
    """What the numbers depend on."""
    packages = {name: metadata.version(name) for name in ("porter", "diffusers", "libcst")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"{os.getloadavg()[0]:.1f}"
    python = platform.python_version()
    return {"python": python, "machine": platform.machine(), "cores": str(cores), "load": load, **packages}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Time porter convert.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--all", action="store_true", help="time `porter convert --all` too")
    parser.add_argument("--jobs", type=int, default=2, help="processes of `porter convert --all`")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="porter-benchmark-") as folder:
        scratch = Path(folder)
        report: dict[str, Any] = {"environment": environment(), "results": [one_pipeline(args.runs, scratch)]}
        if args.all:
            report["results"] += all_pipelines(args.jobs, scratch)
    text = json.dumps(report, indent=2)
    print(text)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
