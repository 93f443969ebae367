"""Conversions of a request's constants: made before the steps where each step makes the same, and always."""

from __future__ import annotations

import pytest

from porter.rules.engine import code, statements
from porter.rules.pipeline.conversions import convert_before, convert_once

CONSTANTS = ("embeds", "dtype")


def moved(step: str, alone: tuple[str, ...] = CONSTANTS) -> tuple[str, str]:
    """The statements in front of the steps, and those of a step."""
    before, body = convert_before([], statements(step), CONSTANTS, alone)
    return tuple("\n".join(code(item).strip() for item in items) for items in (before, body))


def test_what_each_step_converts_alike_is_converted_before_them():
    step = "a = self.first(embeds.to(dtype))\nb = self.second(embeds.to(dtype), t)"
    assert moved(step) == ("embeds = embeds.to(dtype)", "a = self.first(embeds)\nb = self.second(embeds, t)")


@pytest.mark.parametrize(
    "step",
    [
        "if guided:\n    a = self.model(embeds.to(dtype))",  # None without guidance, maybe
        "a = self.model(embeds.to(dtype) if guided else text)",
        "a = self.model(embeds.to(dtype), embeds)",  # as it is, too
        "a = self.model(embeds.to(dtype), embeds.to(other.device))",  # in two ways
        "a = self.model(embeds.to(latents.dtype))",  # whose type is the step's
        "a = self.model(lambda: embeds.to(dtype))",
    ],
)
def test_other_conversions_stay_in_the_steps(step):
    assert moved(step) == ("", step)


def test_a_variable_that_others_read_is_left_to_them():
    assert moved("a = self.model(embeds.to(dtype))", alone=()) == ("", "a = self.model(embeds.to(dtype))")


def test_what_may_not_always_be_needed_is_made_once():
    [item] = convert_once(statements("if guided:\n    a = self.model(embeds.to(dtype))"), CONSTANTS)
    assert "self.model(once(embeds.to, dtype))" in code(item)
