"""Every rule's own examples: what it must leave alone, and what it makes of the rest."""

from __future__ import annotations

import ast
import builtins

import pytest
from harness import formatted, plain, rewritten, rule_types

RULES = rule_types()
VALID = [(rule, text) for rule in RULES for text in map(plain, rule.VALID)]
INVALID = [(rule, plain(before), plain(after)) for rule in RULES for before, after in rule.INVALID]


def _ids(examples: list) -> list[str]:
    return [f"{example[0].name}-{number}" for number, example in enumerate(examples)]


def test_the_rules_are_found_and_have_names_of_their_own():
    assert len(RULES) >= 20
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_is_documented_and_has_examples_of_both_kinds(rule):
    assert rule.__doc__ and rule.__doc__ != rule.__mro__[1].__doc__, f"{rule.__name__} has no docstring"
    assert rule.VALID, f"{rule.__name__} has no example that it must leave alone"
    assert rule.INVALID, f"{rule.__name__} has no (before, after) example"


@pytest.mark.parametrize(("rule", "text"), VALID, ids=_ids(VALID))
def test_a_rule_leaves_alone_what_is_not_its_business(rule, text, tmp_path):
    result, ctx = rewritten(rule, text, tmp_path)
    assert result == text
    assert rule.name not in ctx.applied


@pytest.mark.parametrize(("rule", "before", "after"), INVALID, ids=_ids(INVALID))
def test_a_rule_rewrites_its_example(rule, before, after, tmp_path):
    result, ctx = rewritten(rule, before, tmp_path)
    assert formatted(result) == formatted(after)
    assert formatted(after) != formatted(before)
    assert rule.name in ctx.applied


HOOKS = ("pre-process-hook", "post-process-hook")  # the names that hooks use are asked for where files are put together
IN_MODULE = [example for example in INVALID if example[0].name not in HOOKS]


@pytest.mark.parametrize(("rule", "before", "after"), IN_MODULE, ids=_ids(IN_MODULE))
def test_a_rule_asks_for_every_name_that_it_brings_in(rule, before, after, tmp_path):
    result, ctx = rewritten(rule, before, tmp_path)
    free = _free_names(result) - _free_names(before)
    assert free <= {*ctx.imports, *ctx.extra, *dir(builtins)}


def _free_names(text: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(text)))
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    bound |= {n.name for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    bound |= {a.asname or a.name for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    return read - bound
