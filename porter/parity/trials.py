"""The ways to try a port against a reference that ran once: calls, turns, what a request holds, denoisers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from porter.parity.alone import ALONE, compare_alone, variations
from porter.parity.areas import small_areas
from porter.parity.capture import Capture, stage_methods
from porter.parity.cases import Case
from porter.parity.compare import compare, first_difference
from porter.parity.held import can_hold, held_by_requests
from porter.parity.other_checkpoints import OtherCheckpoint
from porter.parity.recipes import decode
from porter.parity.relations import another, unlike
from porter.parity.sides import Port, Reference, rejection, restored
from porter.parity.tables import TABLES, check_tables
from porter.parity.turns import can_take_turns, in_turns, same_leaves

TURNS = "requests in turns"
HELD = "what a request holds"


class Trials:
    """What a reference did, and what tells whether a port does the same.

    Args:
        reference: diffusers; it is run here.
        cases: the calls; the plain one first.
        inputs: recipe of the plain call.
        tensors: what recipes name.
        port: a port without faults.
        alone: whether denoisers are tried by themselves too.
        others: other checkpoints of the pipeline.
        load: makes the port that is tried at the moment from another checkpoint.
    """

    def __init__(
        self,
        reference: Reference,
        cases: list[Case],
        inputs: dict[str, Any],
        tensors: dict[str, torch.Tensor],
        port: Any,
        alone: bool,
        others: Sequence[OtherCheckpoint],
        load: Callable[[Path], Port],
    ) -> None:
        self.load = load
        self.reference, self.cases, self.inputs, self.tensors = reference, cases, inputs, tensors
        self.methods = stage_methods(reference.pipeline) & stage_methods(port)
        self.recipes = {case.name: case.recipe(inputs) for case in cases}
        self.captures: dict[str, Capture] = {}
        self.initial = dict(vars(reference.pipeline))
        with small_areas(reference.pipeline):
            for case in cases:
                with restored(reference.pipeline, dict(self.initial)):
                    self.captures[case.name] = self._run(reference, case)
        self.turns = self._turn_calls()
        self.alone = variations(reference, self.captures["plain"]) if alone else []
        self.held: list[tuple[Any, ...]] | None = None
        """What requests of the port without faults hold, as far as it may and in half the room."""
        self.each: dict[str, Callable[[Port], str]] = {
            TABLES: self._tables_differ,
            **{case.name: partial(self.call_differs, case) for case in cases},
            TURNS: self._turns_differ,
            HELD: self._held_differs,
            ALONE: self._alone_differ,
            **{other.case.name: partial(self._other_differs, other) for other in others},
        }
        """By name: the first stage at which a port does not do what the reference did; empty if it does."""

    def _run(self, side: Any, case: Case) -> Capture:
        def run() -> Capture:
            seen: Capture = side.run(decode(self.recipes[case.name], self.tensors), self.methods, case.first_call_only)
            return seen

        if case.again:
            run()
        return run()

    def _turn_calls(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Recipes of requests to take turns, and what the reference made of each alone."""
        plain = dict(self.inputs)
        steps = plain.get("num_inference_steps")
        alone = self.captures.get("plain")
        if alone is None or not isinstance(steps, int) or alone.error or alone.stopped:
            return []
        longer = {**plain, "num_inference_steps": steps + 2}
        others = {"longer": partial(unlike, self.reference, longer, self.tensors), "alike": partial(another, plain)}
        runs = {"plain": alone}
        for name, recipe in others.items():
            with small_areas(self.reference.pipeline), restored(self.reference.pipeline, dict(self.initial)):
                self.recipes[name] = recipe()
                runs[name] = self._run(self.reference, Case(name=name))
        if any(seen.error or seen.stopped for seen in runs.values()):
            return []
        # The longer one first: what the others set up must not reach its steps in the middle of the schedule.
        return [(self.recipes[name], _output(runs[name])) for name in ("longer", "plain", "alike")]

    def _tables_differ(self, port: Port) -> str:
        found = check_tables(self.reference.pipeline, port.pipeline)
        return found.first_difference.stage if found is not None and found.first_difference is not None else ""

    def call_differs(self, case: Case, port: Port) -> str:
        """The first stage at which the port does not do what the reference did; empty if it does."""
        initial = dict(vars(port.pipeline))
        with small_areas(self.reference.pipeline, port.pipeline), restored(port.pipeline, initial):
            first = self.captures[case.name]
            theirs = self._run(port, case)
        return _difference(first, theirs)

    def _other_differs(self, other: OtherCheckpoint, _: Port) -> str:
        port = self.load(other.folder)
        with small_areas(other.reference.pipeline, port.pipeline):
            theirs = port.run(decode(other.recipe, self.tensors), self.methods)
        return _difference(other.capture, theirs)

    def _turns_differ(self, port: Port) -> str:
        if not self.turns or not can_take_turns(port):
            return ""
        initial = dict(vars(port.pipeline))
        try:
            with small_areas(self.reference.pipeline, port.pipeline), restored(port.pipeline, initial):
                outputs = in_turns(port, [decode(recipe, self.tensors) for recipe, _ in self.turns])
        except Exception as error:
            return f"raises {type(error).__name__}"
        same = all(same_leaves(alone, output) for (_, alone), output in zip(self.turns, outputs, strict=True))
        return "" if same else "output"

    def _held_differs(self, port: Port) -> str:
        """Whether requests hold other results for their steps, or count them otherwise, than without a fault."""
        told = self._held_by(port, None)
        if told:
            # Half of what they need: what no longer fits is computed anew.
            told += self._held_by(port, max(nbytes for _, nbytes, *_ in self.held or told) // 2)
        if self.held is None:
            self.held = told
        return "" if told == self.held else "results held"

    def _held_by(self, port: Port, limit: int | None) -> list[tuple[Any, ...]]:
        """Limit, bytes, results, how often these were handed out, how many were stale, of each request of a call."""
        if not can_hold(port.pipeline):
            return []
        with held_by_requests(port.pipeline, limit) as made:
            self.call_differs(self.cases[0], port)
        return [(each.limit, each.nbytes, each.results, each.hits, each.stale) for each in made]

    def _alone_differ(self, port: Port) -> str:
        stages = (compare_alone(variation, port.pipeline) for variation in self.alone)
        return next((stage.stage for stage in stages if stage is not None and stage.failed), "")


def _difference(first: Capture, theirs: Capture) -> str:
    if first.error is not None:
        alike = theirs.error is not None and rejection(first.error) in rejection(theirs.error)
        return "" if alike else "refusal"
    found = first_difference(compare(first, theirs))
    if found is not None:
        return found.stage
    return f"raises {type(theirs.error).__name__}" if theirs.error is not None else ""


def _output(capture: Capture) -> dict[str, Any]:
    return next(dict(event.values) for event in capture.events if event.name == "output")
