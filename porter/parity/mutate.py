"""Tests the comparison itself: plants faults into a port, one at a time, and counts those that it sees.

The reference runs once; each faulty port runs the cases that reach the fault, until one differs.
"""

from __future__ import annotations

import contextlib
import random
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from porter.parity import checkpoint as checkpoints
from porter.parity import spec as specs
from porter.parity.calls import all_calls
from porter.parity.capture import stage_methods
from porter.parity.cases import Case, half_cases
from porter.parity.mutants import Edit, Mutant, apply, find_mutants
from porter.parity.mutants.equivalents import looked_into, proof
from porter.parity.mutants.faults import Inapplicable
from porter.parity.mutation_report import MutantResult, MutationReport
from porter.parity.other_checkpoints import OtherCheckpoint, other_checkpoints
from porter.parity.planted import Workshop
from porter.parity.run import load_tensors, threads_set
from porter.parity.sides import Port, Reference, rejection
from porter.parity.trials import Trials
from porter.parity.weight_check import check_weights

# A fault is given up as endless after this many seconds of the processor, and as many times what the port takes.
_LEAST_SECONDS = 5.0
_TIMES = 3
_HELPER = '__import__("porter.parity.mutants.faults", fromlist=["faults"])'
_UNUSED = f"{_HELPER}.Unused()"
_NOT_USED = "no case uses the value: one that raises when it is used changes nothing"
_NOTHING_TO_LOSE = "no case has a value there: it is None at every call"
_CHECK_EVERY = 25


def run_mutation(
    name: str,
    *,
    count: int = 60,
    seed: int = 0,
    models_dir: str | Path | None = None,
    root: str | Path | None = None,
    extra_cases: Sequence[Case] = (),
) -> MutationReport:
    """Plant faults into the port of pipeline ``name`` and see which of them the comparison misses.

    Args:
        name: the pipeline class, with or without ``diffusers.`` in front.
        count: of generic faults, drawn evenly over the mutators from all places that the cases reach; known bugs are
            planted wherever they apply.
        seed: of the draw.
        models_dir: folder of ports; None: the committed ones.
        root: folder of specs outside the project.
        extra_cases: calls besides those of ``run_parity``.

    Raises:
        SpecError: there is no tiny checkpoint of this pipeline.
        ValueError: the port without faults is not at parity, so that nothing could be learnt.
    """
    name = name.removeprefix("diffusers.")
    started = time.perf_counter()
    with threads_set(1), tempfile.TemporaryDirectory(prefix="porter-mutation-") as scratch:
        folder = checkpoints.build(name, Path(scratch) / name, 0, root)
        spec = specs.read(name, root)
        bench = Bench(folder, spec, models_dir, "float32", extra_cases)
        mutants, unreached = bench.sites()
        chosen = choose(mutants, count, f"{seed}:{name}")
        results = bench.judge(chosen)
        report = MutationReport(pipeline=name, family=bench.workshop.package.rpartition(".")[2], seed=seed)
        report.sites, report.unreached_sites = len(mutants), unreached
        report.cases = [case.name for case in bench.cases]
        report.port = bench.workshop.digest()
        survivors = [index for index, result in enumerate(results) if result.verdict == "survived"]
        for index in survivors:  # what single precision hides, half precision may show
            results[index] = bench.explain(chosen[index], results[index])
        left = [index for index in survivors if results[index].verdict == "survived"]
        for index, seen in _in_half_precision([chosen[index] for index in left], folder, spec, models_dir).items():
            results[left[index]] = seen
    report.mutants = results
    report.seconds = time.perf_counter() - started
    return report


def _in_half_precision(
    mutants: Sequence[Mutant], folder: Path, spec: specs.Spec, models_dir: str | Path | None
) -> dict[int, MutantResult]:
    """What the calls in half precision show, by the number of the fault; nothing where diffusers does not run so."""
    found: dict[int, MutantResult] = {}
    for dtype in ("bfloat16", "float16"):
        left = [index for index in range(len(mutants)) if index not in found]
        if not left:
            break
        with contextlib.suppress(ValueError):
            half = Bench(folder, spec, models_dir, dtype)
            half.sites()
            judged = zip(left, half.judge([mutants[index] for index in left]), strict=True)
            found |= {index: result for index, result in judged if result.caught}
    return found


