"""Runs diffusers and a port side by side and reports whether they compute the same."""

from __future__ import annotations

import contextlib
import functools
import platform
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from porter.parity import checkpoint as checkpoints
from porter.parity import spec as specs
from porter.parity.alone import ALONE, check_alone, variations
from porter.parity.areas import small_areas
from porter.parity.beside import Beside
from porter.parity.calls import all_calls
from porter.parity.capture import stage_methods
from porter.parity.cases import HALF, Case, half_cases
from porter.parity.drawn import computes_nothing, draw_cases, snippet
from porter.parity.imports import uncollected
from porter.parity.one_call import run_case
from porter.parity.other_checkpoints import OTHER, check_other, other_checkpoints
from porter.parity.other_specs import other_specs
from porter.parity.pairs import Pairs
from porter.parity.recipes import decode
from porter.parity.relations import BESIDE_OTHERS, check_beside_others, check_relations
from porter.parity.results import CaseResult, ParityReport
from porter.parity.sides import PortSide, Reference, Side, port_side, rejection, restored, start_engine
from porter.parity.streamed import run_streamed
from porter.parity.tables import TABLES, check_tables
from porter.parity.weight_check import check_weights

# What drawn calls draw besides single precision.
_DRAWN_DTYPES = ("bfloat16", "float16")
_PACKAGES = ("porter", "torch", "diffusers", "transformers", "safetensors", "numpy", "vllm", "vllm-omni")


def run_parity(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    models_dir: str | Path | None = None,
    engine: str = "porter",
    device: str = "cpu",
    dtype: str = "float32",
    cases: Sequence[str] | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    extra_cases: Sequence[Case] = (),
    draw: int = 0,
    stream: bool = False,
) -> ParityReport:
    """Compare the port of pipeline ``name`` with diffusers, stage by stage, over all cases that apply.

    Args:
        name: the pipeline class, with or without ``diffusers.`` in front.
        checkpoint: a checkpoint folder; None: a tiny random one is built from the pipeline's spec.
        models_dir: folder of ports as ``porter convert -o`` writes it; None: the committed ones.
        engine: what runs the port: ``porter``, or ``vllm-omni`` in an environment that has it.
        device: where both sides run.
        dtype: of the weights on both sides.
        cases: names of the cases to run; None: all.
        root: folder of specs outside the project.
        seed: of the random weights.
        threads: of torch, on both sides; None: one for a tiny checkpoint (more only get in each other's way, above all
            on a busy machine), torch's own choice for a given one.
        extra_cases: calls besides those that follow from the signature and the spec.
        draw: number of calls to draw besides, at most two minutes long; the smallest one that fails is reported.
            Relations between runs of the port are checked with them.
        stream: whether the reference is run first, its stages written to disk, and let go before the port is loaded,
            so that the two are never in memory at once. With the engine ``porter``, and without drawn calls.

    Raises:
        SpecError: the spec is malformed, a named case does not exist, or the checkpoint is of another class, not
            whole, or pickled.
    """
    name = name.removeprefix("diffusers.")
    started = time.perf_counter()
    report = ParityReport(
        pipeline=name,
        verdict="parity",
        device=device,
        dtype=dtype,
        environment=_environment(),
        command=_command(
            name,
            checkpoint=checkpoint,
            engine="" if engine == "porter" else engine,
            device="" if device == "cpu" else device,
            dtype="" if dtype == "float32" else dtype,
            stream=stream,
            draw=draw,
            **{"models-dir": models_dir},
        ),
    )
    start_engine(engine)
    if name not in specs.available(root):
        report.verdict = "not tested (no checkpoint)"
        report.reason = f"no tiny checkpoint for {name}; available: porter.parity.checkpoint.available()"
        return report
    if checkpoint is not None and Path(checkpoint).is_dir():
        checkpoints.check(checkpoint, name)
    if threads is None and checkpoint is None:
        threads = 1
    with threads_set(threads), tempfile.TemporaryDirectory(prefix="porter-parity-") as scratch:
        report.environment["threads"] = str(torch.get_num_threads())
        with uncollected():  # the classes of the components are imported here
            folder = Path(checkpoint) if checkpoint else checkpoints.build(name, Path(scratch) / name, seed, root)
        spec = specs.read(name, root)
        if stream:
            _stream(report, folder, models_dir, cases, spec, extra_cases)
        else:
            tiny = checkpoint is None and (engine, dtype) == ("porter", "float32")
            _run(report, folder, models_dir, engine, cases, spec, extra_cases, draw, tiny)
        if report.verdict == "parity":
            _conclude(report)
    report.seconds = time.perf_counter() - started
    return report


