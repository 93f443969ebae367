"""How a batch that holds both branches of guidance is divided: argument by argument of the model's call."""

from __future__ import annotations

import ast
import re
from typing import Any

import libcst as cst

from porter.facts.guided import GuidedNames, rows_along, speaks_of_guidance
from porter.facts.pipeline import PipelineFacts
from porter.rules.engine import code, names_bound, names_in, names_read, nodes, to_ast
from porter.rules.fold import dotted
from porter.rules.pipeline.predictions import GUIDED, Prediction
from porter.source.walk import walk

# Two values joined along a dimension behind the first.
JOIN = re.compile(r"torch\.(?:cat|concat)\(\[\w+, \w+\], (?:dim=)?([1-9])\)")
# Something twice, one below the other.
DOUBLED = re.compile(r"\.repeat\(2\b|\bcat\(\[(\w+), \1\]|\] \* 2\b")
# The same, as one expression.
TWICE = re.compile(r"torch\.(?:cat|concat)\(\[(?:([\w.]+), \1\]|[\w.]+\] \* 2)(?:, (?:dim=)?0)?\)")
# Annotations of arguments that have no samples: settings.
SETTINGS = re.compile(r"(Optional\[)?(bool|int|float|str|[Dd]ict\b.*?)(\]| \| None)*")


def doubled_when(body: list[Any], at: int, prediction: Prediction) -> cst.BaseExpression | None:
    """The test under which a batch holds both branches: what doubles it, or what takes its result apart.

    Args:
        body: the statements around the prediction.
        at: where it stands among them.
        prediction: the call of the model.
    """
    for item in body[:at]:
        for node in nodes(item, cst.IfExp):
            if re.search(r"\* 2\b|\bcat\(\[(\w+), \1\]", code(node.body)) and dotted(node.orelse):
                return node.test
    behind = body[at + 1 :]
    if _is_doubled_call(prediction.call) and any(_takes_apart(item, prediction) for item in behind):
        return cst.Name("True")  # whatever led here
    after = [item for item in behind if isinstance(item, cst.If)]
    after = [item for item in after if prediction.names & set(names_in(item.body))]
    for item in after:
        if ".chunk(2" in code(item.body):
            return item.test
    tests = {code(item.test) for item in after}
    for index, item in enumerate(body[:at]):
        if isinstance(item, cst.If) and code(item.test) in tests and GUIDED.search(code(item.test)):
            between = body[index + 1 : at]
            rebound = {name for other in between for name in names_bound(other)} & set(names_in(item.test))
            if not rebound and _doubled(item) & _read_through(between, prediction):
                return item.test
    return None


def _is_doubled_call(call: cst.Call) -> bool:
    """Whether a call is given something twice, one below the other."""
    return any(TWICE.fullmatch(code(arg.value)) for arg in call.args)


def _takes_apart(item: Any, prediction: Prediction) -> bool:
    """Whether a statement that always runs halves a prediction."""
    return isinstance(item, cst.SimpleStatementLine) and any(
        re.match(rf"{name}(\[0\])?\.chunk\(2\b", code(call))
        for name in prediction.names
        for call in nodes(item, cst.Call)
    )


def _doubled(item: cst.If) -> set[str]:
    """Variables that hold something twice after the body of a test."""
    assigns = nodes(item.body, cst.Assign)
    return {code(a.targets[0].target) for a in assigns if len(a.targets) == 1 and DOUBLED.search(code(a.value))}


def _read_through(between: list[Any], prediction: Prediction) -> set[str]:
    """Variables that a prediction is given, itself or by way of the statements before it."""
    wanted = set(names_in(prediction.call))
    for item in reversed(between):
        if wanted & set(names_bound(item)):
            wanted |= set(names_read(item))
    return wanted


def forward_parameters(facts: PipelineFacts, model: str) -> dict[str, str]:
    """Parameters of the forward of a pipeline's model, in order, with their annotations; empty if nothing is known.

    Args:
        facts: of the pipeline.
        model: the expression that is called: ``self.transformer``.
    """
    name = model.removeprefix("self.")
    found = next((c.converted[0] for c in facts.components if c.name == name and c.converted), None)
    functions = (
        [item for item in getattr(found.node, "body", []) if getattr(item, "name", "") == "forward"] if found else []
    )
    arguments = [argument for function in functions for argument in function.args.args][1:]
    return {a.arg: ast.unparse(a.annotation) if a.annotation is not None else "" for a in arguments}


def branches_along(
    facts: PipelineFacts,
    forward: cst.FunctionDef,
    prediction: Prediction,
    arguments: list[str],
    parameters: dict[str, str],
) -> dict[str, int | None]:
    """The dimension along which the branches of an argument lie, where not the first; None: both have all of it.

    Args:
        facts: of the pipeline.
        forward: where the model is called.
        prediction: the call.
        arguments: of it, as ``name=value``.
        parameters: of the model's forward, with their annotations.
    """
    named = {name: value for name, _, value in (a.partition("=") for a in arguments if not a.startswith("*"))}
    found: dict[str, int | None] = dict(_joined(forward, named))
    function = to_ast(forward).body[0]
    assert isinstance(function, ast.FunctionDef)
    guided = GuidedNames(function, ast.unparse(to_ast(prediction.call)), _apart_from_guidance(facts))
    rows = rows_along(function, named.values())
    for name, text in named.items():
        value = ast.parse(text.strip(), mode="eval").body
        if text in rows:
            found[name] = rows[text]
        elif isinstance(value, ast.Constant) or SETTINGS.fullmatch(parameters.get(name, "")):
            continue
        elif not guided.mentioned(value):
            found[name] = None
    return found


def _joined(function: cst.FunctionDef, named: dict[str, str]) -> dict[str, int]:
    """``embeds = torch.cat([negative, embeds], dim=1)`` where there is guidance.

    What is joined without it as well are channels or tokens.
    """
    found: dict[str, int] = {}
    guided = [node.body for node in nodes(function.body, cst.If) if GUIDED.search(code(node.test))]
    for assign in (assign for body in guided for assign in nodes(body, cst.Assign)):
        join = JOIN.fullmatch(code(assign.value))
        if join is not None:
            targets = [code(target.target) for target in assign.targets]
            found |= {name: int(join[1]) for name, value in named.items() if value in targets}
    return found


def _apart_from_guidance(facts: PipelineFacts) -> set[str]:
    """Components, the device, what the constructor sets, and methods of the class that do not speak of guidance."""
    methods = [item for item in getattr(facts.definition.node, "body", []) if isinstance(item, ast.FunctionDef)]
    found = {"device"} | {c.name for c in facts.components}
    for method in methods:
        if method.name == "__init__":
            stored = (n for n in walk(method) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
            found |= {node.attr for node in stored if ast.unparse(node.value) == "self"}
        elif not speaks_of_guidance(method):
            found.add(method.name)
    return found