def again(report: MutationReport, *, models_dir: str | Path | None = None) -> MutationReport:
    """The report with those faults tried again that were not seen: the comparison may see more by now.

    Raises:
        ValueError: the port is another one by now, or not at parity.
    """
    with threads_set(1), tempfile.TemporaryDirectory(prefix="porter-mutation-") as scratch:
        folder = checkpoints.build(report.pipeline, Path(scratch) / report.pipeline, 0)
        bench = Bench(folder, specs.read(report.pipeline), models_dir, "float32")
        if bench.workshop.digest() != report.port:
            raise ValueError("the port is another one than faults were planted into: run it anew")
        found = {MutantResult.of(m).place: m for m in bench.everywhere({r.module for r in report.survivors})}
        report.cases = [case.name for case in bench.cases]
        kept = []
        for result in report.mutants:
            mutant = found.get(result.place)
            if result.verdict == "survived" and mutant is not None:
                result = bench.attempt(mutant)
                result = bench.explain(mutant, result) if result.verdict == "survived" else result
            if result.verdict != "survived" or mutant is not None:  # else nothing is planted there any more
                kept.append(result)
        left = [n for n, r in enumerate(kept) if r.verdict == "survived"]
        typed = [found[kept[number].place] for number in left]
        for index, seen in _in_half_precision(typed, folder, bench.spec, models_dir).items():
            kept[left[index]] = seen
        report.mutants = kept
    return report


def choose(mutants: Sequence[Mutant], count: int, seed: str) -> list[Mutant]:
    """All known bugs, and ``count`` generic faults: one of each mutator in turn, at places drawn by the seed."""
    drawn = random.Random(seed)
    heaps: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        if not mutant.bug:
            heaps[mutant.mutator].append(mutant)
    for heap in heaps.values():
        drawn.shuffle(heap)
    chosen: list[Mutant] = []
    while len(chosen) < count and any(heaps.values()):
        chosen += [heap.pop() for heap in heaps.values() if heap][: count - len(chosen)]
    return [mutant for mutant in mutants if mutant.bug] + chosen


