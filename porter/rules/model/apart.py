"""Make methods of their own of statements that stand inline."""

from __future__ import annotations

import re
from typing import Any

import libcst as cst

from porter.facts.runs import Run
from porter.rules.engine import code, statements

# Methods by which code asks a tensor for its values.
VALUES = re.compile(r"\.(tolist|item)\(")


def set_apart(node: cst.ClassDef, runs: list[Run], once: str, once_apart: str) -> cst.ClassDef:
    """The class with each run of statements in a method of its own, and in its place a held call of it.

    Args:
        runs: of methods of the class.
        once: the function that holds results.
        once_apart: the one that does so for what cannot be compiled.
    """
    body: list[Any] = []
    taken = {item.name.value for item in node.body.body if isinstance(item, cst.FunctionDef)}
    for item in node.body.body:
        # From the end, so that the places of those before stay what they are.
        made: list[cst.FunctionDef] = []
        own = [run for run in runs if isinstance(item, cst.FunctionDef) and item.name.value == run.function]
        for run in sorted(own, key=lambda run: -run.first):
            assert isinstance(item, cst.FunctionDef)
            name = _free_name(f"_steady_part_of_{run.function.strip('_')}", taken)
            taken.add(name)
            item, method = _cut(item, run, name, once, once_apart)
            made.insert(0, method)
        body += [*made, item]
    return node.with_changes(body=node.body.with_changes(body=body))


def _cut(
    function: cst.FunctionDef, run: Run, name: str, once: str, once_apart: str
) -> tuple[cst.FunctionDef, cst.FunctionDef]:
    body: list[Any] = list(function.body.body)
    held = body[run.first : run.first + run.count]
    once = once_apart if any(VALUES.search(code(item)) for item in held) else once
    outputs = ", ".join(run.outputs)
    [call] = statements(f"{outputs} = {once}({', '.join([f'self.{name}', *run.inputs])})")
    [method] = statements(f"def {name}({', '.join(['self', *run.inputs])}):\n    return {outputs}\n")
    # What is said above the first statement is said of all.
    call = call.with_changes(leading_lines=held[0].leading_lines)
    held[0] = held[0].with_changes(leading_lines=[])
    method = method.with_changes(body=method.body.with_changes(body=[*held, *method.body.body]))
    body[run.first : run.first + run.count] = [call]
    return function.with_changes(body=function.body.with_changes(body=body)), method


def _free_name(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found
