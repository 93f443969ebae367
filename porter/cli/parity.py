"""``porter parity``"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from porter.cli.common import (
    Failure,
    Jobs,
    Json,
    ModelsDir,
    Quiet,
    Verbose,
    bad_input,
    check_device,
    check_dtype,
    complete_pipeline,
    console,
    hush_libraries,
    hush_warnings,
    processes,
    progress_bar,
)

if TYPE_CHECKING:
    from porter.parity import ParityReport

Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="diffusers.XPipeline or XPipeline", autocompletion=complete_pipeline),
]
All = Annotated[bool, typer.Option("--all", help="every port that has a tiny checkpoint")]
Checkpoint = Annotated[
    str | None, typer.Option("--checkpoint", metavar="DIR|ID", help="a checkpoint; a tiny random one by default")
]
Engine = Annotated[str, typer.Option("--engine", metavar="porter|vllm-omni", help="what runs the port")]
Device = Annotated[str, typer.Option("--device", help="where both sides run")]
Dtype = Annotated[str, typer.Option("--dtype", help="of the weights of both sides")]
Mutate = Annotated[bool, typer.Option("--mutate", help="plant faults into the port and count those that are seen")]
Mutants = Annotated[int, typer.Option("--mutants", metavar="N", min=1, help="generic faults to plant")]
Draw = Annotated[int, typer.Option("--draw", metavar="N", min=0, help="draw N calls besides the usual ones")]
Stream = Annotated[bool, typer.Option("--stream", help="never hold both sides in memory at once")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write the report as a page")]


def parity(
    name: Name = None,
    everything: All = False,
    checkpoint: Checkpoint = None,
    engine: Engine = "porter",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    html: Html = None,
    mutate: Mutate = False,
    mutants: Mutants = 60,
    draw: Draw = 0,
    stream: Stream = False,
    models_dir: ModelsDir = None,
    jobs: Jobs = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run diffusers and a port on the same inputs and compare stage by stage: exit code 0 at parity, 1 if not."""
    _check(name, everything, checkpoint, engine, html)
    if mutate and (everything or checkpoint or html or (engine, device, dtype) != ("porter", "cpu", "float32")):
        raise Failure("--mutate takes one pipeline, its tiny checkpoint and porter's own engine: leave the rest out")
    if stream and (draw or engine != "porter"):
        raise Failure("--stream goes with porter's own engine, and not with --draw, which takes both sides at once")
    check_dtype(dtype)
    from porter.parity.imports import uncollected

    with uncollected():
        _start(engine, verbose)
        names = _names(name, models_dir)
        check_device(device)
        # With several processes this one has nothing to compute.
        jobs = processes(jobs) if everything and engine == "porter" and device == "cpu" else 1
        if jobs == 1:
            hush_libraries()
    if jobs == 1 and not verbose:
        hush_warnings()
    if mutate:
        raise typer.Exit(_mutate(names[0], mutants, models_dir, json, quiet))
    from porter.parity.checkpoint import SpecError

    options: dict[str, Any] = dict(
        checkpoint=checkpoint,
        models_dir=models_dir,
        engine=engine,
        device=device,
        dtype=dtype,
        draw=draw,
        stream=stream,
    )
    if everything:
        raise typer.Exit(_everything(names, options, jobs, json, quiet))
    from porter.parity import run_parity
    from porter.parity.html import write
    from porter.parity.report import print_report

    with bad_input(SpecError):
        report = run_parity(names[0], **options)
    if not json and not quiet:
        print_report(report, console(), verbose)
    if html is not None:
        with bad_input(OSError):
            write(report, html)
    if json:
        print(report.to_json())
    raise typer.Exit(report.exit_code)


def _everything(names: list[str], options: dict[str, Any], jobs: int, json: bool, quiet: bool) -> int:
    """Compare all these pipelines; one that cannot be compared keeps no other from it."""
    from porter.parity.many import compare_many

    with progress_bar(len(names), "comparing", quiet, "pipeline") as advance:
        reports = compare_many(names, jobs, advance, **options)
    if json:
        print(f"[{', '.join(report.to_json() for report in reports)}]")
    elif not quiet:
        _summary(reports)
    return max((report.exit_code for report in reports), default=0)


def _mutate(name: str, count: int, models_dir: Path | None, json: bool, quiet: bool) -> int:
    from porter.parity.checkpoint import SpecError
    from porter.parity.mutate import run_mutation
    from porter.parity.mutation_report import print_mutation

    with bad_input(SpecError, ValueError):
        report = run_mutation(name, count=count, models_dir=models_dir)
    if json:
        print(report.model_dump_json(indent=2))
    elif not quiet:
        print_mutation(report, console())
    return report.exit_code


def _check(name: str | None, everything: bool, checkpoint: str | None, engine: str, html: Path | None) -> None:
    if (name is not None) == everything:
        raise Failure("name a pipeline, or say --all" if name is None else "either name a pipeline or say --all")
    if everything and (checkpoint is not None or html is not None):
        raise Failure("--checkpoint and --html go with one pipeline, not with --all")
    from porter.parity.sides import ENGINES

    if engine not in ENGINES:
        raise Failure(f"--engine {engine}: there are {', '.join(ENGINES)}")
    if (
        checkpoint is not None
        and not Path(checkpoint).is_dir()
        and (checkpoint.count("/") != 1 or checkpoint[0] in "./")
    ):
        raise Failure(f"--checkpoint {checkpoint}: no such folder, and no hub id")
    if checkpoint is not None and Path(checkpoint).is_dir() and not Path(checkpoint, "model_index.json").is_file():
        raise Failure(f"--checkpoint {checkpoint}: holds no model_index.json")
    if html is not None and not html.absolute().parent.is_dir():
        raise Failure(f"--html {html}: {html.parent} is no folder")


def _start(engine: str, verbose: bool) -> None:
    if not verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from porter.omni import EngineMissing
    from porter.parity.sides import start_engine

    with bad_input(EngineMissing):
        start_engine(engine)


def _names(name: str | None, models_dir: Path | None) -> list[str]:
    from porter.listing import find_pipeline
    from porter.runtime import ModelNotFoundError
    from porter.source import SourceError, SourceTree

    if name is not None:
        with bad_input(SourceError):
            return [find_pipeline(SourceTree(), name).name]
    from porter.parity.checkpoint import available
    from porter.runtime.diffusion.registry import ModelRegistry

    with bad_input(ModelNotFoundError):
        ports = ModelRegistry(models_dir).names()
    return [each for each in ports if each in available()]


def _summary(reports: list[ParityReport]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from porter.parity.report import describe_difference, number

    table = Table(box=None, pad_edge=False)
    for heading in ("pipeline", "verdict", "cases", "largest difference", "why"):
        table.add_column(heading)
    for report in reports:
        style = "green" if report.passed else "red"
        failed = next((case for case in report.cases if not case.passed), None)
        why = report.reason or (f"{failed.name}: {describe_difference(failed)}" if failed else "")
        table.add_row(
            report.pipeline,
            f"[{style}]{report.verdict}[/{style}]",
            f"{sum(case.passed for case in report.cases)}/{len(report.cases)}",
            number(report.largest_difference),
            escape(why),
        )
    out = console()
    out.print(table)
    out.print(f"{sum(report.passed for report in reports)} of {len(reports)} at parity")