def _run(
    report: ParityReport,
    folder: Path,
    models_dir: str | Path | None,
    engine: str,
    wanted: Sequence[str] | None,
    spec: specs.Spec,
    extra: Sequence[Case],
    draw: int,
    tiny: bool,
) -> None:
    def load_reference(dtype: str) -> Reference:
        return Reference(folder, report.device, getattr(torch, dtype))

    def load_port(dtype: str) -> PortSide:
        return port_side(engine, folder, models_dir, report.device, dtype)

    try:
        reference = load_reference(report.dtype)
    except Exception as error:
        report.verdict, report.reason = "reference does not load", rejection(error)
        return
    tensors = load_tensors(spec)
    try:
        port = load_port(report.dtype)
    except Exception as error:
        report.verdict, report.reason = "port does not load", f"{type(error).__name__}: {rejection(error)}"
        return
    pairs = Pairs((reference, port), load_reference, load_port)
    load = functools.partial(port_side, engine, models_dir=models_dir, device=report.device, dtype=report.dtype)

    def run(case: Case) -> CaseResult:
        return run_in(pairs, case, case.recipe(spec.inputs), tensors, report.device)

    with contextlib.closing(pairs):
        report.weights = check_weights(reference.pipeline, port.pipeline)
        beyond = _beyond(spec, reference.pipeline, wanted) if tiny else []
        further = tiny and (wanted is None or bool(set(beyond).difference(BESIDE_OTHERS).intersection(wanted)))
        cases = all_calls(reference, spec, tensors, extra, getattr(port.pipeline, "dropped_arguments", ()))
        cases = _choose(cases + (half_cases(cases) if tiny else []), wanted, beyond)
        full = [case for case in cases if not case.name.startswith(HALF)]
        half = [case for case in cases if case.name.startswith(HALF)]

        def apart() -> list[CaseResult]:
            found = [result for result in map(run, half) if not _says_nothing(result)]
            return found + (_apart(reference, port.pipeline, spec, tensors, folder, load, wanted) if further else [])

        aside = bool(half) or further
        with Beside(apart, aside and report.device == "cpu") as beside:
            report.cases += map(run, full)
            if tiny:
                with small_areas(reference.pipeline, port.pipeline):
                    report.cases += check_beside_others(spec.inputs, tensors, reference, port, wanted)
            held = check_tables(reference.pipeline, port.pipeline) if wanted is None or TABLES in wanted else None
            report.cases += beside.result() if aside else []
            report.cases += [held] if held is not None else []
            if draw:
                with small_areas(reference.pipeline, port.pipeline):
                    report.cases += check_relations(spec.inputs, tensors, reference, port, load)
                _draw(report, spec, reference, run, draw, _DRAWN_DTYPES if tiny else ())


def _apart(
    reference: Reference,
    port: Any,
    spec: specs.Spec,
    tensors: dict[str, torch.Tensor],
    folder: Path,
    load: Callable[[Path], PortSide],
    wanted: Sequence[str] | None,
) -> list[CaseResult]:
    """What is tried besides the calls of the tiny checkpoint: its denoisers by themselves, and other checkpoints."""
    results: list[CaseResult | None] = []
    if wanted is None or ALONE in wanted:
        with small_areas(reference.pipeline), restored(reference.pipeline, dict(vars(reference.pipeline))):
            seen = reference.run(decode(spec.inputs, tensors), set())
        results.append(check_alone(variations(reference, seen), port))
    names = None if wanted is None else [name for name in wanted if name.startswith(OTHER)]
    if names is None or names:
        methods = stage_methods(reference.pipeline) & stage_methods(port)
        others = other_checkpoints(spec, reference.pipeline, tensors, folder, folder.parent, methods, names)
        results += [check_other(other, tensors, load) for other in others]
    return [result for result in results if result is not None]


