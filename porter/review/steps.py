"""What the steps of a conversion are called, how grave they are and why they are there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache

import porter.rules
from porter.rules.engine import CHANGED, SAME, SURFACE, Rule
from porter.rules.history import STEPS

# What is written whole, and what happens to definitions outside of their own text.
OTHERS = {
    "header": "Licence of the source, then where the file comes from.",
    "imports": "Imports of what the file uses; those of the engine follow the target.",
    "not-needed": "Nothing in the port refers to it any more.",
    "template:support": "What the pipelines of a family share: request arguments, loading of components.",
    "template:stepwise": "How requests take turns: their states, their steps, both branches of their guidance.",
    "template:invariants": "Work that every step of a request repeats, done once and held with the request.",
    "template:__init__": "Makes the family a package.",
    "template:parallel": "What modules that are split over ranks share: a rank's part of heads, norms and tables.",
    "template:example": "A script that runs the port.",
    "template:pre_process": "Preparation of images, taken out of the call: the engine runs it before the model.",
    "template:post_process": "Conversion of the result, taken out of the call: the engine runs it after the model.",
}
GRAVITY = (SURFACE, SAME, CHANGED)


@cache
def rules() -> dict[str, type[Rule]]:
    """All rules by name."""
    for found in pkgutil.walk_packages(porter.rules.__path__, f"{porter.rules.__name__}."):
        importlib.import_module(found.name)
    todo, known = [Rule], {}
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.__module__.startswith("porter.rules") and "name" in vars(kind):
            known[kind.name] = kind
    return known


def safety_of(steps: Iterable[str]) -> str:
    """The gravest class among steps; those that are no rules are surface changes."""
    classes = [rules()[step].safety if step in rules() else SURFACE for step in steps]
    return max(classes, key=GRAVITY.index, default=SURFACE)


def explain(steps: Iterable[str]) -> list[str]:
    """One line on each step."""
    return [summary(step) for step in steps]


def summary(step: str) -> str:
    """What a step does.

    Raises:
        KeyError: there is no such step.
    """
    if step in rules():
        return (rules()[step].__doc__ or "").strip().splitlines()[0]
    return (STEPS | OTHERS)[step]
