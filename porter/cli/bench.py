"""``porter bench``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from porter.cli.common import (
    Failure,
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
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="diffusers.XPipeline or XPipeline", autocompletion=complete_pipeline)
]
Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", metavar="DIR", help="a checkpoint; a tiny random one by default")
]
Device = Annotated[str, typer.Option("--device", help="where both sides run")]
Dtype = Annotated[str, typer.Option("--dtype", help="of the weights of both sides")]
Runs = Annotated[int, typer.Option("--runs", min=1, help="of each side, after one that does not count")]
Compiled = Annotated[bool, typer.Option("--compiled", help="measure with torch.compile of the denoiser too")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="denoising steps of a call")]
Pictures = Annotated[bool, typer.Option("--pictures", help="with --json: the first picture of each side too")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="write the picture, an SVG")]


def bench(
    name: Name,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    runs: Runs = 5,
    steps: Steps = None,
    compiled: Compiled = False,
    plot: Plot = None,
    pictures: Pictures = False,
    models_dir: ModelsDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time diffusers and a port by turns: a step of the denoiser, a whole call, the peak of memory."""
    check_dtype(dtype)
    check_device(device)
    if checkpoint is not None and not (checkpoint / "model_index.json").is_file():
        raise Failure(f"--checkpoint {checkpoint}: there is no model_index.json; name a folder in diffusers' layout")
    if plot is not None and not plot.resolve().parent.is_dir():
        raise Failure(f"--plot {plot}: there is no folder {plot.parent}")
    hush_libraries()
    if not verbose:
        hush_warnings()
    from porter.bench.measure import bench as measure
    from porter.bench.plot import write_plot
    from porter.parity.checkpoint import SpecError
    from porter.runtime.errors import ModelNotFoundError

    with bad_input(SpecError, ModelNotFoundError):
        report = measure(
            name,
            checkpoint=checkpoint,
            models_dir=models_dir,
            device=device,
            dtype=dtype,
            runs=runs,
            compiled=compiled,
            with_pictures=pictures,
            arguments={} if steps is None else {"num_inference_steps": steps},
        )
    if plot is not None:
        with bad_input(OSError):
            write_plot(report, plot)
    if json:
        from porter.cli.schema import print_model

        print_model(report)
    if json or quiet:
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "", "diffusers", "port", "port / diffusers"):
        table.add_column(heading)
    for mode in report.modes:
        for each in mode.quantities:
            sides = [f"{t.median:.4g} {each.unit} [{t.low:.4g}, {t.high:.4g}]" for t in (each.diffusers, each.port)]
            table.add_row(each.name, mode.mode, *sides, f"{each.ratio:.3f}")
    print(f"{report.pipeline}, {report.checkpoint}, {report.machine}, {report.dtype}, {report.threads} threads")
    console().print(table)
    print(f"median [quartiles] of {report.runs} runs by turns; memory: {report.memory}")
