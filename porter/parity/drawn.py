"""Calls drawn by Hypothesis, and the smallest one that fails."""

from __future__ import annotations

import pprint
import time
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from porter.parity.cases import SECOND_PROMPT, UNTIDY_PROMPT, Case
from porter.parity.request import PER_PROMPT
from porter.parity.results import CaseResult
from porter.parity.spec import SpecError

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

SECONDS = 120.0
"""How long calls are drawn."""

_SCALES = (1.0, 3.5, 0.0, 1.5, 7.0)
_TEXTS = (SECOND_PROMPT, "", "a", UNTIDY_PROMPT, "red " * 40)
_KEPT = frozenset(("prompt", "generator"))
_LEFT = "left out"
_SAME = "as it is"


def draw_cases(
    call: Callable[..., Any],
    inputs: Mapping[str, Any],
    run: Callable[[Case], CaseResult],
    count: int,
    seed: int = 0,
    seconds: float = SECONDS,
    dtypes: Sequence[str] = (),
) -> tuple[CaseResult | None, Case | None]:
    """Try ``count`` drawn calls; the smallest that fails with its result, (None, None) if none does.

    Drawn are sizes, steps, guidance, number and length of prompts, outputs and generators per prompt, kind of output,
    dtype of the weights, and which optional arguments are left out. Same arguments, same calls, as many of them as
    there is time for.

    Args:
        call: the pipeline's ``__call__``.
        inputs: recipe of the plain call.
        run: runs a case on both sides.
        count: how many calls.
        seed: of the draw.
        seconds: after which no further call is begun; making a failing one smaller has as long again.
        dtypes: of the weights, besides that of the run.

    Raises:
        SpecError: Hypothesis is not installed.
    """
    try:
        import hypothesis
    except ImportError as error:
        raise SpecError("drawn calls need Hypothesis: pip install hypothesis") from error
    failed: list[Case] = []
    end = time.monotonic() + seconds

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],  # its own way of making smaller takes hundreds of calls
    )
    @hypothesis.given(case_strategy(call, inputs, dtypes))
    def attempt(case: Case) -> None:
        if time.monotonic() < end and fails(run(case)):
            failed.append(case)
            raise AssertionError(case.describe())

    try:
        attempt()
    except AssertionError:
        return shrink(failed[-1], run, seconds)
    return None, None


def fails(result: CaseResult) -> bool:
    """Whether a drawn call shows a fault: one in which diffusers itself computes no numbers shows nothing."""
    return not result.passed and not computes_nothing(result)


def computes_nothing(result: CaseResult) -> bool:
    """Whether both sides agree up to a stage that is NaN on both (one step of a stretched schedule, say)."""
    return result.first_difference is not None and result.first_difference.verdict == "not a number"


def shrink(case: Case, run: Callable[[Case], CaseResult], seconds: float = SECONDS) -> tuple[CaseResult, Case]:
    """Take back one change after the other as long as the call fails: at most one run a change, while there is time."""
    end = time.monotonic() + seconds
    if case.dtype:
        smaller = case.model_copy(update={"dtype": ""})
        case = smaller if time.monotonic() < end and fails(run(smaller)) else case
    for name in [*case.omitted, *case.changes]:
        changes = {key: value for key, value in case.changes.items() if key != name}
        smaller = case.model_copy(update={"changes": changes, "omitted": [key for key in case.omitted if key != name]})
        if time.monotonic() < end and fails(run(smaller)):
            case = smaller
    return run(case), case


def case_strategy(
    call: Callable[..., Any], inputs: Mapping[str, Any], dtypes: Sequence[str] = ()
) -> SearchStrategy[Case]:
    """Cases of a pipeline; the simplest is the plain call."""
    from hypothesis import strategies

    parameters = signature(call).parameters
    choices: dict[str, SearchStrategy[Any]] = {}
    for name, parameter in parameters.items():
        values = _values(name, inputs)
        if name in inputs and name not in _KEPT and parameter.default is not parameter.empty:
            if not name.startswith(("num_inference", "height", "width", "num_frames", "max_")):
                values = [*values, _LEFT]
        if values:
            choices[name] = strategies.sampled_from([_SAME, *values])
    prompts = strategies.lists(strategies.sampled_from(_TEXTS), max_size=2)
    each = strategies.booleans()
    # Half of the calls are in the dtype of the run: a difference there is the plainer find.
    kinds = strategies.sampled_from([*[""] * max(len(dtypes), 1), *dtypes])

    def build(chosen: dict[str, Any], texts: list[str], a_generator_each: bool, dtype: str) -> Case:
        changes = {name: value for name, value in chosen.items() if value is not _SAME and value is not _LEFT}
        omitted = sorted(name for name, value in chosen.items() if value is _LEFT)
        if texts and isinstance(inputs.get("prompt"), str):
            changes["prompt"] = [inputs["prompt"], *texts] if len(texts) > 1 else texts[0]
        outputs = len(texts) + 1 if len(texts) > 1 else 1
        for name in changes:
            outputs *= changes[name] if PER_PROMPT.fullmatch(name) else 1
        if a_generator_each and "generator" in parameters:
            changes["generator"] = [{"$generator": number} for number in range(outputs)]
        return Case(name="drawn", changes=changes, omitted=omitted, dtype=dtype)

    return strategies.builds(build, strategies.fixed_dictionaries(choices), prompts, each, kinds)


def _values(name: str, inputs: Mapping[str, Any]) -> list[Any]:
    """Other values of an argument, simple ones first."""
    held = inputs.get(name)
    if name == "num_inference_steps":
        return [1, 2, 3, 4]
    if name.endswith(("guidance_scale", "cfg_scale")):
        return list(_SCALES)
    if name in ("height", "width") and isinstance(held, int):
        return [held * 2, held + held // 2, held + 1]
    if name == "negative_prompt" and "prompt" in inputs:
        return list(_TEXTS[:4])
    if name == "output_type":
        return ["latent", "np", "pt", "pil"]
    if name == "max_sequence_length" and isinstance(held, int):
        return [max(held // 2, 1), held + 1]
    if PER_PROMPT.fullmatch(name):
        return [2]
    if name == "strength":
        return [1.0, 0.5]
    if isinstance(held, bool):
        return [not held]
    return []


def snippet(pipeline: str, case: Case) -> str:
    """Python that runs a case again and prints what differs."""
    changes = pprint.pformat(case.changes, width=100, sort_dicts=False)
    dtype = f", dtype={case.dtype!r}" if case.dtype else ""
    return "\n".join(
        [
            "from porter.parity import run_parity",
            "from porter.parity.cases import Case",
            "from porter.parity.report import print_report",
            "",
            f"changes = {changes}",
            f"case = Case(name={case.name!r}, changes=changes, omitted={case.omitted!r}{dtype})",
            f"print_report(run_parity({pipeline!r}, cases=[case.name], extra_cases=[case]), verbose=True)",
        ]
    )
