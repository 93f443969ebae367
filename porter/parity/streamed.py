"""A comparison in which reference and port are never in memory at once: for checkpoints that fill it."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import torch

from porter.parity.areas import small_areas
from porter.parity.calls import all_calls
from porter.parity.capture import Capture, stage_methods
from porter.parity.cases import Case
from porter.parity.compare import compare, first_difference, largest_difference
from porter.parity.recipes import decode
from porter.parity.results import CaseResult, ParityReport
from porter.parity.sides import Port, Reference, rejection
from porter.parity.spec import Spec
from porter.parity.stored import Comparing, store, store_weights, stored_weights
from porter.parity.weight_check import check_against

Choose = Callable[[list[Case]], list[Case]]


def run_streamed(
    report: ParityReport,
    folder: Path,
    models_dir: str | Path | None,
    spec: Spec,
    tensors: dict[str, torch.Tensor],
    choose: Choose,
    extra: Sequence[Case] = (),
) -> None:
    """Run the reference, write what it did, let it go; then run the port and compare it as it runs.

    The report gets cases and weights. Where inside a component a difference starts is not looked for: that takes both.
    On disk there is room for the weights once more, and for what every stage takes and gives.

    Args:
        report: to fill in.
        folder: the checkpoint.
        models_dir: folder of ports; None: the committed ones.
        spec: of the pipeline: its call is what is run.
        tensors: what recipes name.
        choose: of the cases, those to run.
        extra: cases besides.
    """
    with tempfile.TemporaryDirectory(prefix="porter-stages-") as scratch:
        held = Path(scratch)
        try:
            reference = Reference(folder, report.device, getattr(torch, report.dtype))
        except Exception as error:
            report.verdict, report.reason = "reference does not load", rejection(error)
            return
        stages, chosen, methods = _run_reference(reference, spec, tensors, choose, extra, held)
        del reference
        gc.collect()
        try:
            port = Port(folder, models_dir, report.device, report.dtype)
        except Exception as error:
            report.verdict, report.reason = "port does not load", f"{type(error).__name__}: {rejection(error)}"
            return
        report.weights = check_against(stored_weights(held / "weights"), port.pipeline)
        dropped = set(getattr(port.pipeline, "dropped_arguments", ()))
        with small_areas(port.pipeline):
            for case in chosen:
                if not dropped & set(case.changes):
                    result, first = stages[case.name]
                    report.cases.append(_run_port(result, case, first, port, spec, tensors, methods, report.device))


def _run_reference(
    reference: Reference,
    spec: Spec,
    tensors: dict[str, torch.Tensor],
    choose: Choose,
    extra: Sequence[Case],
    held: Path,
) -> tuple[dict[str, tuple[CaseResult, Capture]], list[Case], AbstractSet[str]]:
    """Results to be, and what diffusers did, by case; the cases; the methods that were watched."""
    methods = stage_methods(reference.pipeline)
    store_weights(reference.pipeline, held / "weights")
    chosen = choose(all_calls(reference, spec, tensors, extra))
    found: dict[str, tuple[CaseResult, Capture]] = {}
    with small_areas(reference.pipeline):
        for number, case in enumerate(chosen):
            started = time.perf_counter()
            first = reference.run(decode(case.recipe(spec.inputs), tensors), methods, case.first_call_only)
            result = CaseResult(name=case.name, description=case.describe(), verdict="parity")
            result.seconds_reference = time.perf_counter() - started
            result.reference_error, result.stopped = rejection(first.error), first.stopped
            kept = store(first, held / str(number))
            if number == 0:  # it cannot be run again once it is gone
                second = reference.run(decode(case.recipe(spec.inputs), tensors), methods, case.first_call_only)
                unsteady = first_difference([s for s in compare(kept, second) if s.verdict != "not a number"])
                if unsteady is not None:
                    result.verdict, result.first_difference = "reference not repeatable", unsteady
            found[case.name] = result, kept
    return found, chosen, methods


def _run_port(
    result: CaseResult,
    case: Case,
    first: Capture,
    port: Port,
    spec: Spec,
    tensors: dict[str, torch.Tensor],
    methods: AbstractSet[str],
    device: str,
) -> CaseResult:
    """The result of one call, filled in."""
    if result.verdict != "parity":
        return result
    own = stage_methods(port.pipeline)
    first.events = [event for event in first.events if event.name not in methods - own]
    comparing = Comparing(first, device)
    started = time.perf_counter()
    kwargs = decode(case.recipe(spec.inputs), tensors)
    theirs = port.run(kwargs, methods & own, case.first_call_only, comparing)
    result.seconds_port = time.perf_counter() - started
    result.port_error = rejection(theirs.error)
    if first.error is not None:
        alike = theirs.error is not None and result.reference_error in result.port_error
        result.verdict = "rejected alike" if alike else "differs"
        return result
    result.stages = compare(first, theirs, device, comparing.done)
    result.largest_difference = largest_difference(result.stages)
    result.unobserved = sorted({s.stage for s in result.stages if s.verdict == "unobserved"} | (methods - own))
    result.first_difference = first_difference(result.stages)
    if result.first_difference is not None or theirs.error is not None:
        result.verdict = "differs"
    elif result.stopped or theirs.stopped:
        result.verdict, result.stopped = "begun", True
    return result
