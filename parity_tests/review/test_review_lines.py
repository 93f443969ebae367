"""Lines followed through the steps that rewrote them."""

from __future__ import annotations

import ast
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from porter.review.lines import changes
from porter.rules.history import History
from porter.source import Definition, SourceModule


def history(text: str, *steps: tuple[str, str]) -> History:
    module = SourceModule("diffusers.models.example", Path("diffusers/models/example.py"), f"import head\n{text}\n")
    node = ast.parse("x = 1").body[0]
    return History(Definition("x", module, node, 2, 1 + text.count("\n") + 1), list(steps))


def test_what_no_step_changed_is_no_difference():
    assert changes(history("a\nb"), ["a", "b"]) == []


def test_each_line_names_the_steps_that_made_it():
    found = changes(history("a\nb\nc", ("one", "a\nB\nc"), ("two", "a\nB!\nc\nd")), ["a", "B!", "c", "d"])
    assert [(c.source, c.before, c.line, c.after, c.steps) for c in found] == [
        (3, ("b",), 1, ("B!",), ("one", "two")),
        (5, (), 3, ("d",), ("two",)),
    ]


def test_a_line_that_went_names_the_step_that_took_it():
    [found] = changes(history("a\nb\nc", ("one", "a\nc")), ["a", "c"])
    assert (found.source, found.before, found.after, found.steps) == (3, ("b",), (), ("one",))


def test_layout_is_a_step_of_its_own():
    [found] = changes(history("a\nb"), ["a", "b,"])
    assert found.steps == ("format",)


texts = st.lists(st.sampled_from(["a", "b", "c", "    d", ""]), max_size=8).map(lambda lines: ["first", *lines, "last"])


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(texts, max_size=4), texts)
def test_every_difference_is_attributed_and_together_they_turn_the_source_into_the_port(before, between, after):
    steps = [(f"step{number}", "\n".join(lines)) for number, lines in enumerate(between)]
    made = history("\n".join(before), *steps)
    found = changes(made, after)
    assert all(change.steps for change in found)
    lines = list(before)
    for change in reversed(found):
        start = change.source - made.source.first_line
        assert tuple(lines[start : start + len(change.before)]) == change.before
        assert tuple(after[change.line : change.line + len(change.after)]) == change.after
        lines[start : start + len(change.before)] = change.after
    assert lines == after
