"""Drawn calls: what they may be, how a failing one is made small, and the Python that repeats it."""

import ast

from porter.parity.cases import Case
from porter.parity.compare import StageResult
from porter.parity.drawn import draw_cases, shrink, snippet
from porter.parity.hard_cases import hard_cases
from porter.parity.results import CaseResult

INPUTS = {
    "prompt": "a cat",
    "num_inference_steps": 2,
    "height": 32,
    "guidance_scale": 5.0,
    "generator": {"$generator": 0},
}


def call(self, prompt=None, height=None, num_inference_steps=50, guidance_scale=3.5, generator=None, output_type="pil"):
    """As a pipeline's."""


def runner(fails, seen):
    def run(case):
        seen.append(case)
        return CaseResult(name=case.name, description="", verdict="differs" if fails(case.recipe(INPUTS)) else "parity")

    return run


def test_the_same_seed_draws_the_same_calls_of_every_kind():
    first, second = [], []
    assert draw_cases(call, INPUTS, runner(lambda recipe: False, first), 60) == (None, None)
    draw_cases(call, INPUTS, runner(lambda recipe: False, second), 60)
    assert first == second and len(first) == 60
    recipes = [case.recipe(INPUTS) for case in first]
    assert {recipe.get("num_inference_steps") for recipe in recipes} >= {1, 2, 3, 4}
    assert any("guidance_scale" not in recipe for recipe in recipes)
    assert any(isinstance(recipe["prompt"], list) and isinstance(recipe["generator"], list) for recipe in recipes)


def test_dtypes_are_drawn_where_there_are_some_and_taken_back_where_they_do_not_matter():
    seen = []
    draw_cases(call, INPUTS, runner(lambda recipe: False, seen), 60, dtypes=["bfloat16", "float16"])
    assert {case.dtype for case in seen} == {"", "bfloat16", "float16"}
    drawn = Case(name="drawn", changes={"height": 64}, dtype="bfloat16")
    assert shrink(drawn, runner(lambda recipe: recipe["height"] == 64, []))[1].dtype == ""
    assert "dtype='bfloat16'" in snippet("FluxPipeline", drawn)


def test_a_failing_call_is_made_as_small_as_it_can_be():
    result, case = draw_cases(call, INPUTS, runner(lambda recipe: recipe["num_inference_steps"] == 3, []), 60)
    assert not result.passed
    assert case.changes == {"num_inference_steps": 3} and case.omitted == []


def test_taking_back_a_change_leaves_what_matters():
    case = Case(name="drawn", changes={"height": 64, "num_inference_steps": 1}, omitted=["guidance_scale"])
    run = runner(lambda recipe: recipe["height"] == 64 and "guidance_scale" not in recipe, [])
    _, small = shrink(case, run)
    assert (small.changes, small.omitted) == ({"height": 64}, ["guidance_scale"])


def test_the_snippet_is_python_with_the_case_in_it():
    text = snippet("FluxPipeline", Case(name="drawn", changes={"prompt": ["a", "b"]}, omitted=["height"]))
    ast.parse(text)
    assert "'prompt': ['a', 'b']" in text and "omitted=['height']" in text and "'FluxPipeline'" in text


def test_hard_calls_follow_from_the_inputs():
    names = [case.name for case in hard_cases(call, INPUTS, None, {})]
    assert names == ["long prompt", "odd height", "half a position taller", "no prompt", "prompt of another type"]


def test_a_long_strip_has_more_positions_than_half_precision_counts():
    def wide(self, prompt=None, height=None, width=None, output_type="pil"):
        """As a pipeline's."""

    [strip] = [case for case in hard_cases(wide, INPUTS, None, {}, patch=4) if case.name == "long strip"]
    assert strip.changes["width"] // 4 > 256 and strip.changes["output_type"] == "latent"


def test_a_prompt_that_must_be_given_is_not_left_out():
    def needs(self, prompt):
        """As a pipeline's."""

    assert "no prompt" not in [case.name for case in hard_cases(needs, INPUTS, None, {})]


def test_drawing_ends_when_its_time_is_over():
    seen = []
    assert draw_cases(call, INPUTS, runner(lambda recipe: True, seen), 60, seconds=0) == (None, None)
    assert not seen


def test_a_call_in_which_diffusers_computes_nan_shows_nothing():
    nothing = StageResult(stage="transformer[0]", kind="component", verdict="not a number")
    seen = []

    def run(case):
        seen.append(case)
        return CaseResult(name=case.name, description="", verdict="differs", first_difference=nothing)

    assert draw_cases(call, INPUTS, run, 20) == (None, None) and len(seen) == 20