def _says_nothing(half: CaseResult) -> bool:
    """Whether diffusers itself does not run a call in half precision."""
    return half.verdict == "rejected alike" or computes_nothing(half)


def run_in(
    pairs: Pairs, case: Case, recipe: dict[str, Any], tensors: dict[str, torch.Tensor], device: str
) -> CaseResult:
    """Run one call on both sides, in the dtype that it asks for."""
    pair = pairs.of(case.dtype)
    if isinstance(pair, CaseResult):
        return pair.model_copy(update={"name": case.name, "description": case.describe()})
    with small_areas(*(side.pipeline for side in pair)):
        return run_case(case, recipe, tensors, *pair, device)


def _stream(
    report: ParityReport,
    folder: Path,
    models_dir: str | Path | None,
    wanted: Sequence[str] | None,
    spec: specs.Spec,
    extra: Sequence[Case],
) -> None:
    """As :func:`_run`, one side after the other."""
    run_streamed(report, folder, models_dir, spec, load_tensors(spec), lambda cases: _choose(cases, wanted, []), extra)


def _conclude(report: ParityReport) -> None:
    """The verdict on all cases and weights."""
    computed = [case for case in report.cases if case.name != TABLES]
    verdicts = {case.verdict for case in computed}
    if report.weights is not None and not report.weights.passed:
        report.verdict, report.reason = "differs", f"weights: {report.weights.summary()}"
    elif any(case.verdict == "differs" for case in report.cases):
        report.verdict = "differs"
    elif "reference not repeatable" in verdicts:
        report.verdict = "reference not repeatable"
    elif "begun" in verdicts and "parity" not in verdicts:
        report.verdict = "begun"
        report.reason = "no call was compared to its end: give smaller sizes, or leave the choice of cases out"
    elif computed and "parity" not in verdicts:
        report.verdict = "reference refuses all calls"
        report.reason = f"nothing was computed: {computed[0].reference_error}"


def _draw(
    report: ParityReport,
    spec: specs.Spec,
    reference: Side,
    run: Callable[[Case], CaseResult],
    count: int,
    dtypes: Sequence[str],
) -> None:
    """Try drawn calls; the smallest that fails is a case of the report, with Python that runs it again."""

    def counted(case: Case) -> CaseResult:
        result = run(case)
        report.drawn += 1
        report.undecided += computes_nothing(result)
        return result

    found, case = draw_cases(type(reference.pipeline).__call__, spec.inputs, counted, count, dtypes=dtypes)
    if found is not None and case is not None:
        report.cases.append(found)
        report.reproduce = snippet(report.pipeline, case)


def _beyond(spec: specs.Spec, pipeline: Any, wanted: Sequence[str] | None) -> list[str]:
    """Names of the cases that are no calls of the tiny checkpoint; other checkpoints only where they are asked for."""
    others = any(name.startswith(OTHER) for name in wanted or ())
    return [*BESIDE_OTHERS, ALONE, *(OTHER + label for label, _ in (other_specs(spec, pipeline) if others else ()))]


def _choose(cases: list[Case], wanted: Sequence[str] | None, beyond: Sequence[str]) -> list[Case]:
    """The calls that are wanted.

    Args:
        cases: all calls.
        wanted: names of cases; None: all.
        beyond: names of cases that are no calls.

    Raises:
        SpecError: there is no such case.
    """
    if wanted is None:
        return cases
    known = [*(case.name for case in cases), TABLES, *beyond]
    if unknown := set(wanted).difference(known):
        names = ", ".join(map(repr, known))
        raise specs.SpecError(f"no such case: {', '.join(sorted(unknown))}; there are {names}")
    return [case for case in cases if case.name in wanted]


def load_tensors(spec: specs.Spec) -> dict[str, torch.Tensor]:
    """The input values that a spec stores rather than draws."""
    from safetensors.torch import load_file

    return load_file(spec.tensors) if spec.tensors else {}


@contextlib.contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Give torch this number of threads for the block; None: leave them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _command(name: str, **options: Any) -> str:
    """The command line that makes the report again, of what is not the default."""
    words = ["porter", "parity", name]
    for option, value in options.items():
        if value is True:
            words.append(f"--{option}")
        elif value:
            words += [f"--{option}", str(value)]
    return shlex.join(words)