class Bench:
    """A reference that has run, and a port to plant faults into."""

    def __init__(
        self,
        folder: Path,
        spec: specs.Spec,
        models_dir: str | Path | None,
        dtype: str,
        extra: Sequence[Case] = (),
    ) -> None:
        self.reference = Reference(folder, "cpu", getattr(torch, dtype))
        self.spec, tensors = spec, load_tensors(spec)
        self.workshop = Workshop(folder, models_dir, dtype)
        port = self.workshop.omni.pipeline
        self.cases = all_calls(self.reference, spec, tensors, extra, getattr(port, "dropped_arguments", ()))
        if dtype != "float32":  # what a comparison tries in half precision
            self.cases = [case for case in half_cases(self.cases) if case.dtype == dtype]
        inputs = dict(spec.inputs)
        others: list[OtherCheckpoint] = []
        if dtype == "float32":
            methods = stage_methods(self.reference.pipeline) & stage_methods(port)
            found = other_checkpoints(spec, self.reference.pipeline, tensors, folder, folder.parent, methods)
            others = list(found)
        self.trials = Trials(
            self.reference, self.cases, inputs, tensors, port, dtype == "float32", others, self.workshop.elsewhere
        )
        self.limit = 60.0
        """Seconds of the processor after which a fault counts as endless."""
        self.reach: dict[str, set[tuple[str, int]]] = {}
        """The lines (module, number) of the port that each case runs; under "" those that loading runs."""

    def sites(self) -> tuple[list[Mutant], int]:
        """The faults that some case reaches, and the number of those that none does.

        Raises:
            ValueError: the port without faults does not pass.
        """
        seen: set[tuple[str, int]] = set()
        started = time.process_time()
        for label, differs in self.trials.each.items():
            seen.clear()
            # A port of its own for each: what one call keeps, the next does not compute.
            with self.workshop.watched(seen) as port:
                self.reach.setdefault("", set()).update(seen)
                seen.clear()
                stage = differs(port)
            self.reach[label] = set(seen)
            if stage:
                raise ValueError(f"the port is not at parity, so no fault can be told: {label}: {stage}")
        self.limit = _LEAST_SECONDS + _TIMES * (time.process_time() - started)
        reached = set().union(*self.reach.values())
        found = [m for name in self.workshop.modules for m in find_mutants(self.workshop.source(name), name)]
        kept = [m for m in found if not m.lines or any((m.module, line) in reached for line in m.lines)]
        return kept, len(found) - len(kept)

    def everywhere(self, modules: Collection[str]) -> list[Mutant]:
        """All faults of some modules, as if every case reached them: dearer to try, but nothing need be watched.

        Raises:
            ValueError: the port without faults does not pass.
        """
        with self.workshop.planted() as port:
            for label, differs in self.trials.each.items():
                if stage := differs(port):
                    raise ValueError(f"the port is not at parity, so no fault can be told: {label}: {stage}")
        found = [m for name in modules for m in find_mutants(self.workshop.source(name), name)]
        self.reach[""] = {(mutant.module, line) for mutant in found for line in mutant.lines}
        return found

    def judge(self, mutants: Sequence[Mutant]) -> list[MutantResult]:
        """Try each fault; now and then, that the port without faults still passes."""
        results: list[MutantResult] = []
        clean = 0
        for number, mutant in enumerate(mutants, 1):
            results.append(self._unused(mutant) or self.attempt(mutant))
            if number % _CHECK_EVERY == 0 or number == len(mutants):
                if not self._still_passes():  # a fault changed what all share
                    self.workshop.forget()
                    results[clean:] = [self._alone(each) for each in mutants[clean:number]]
                clean = number
        return results

    def _unused(self, mutant: Mutant) -> MutantResult | None:
        """The result of a default that no case leaves in place: most are so, and this way they are run once."""
        if not mutant.is_default or len(mutant.edits) != 1:
            return None
        source, [edit] = self.workshop.source(mutant.module), mutant.edits
        result = self.attempt(mutant, source[: edit.start] + _UNUSED.encode() + source[edit.end :])
        if result.verdict != "survived":
            return None
        result.verdict, result.reason = "unreached", _NOT_USED
        return result

    def _alone(self, mutant: Mutant) -> MutantResult:
        self.workshop.forget()
        result = self.attempt(mutant)
        self.workshop.forget()
        return result

    def _still_passes(self) -> bool:
        with self.workshop.planted() as port:
            return not any(self.trials.call_differs(case, port) for case in (self.cases[0], self.cases[-1]))

    def attempt(self, mutant: Mutant, source: bytes | None = None) -> MutantResult:
        """Plant one fault and run the cases that reach it, until one differs."""
        started = time.process_time()
        if source is None:
            source = apply(self.workshop.source(mutant.module), mutant.edits)
        result = MutantResult.of(mutant)
        try:
            with _time_limit(self.limit):
                result.verdict, result.case, result.stage = self._verdict(mutant, source)
        except Inapplicable as error:
            result.verdict, result.reason = "unreached", str(error)
        except _TooLong:
            result.verdict, result.case, result.stage = "killed", "", "does not end"
        result.seconds = round(time.process_time() - started, 3)
        return result

    def _verdict(self, mutant: Mutant, source: bytes) -> tuple[Any, str, str]:
        with contextlib.ExitStack() as stack:
            try:
                port = stack.enter_context(self.workshop.planted(mutant.module, source))
                weights = check_weights(self.reference.pipeline, port.pipeline)
            except Exception as error:
                return "does not load", "", f"{type(error).__name__}: {rejection(error)}"[:160]
            if not weights.passed:
                return "killed", "", f"weights: {weights.summary()}"[:160]
            for label in self._that_reach(mutant):
                if stage := self._tried(label, port):
                    return "killed", label, stage
        return "survived", "", ""

    def _tried(self, label: str, port: Port) -> str:
        try:
            return self.trials.each[label](port)
        except Exception as error:  # a fault may be in what the trial itself asks the port for
            return f"raises {type(error).__name__}"

    def _that_reach(self, mutant: Mutant) -> Iterator[str]:
        """The trials that run the lines of a fault."""
        lines = {(mutant.module, line) for line in mutant.lines}
        at_load = not lines or lines & self.reach.get("", set())
        return (label for label in self.trials.each if at_load or lines & self.reach.get(label, set()))

    def explain(self, mutant: Mutant, result: MutantResult) -> MutantResult:
        """Whether a fault survived because it cannot be seen: nothing uses the value, or the value is the same."""
        source = self.workshop.source(mutant.module)
        span = min(e.start for e in mutant.edits), max(e.end for e in mutant.edits)
        places = list(dict.fromkeys([*([span] if len(mutant.edits) == 1 else []), *mutant.around]))
        for start, end in places:
            poisoned = source[:start] + _UNUSED.encode() + source[end:]
            if self.attempt(mutant, poisoned).verdict == "survived":
                result.verdict, result.reason = "unreached", _NOT_USED
                return result
        if mutant.after == "None" and self.attempt(mutant, _both(source, mutant, *span)).verdict == "survived":
            result.verdict, result.reason = "unreached", _NOTHING_TO_LOSE
            return result
        known = looked_into(mutant)
        reason = proof(mutant, source) or (known.reason if known is not None else "")
        if known is not None and known.later:
            result.verdict, result.reason = "equivalent", reason
            return result
        if mutant.bug and not mutant.is_default and not reason:
            places = places[:1]
        elif not reason:
            return result
        for start, end in places:
            if self.attempt(mutant, _both(source, mutant, start, end)).verdict == "survived":
                result.verdict = "equivalent"
                agree = "both texts have the same value wherever a case evaluates them"
                result.reason = f"{reason}; {agree}" if reason else f"{agree}: nothing to see"
                return result
        return result


def _both(source: bytes, mutant: Mutant, start: int, end: int) -> bytes:
    """The source with an expression that is evaluated with the fault and without, and must be the same."""
    inside = [Edit(edit.start - start, edit.end - start, edit.text) for edit in mutant.edits]
    before, after = source[start:end], apply(source[start:end], inside)
    return source[:start] + f"{_HELPER}.same((".encode() + before + b"), (" + after + b"))" + source[end:]


class _TooLong(BaseException):
    """A fault made a loop that does not end."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``_TooLong`` after this much time of the processor; how busy the machine is must not decide."""

    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
