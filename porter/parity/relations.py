"""What must hold of a port whatever diffusers says: two runs of it that have to agree.

A relation that diffusers' own pipeline does not keep (prompts that are padded to the longest of a batch, say) is no
property of the pipeline, and is not asked of the port.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from porter.parity.cases import GUIDANCE, OFF, ON, SECOND_PROMPT
from porter.parity.flatten import to_numpy
from porter.parity.held import hoisting
from porter.parity.recipes import decode
from porter.parity.results import CaseResult
from porter.parity.sides import Port, Side
from porter.parity.turns import can_take_turns, in_a_batch, in_turns, same_leaves, takes_batches

Leaves = Mapping[str, Any]

TURNS = "requests in turns are as each alone"
HELD = "what is held for the steps is as computed in each"
BATCH = "requests in a batch are as each alone"
BESIDE_OTHERS = (TURNS, HELD, BATCH)
"""Relations that every comparison with a tiny checkpoint looks at; the others go with drawn calls."""

# Kernels sum in another order when a batch is larger; a mistake is larger by orders of magnitude.
_BATCH_TOLERANCE = 1e-4


def check_beside_others(
    inputs: Mapping[str, Any],
    tensors: dict[str, torch.Tensor],
    reference: Side,
    port: Side,
    wanted: Collection[str] | None = None,
) -> list[CaseResult]:
    """One result per relation between a request's run by itself and beside others, in porter's own engine.

    Args:
        inputs: recipe of the plain call.
        tensors: what recipes name.
        reference: diffusers.
        port: the port.
        wanted: names of relations; None: all.
    """
    if not isinstance(port, Port):
        return []
    first, second = _two_calls(inputs)
    alike = another(first)

    def turns(side: Side) -> bool:
        # The longest one goes on when the others set up their steps; these have latents of the same form.
        calls = [unlike(side, second, tensors), first, alike]
        alone = [_output(side, recipe, tensors) for recipe in calls]
        if not isinstance(side, Port):
            return True
        together = in_turns(side, [decode(dict(recipe), tensors) for recipe in calls])
        return all(map(same_leaves, alone, together))

    def held(side: Side) -> bool:
        with hoisting("0"):
            plain = _output(side, first, tensors)
        with hoisting(None):
            return same_leaves(plain, _output(side, first, tensors))

    def batch(side: Side) -> bool:
        calls = [first, alike]
        alone = [_output(side, recipe, tensors) for recipe in calls]
        if not isinstance(side, Port):
            return True  # the port says that it is so
        together = in_a_batch(side, [decode(dict(recipe), tensors) for recipe in calls])
        return all(_near(one[name], [other[name]]) for one, other in zip(together, alone, strict=True) for name in one)

    relations = {TURNS: turns, HELD: held} if can_take_turns(port) else {}
    if takes_batches(port) and isinstance(first.get("prompt"), str) and "generator" in first:
        relations[BATCH] = batch
    chosen = [name for name in relations if wanted is None or name in wanted]
    results = [_judge(name, relations[name], reference, port) for name in chosen]
    return [result for result in results if result is not None]


def check_relations(
    inputs: Mapping[str, Any],
    tensors: dict[str, torch.Tensor],
    reference: Side,
    port: Side,
    load: Callable[[Path], Side],
) -> list[CaseResult]:
    """One result per relation between several requests, or several ports, that can be asked of the pipeline.

    Args:
        inputs: recipe of the plain call.
        tensors: what recipes name.
        reference: diffusers.
        port: the port.
        load: makes the port of a checkpoint folder.
    """
    first, second = _two_calls(inputs)
    output = functools.partial(_output, tensors=tensors)

    def order(side: Side) -> bool:
        one = [output(side, first), output(side, second)]
        other = [output(side, second), output(side, first)]
        return all(map(same_leaves, one, reversed(other)))

    def batch(side: Side) -> bool:
        prompts = [first["prompt"], SECOND_PROMPT]
        seeds = [{"$generator": 1}, {"$generator": 2}]
        negative = first.get("negative_prompt")
        both = {**first, "prompt": prompts, "generator": seeds}
        if isinstance(negative, str):
            both["negative_prompt"] = [negative, negative]
        whole = output(side, both)
        parts = [output(side, {**first, "prompt": p, "generator": s}) for p, s in zip(prompts, seeds, strict=True)]
        return all(_near(whole[name], [part[name] for part in parts]) for name in whole)

    def reloaded(_: Side) -> bool:
        with tempfile.TemporaryDirectory(prefix="porter-saved-") as folder:
            reference.pipeline.save_pretrained(folder)
            return same_leaves(output(port, first), output(load(Path(folder)), first))

    results = [_judge("the order of requests does not matter", order, reference, port)]
    if isinstance(first.get("prompt"), str) and "generator" in first:
        results.append(_judge("a batch of two is two singles", batch, reference, port))
    results.append(_judge("saved and reloaded is as before", reloaded, reference, port))
    return [result for result in results if result is not None]


def _two_calls(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipes of the plain call, and of one with another text and more steps; what both give is not rounded."""
    first = {**inputs, **({"output_type": "np"} if inputs.get("output_type") == "pil" else {})}
    second = {**first}
    if isinstance(first.get("prompt"), str):
        second["prompt"] = SECOND_PROMPT
    if isinstance(first.get("num_inference_steps"), int):
        second["num_inference_steps"] = first["num_inference_steps"] + 2
    return first, second


def another(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A call with another text and another noise, and nothing else: an engine may run a step of both at once."""
    changes = {"prompt": SECOND_PROMPT, "generator": {"$generator": 2}}
    return {**recipe, **{name: value for name, value in changes.items() if type(recipe.get(name)) is type(value)}}


def unlike(side: Side, recipe: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A call without guidance, or with it, and of another size, where that can be made: a request keeps both."""
    numbers = {name: value for name, value in recipe.items() if isinstance(value, int | float)}
    guidance = {name: OFF if value > OFF else ON for name, value in numbers.items() if name in GUIDANCE}
    size = {name: value * 2 for name, value in numbers.items() if name == "height"}
    for changes in ({**guidance, **size}, guidance, size):
        seen = side.run(decode({**recipe, **changes}, tensors), set()) if changes else None
        if seen is not None and seen.error is None and not seen.stopped:
            return {**recipe, **changes}
    return recipe


def _output(side: Side, recipe: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Leaves:
    capture = side.run(decode(dict(recipe), tensors), set())
    if capture.error is not None:
        raise capture.error
    if capture.stopped:
        raise RuntimeError("a call that would be long was not waited for")
    return next((event.values for event in capture.events if event.name == "output"), {})


def _judge(name: str, holds: Callable[[Side], bool], reference: Side, port: Side) -> CaseResult | None:
    """How a relation stands; None if diffusers does not keep it."""
    error = ""
    try:
        kept = holds(port)
    except Exception as problem:
        kept, error = False, f"{type(problem).__name__}: {problem}"
    if not kept:
        try:
            if not holds(reference):
                return None
        except Exception:
            return None
    return CaseResult(
        name=name, description="of the port alone", verdict="parity" if kept else "differs", port_error=error
    )


def _near(whole: Any, parts: list[Any]) -> bool:
    joined = np.concatenate([to_numpy(part) for part in parts])
    array = to_numpy(whole)
    if array.shape != joined.shape:
        return False
    scale = max(float(np.abs(joined.astype(np.float64)).max()), 1e-12)
    return bool(np.abs(array.astype(np.float64) - joined).max() <= _BATCH_TOLERANCE * scale)
