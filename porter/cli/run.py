"""``porter run``"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from porter.cli.common import Failure, Json, ModelsDir, Quiet, bad_input, check_dtype, complain, hush_libraries
from porter.cli.model_options import (
    AttentionBackend,
    BoundaryRatio,
    CallKwargs,
    Device,
    Dtype,
    FlowShift,
    LoadFormat,
    LoadKwargs,
    ModelClass,
    Revision,
    settings,
    silence_pipeline,
)
from porter.cli.native_port import ports_for
from porter.cli.run_requests import DEFAULT_NAMES, OUTPUT_SUFFIXES, Wanted, from_file, from_options, to_request

Model = Annotated[str, typer.Argument(metavar="MODEL", help="a checkpoint folder, or a hub id")]
Prompt = Annotated[list[str] | None, typer.Option("--prompt", help="what to make; each one more is a request more")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="what to keep away from")]
Batch = Annotated[
    Path | None,
    typer.Option(
        "--batch", metavar="FILE", help='JSONL: {"prompt": …, "seed": …, "image": FILE, "output": FILE, …} a line'
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option("--image", metavar="[NAME=]FILE", help="a picture; NAME is its parameter, if not the first one"),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=JSON", help="any other parameter of the pipeline")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help=".png, .webp, .mp4 or .wav, as the pipeline makes; numbered"),
]


def run(
    model: Model,
    prompt: Prompt = None,
    negative_prompt: Negative = None,
    batch: Batch = None,
    image: Images = None,
    height: Annotated[int | None, typer.Option("--height", min=1)] = None,
    width: Annotated[int | None, typer.Option("--width", min=1)] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="of a video")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="denoising steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option("--guidance-scale")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="same seed, same result")] = None,
    set_: Settings = None,
    output: Output = None,
    models_dir: ModelsDir = None,
    device: Device = None,
    dtype: Dtype = None,
    load_format: LoadFormat = "default",
    load_kwargs: LoadKwargs = None,
    call_kwargs: CallKwargs = None,
    attention_backend: AttentionBackend = None,
    boundary_ratio: BoundaryRatio = None,
    flow_shift: FlowShift = None,
    model_class: ModelClass = None,
    revision: Revision = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate with a port, or with diffusers itself, and save the results."""
    check_dtype(dtype)
    check_output("--output", output)
    engine = settings(load_format, load_kwargs, call_kwargs, attention_backend, boundary_ratio, flow_shift)
    given: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "num_frames": frames,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
    }
    given = {name: value for name, value in given.items() if value is not None}
    wanted = from_options(prompt or [], given, _settings(set_ or []), image or [], seed)
    if batch is not None:
        if prompt:
            raise Failure("--prompt: the prompts are in the file that --batch names")
        wanted = from_file(batch, wanted[0])
    for item in wanted:
        check_output(f"{item.where}: output", item.output)
    # Importing torch takes seconds; what is wrong with the arguments is said before.
    from porter.cli.schema import RequestResult, RunOutput, print_model
    from porter.runtime import Omni, PorterRuntimeError

    hush_libraries()
    with bad_input(PorterRuntimeError):
        omni = Omni(
            model=model,
            models_dir=ports_for(model, models_dir, load_format, model_class, revision, quiet),
            device=device,
            dtype=dtype,
            model_class_name=model_class,
            revision=revision,
            **engine,
        )
    silence_pipeline(omni)
    requests = [to_request(item, omni) for item in wanted]
    results: list[RequestResult] = []
    with _progress(len(wanted), quiet or json) as on_step:
        for number, (item, request) in enumerate(zip(wanted, requests, strict=True)):
            try:
                written = _one(
                    omni, model, item, request, _place(omni, output, item, number, len(wanted)), on_step(number)
                )
            except Failure as failure:
                if len(wanted) == 1:
                    raise
                complain(f"{item.where or f'prompt {number + 1}'}: {failure}")
                results.append(RequestResult(arguments=item.arguments, seed=item.seed, error=str(failure)))
                continue
            results.append(RequestResult(files=list(map(str, written)), arguments=item.arguments, seed=item.seed))
            if not quiet and not json:
                for path in written:
                    print(path, flush=True)
    if json:
        print_model(RunOutput(model=model, pipeline=omni.name, requests=results))
    failures = sum(bool(result.error) for result in results)
    if failures:
        raise Failure(f"{failures} of {len(wanted)} requests failed")


def _one(
    omni: Any, model: str, wanted: Wanted, request: Any, place: Path, on_step: Callable[..., None] | None
) -> list[Path]:
    """Run a request and save its result."""
    from porter.cli.save import save
    from porter.runtime import PorterRuntimeError
    from porter.runtime.entrypoints.rates import fill_rates

    prompt, params = request
    # What a pipeline refuses, it refuses with a ValueError (or a TypeError) of diffusers' own.
    with bad_input(PorterRuntimeError, ValueError, TypeError):
        [result] = omni.generate(prompt, params, on_step=on_step and (lambda _, done, total: on_step(done, total)))
    fill_rates(result, omni, wanted.arguments)
    parameters = {"model": model, "pipeline": omni.name, **wanted.arguments, "seed": wanted.seed}
    with bad_input(ValueError, OSError):
        return save(result, place, {name: value for name, value in parameters.items() if value is not None})


def _place(omni: Any, output: Path | None, wanted: Wanted, number: int, count: int) -> Path:
    if wanted.output is not None:
        return wanted.output
    place = output or Path(DEFAULT_NAMES[omni.kind])
    return place if count == 1 else place.with_stem(f"{place.stem}_{number + 1:0{len(str(count))}d}")


@contextlib.contextmanager
def _progress(count: int, quiet: bool) -> Iterator[Callable[[int], Callable[[int, int | None], None] | None]]:
    """A bar on stderr that counts the steps of each request, if stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda number: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def start(number: int) -> Callable[[int, int | None], None]:
            for task in list(bar.task_ids):
                bar.remove_task(task)
            task = bar.add_task(f"request {number + 1} of {count}, steps" if count > 1 else "steps", total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield start


def check_output(option: str, output: Path | None) -> None:
    """Refuse an output file that cannot be written, before anything is loaded."""
    if output is None:
        return
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise Failure(f"{option} {output}: name a file in {', '.join(OUTPUT_SUFFIXES)}")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise Failure(f"{option} {output}: {folder} is no folder")
    if output.is_dir() or not os.access(folder, os.W_OK):
        raise Failure(f"{option} {output}: cannot be written")


def _settings(settings: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in settings:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise Failure(f"--set {item}: write it as NAME=JSON")
        if name in found:
            raise Failure(f"--set {name}: given twice")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError as error:
            raise Failure(f"--set {name}: {text!r} is not JSON ({error.msg}); a string needs its quotes") from error
    return found
