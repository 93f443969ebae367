"""Runs one call on both sides and compares it, stage by stage."""

from __future__ import annotations

import time
from typing import Any

import torch

from porter.parity.capture import Capture, neural_components, stage_methods
from porter.parity.cases import Case
from porter.parity.compare import StageResult, compare, first_difference, largest_difference
from porter.parity.locate import Location, locate
from porter.parity.pictures import pictures
from porter.parity.recipes import decode
from porter.parity.results import CaseResult
from porter.parity.sides import Side, rejection, restored


def run_case(
    case: Case,
    recipe: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    reference: Side,
    port: Side,
    device: str = "cpu",
    done: Capture | None = None,
) -> CaseResult:
    """Run one call on the reference, then on the port; where they differ, the reference must repeat itself first.

    Args:
        case: the call.
        recipe: of its arguments.
        tensors: what recipes name.
        reference: diffusers.
        port: what is compared with it.
        device: where both run.
        done: what the reference did, if it has run already and was left as it had been before.
    """
    methods = stage_methods(reference.pipeline) & stage_methods(port.pipeline)
    result = CaseResult(name=case.name, description=case.describe(), verdict="parity")
    before = dict(vars(reference.pipeline))
    started = time.perf_counter()
    first = done or reference.run(decode(recipe, tensors), methods, case.first_call_only)
    result.seconds_reference = time.perf_counter() - started
    result.reference_error, result.stopped = rejection(first.error), first.stopped
    started = time.perf_counter()
    theirs = port.run(decode(recipe, tensors), methods, case.first_call_only)
    result.seconds_port = time.perf_counter() - started
    result.port_error = rejection(theirs.error)
    _judge(result, first, theirs, reference, port, device)
    if result.verdict == "differs":
        with restored(reference.pipeline, before):
            second = reference.run(decode(recipe, tensors), methods, case.first_call_only)
        unsteady = first_difference([stage for stage in compare(first, second) if stage.verdict != "not a number"])
        if unsteady or rejection(first.error) != rejection(second.error):
            result.verdict, result.first_difference = "reference not repeatable", unsteady
    return result


def _judge(result: CaseResult, first: Capture, theirs: Capture, reference: Side, port: Side, device: str) -> None:
    """Fill in how the port's run compares with the reference's."""
    if first.error is not None:
        alike = theirs.error is not None and result.reference_error in result.port_error
        result.verdict = "rejected alike" if alike else "differs"
        return
    result.stages = compare(first, theirs, device)
    result.largest_difference = largest_difference(result.stages)
    result.unobserved = sorted({stage.stage for stage in result.stages if stage.verdict == "unobserved"})
    result.unobserved += sorted(stage_methods(reference.pipeline) - stage_methods(port.pipeline))
    result.first_difference = first_difference(result.stages)
    if result.first_difference is not None or theirs.error is not None:
        result.verdict = "differs"
        result.location = _locate(result.first_difference, first, reference, port)
    elif first.stopped:
        result.verdict = "begun"
    result.pictures = pictures(first, theirs)


def _locate(found: StageResult | None, record: Capture, reference: Side, port: Side) -> Location | None:
    """Look inside the component whose result differs though its arguments were equal."""
    if found is None or found.kind != "component" or found.verdict != "differs" or found.arguments_differ:
        return None
    event = next(event for event in record.events if event.stage == found.stage)
    mine, its = neural_components(reference.pipeline), neural_components(port.pipeline)
    if event.raw is None or event.name not in mine or event.name not in its:
        return None
    return locate(mine[event.name], its[event.name], event.raw)
