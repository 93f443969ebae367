"""Calls of a denoiser in the body of a pipeline."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import libcst as cst

from porter.facts.pipeline import PipelineFacts
from porter.rules.engine import arguments, code, names_in, nodes
from porter.rules.fold import dotted, only

# How a prediction is taken from what the model returns.
RESULT = re.compile(r"MODEL(?:\[0\]|\.sample|\.\w*embedding)(?:\.float\(\)|\.to\(torch\.float32\)|\.clone\(\))?")

# The name of what nobody reads.
UNUSED = "_"
# What the parameters and tests of classifier-free guidance are called.
GUIDED = re.compile(r"guidance|cfg|negative_prompt")


def denoisers(facts: PipelineFacts, function: cst.FunctionDef) -> list[str]:
    """What predicts, by the expressions that name it: components, and variables that stand for one."""
    components = [
        f"self.{c.name}" for c in facts.components if c.converted or c.name in facts.kept or _is_model(c.classes)
    ]
    components = [name for name in components if "controlnet" not in name]
    found = list(components)
    for assign in nodes(function.body, cst.Assign):
        value = assign.value
        values = [value.body, value.orelse] if isinstance(value, cst.IfExp) else [value]
        if all(dotted(v) in components for v in values) and len(assign.targets) == 1:
            name = code(assign.targets[0].target)
            if name.isidentifier() and name not in found:
                found.append(name)
    return found


def _is_model(classes: list[str]) -> bool:
    return any("UNet" in name or "Transformer" in name or name.startswith("Prior") for name in classes)


@dataclass
class Prediction:
    """``variable = self.transformer(…)[0]``.

    Attributes:
        statement: the line.
        call: the model's call.
        model: what is called.
        result: how the prediction is taken from what the model returns: ``MODEL[0]``.
        names: variables that the line binds.
        unused: how many results the source takes besides and does not use.
    """

    statement: cst.SimpleStatementLine
    call: cst.Call
    model: str
    result: str
    names: frozenset[str]
    unused: int = 0

    @property
    def variable(self) -> str | None:
        """The one variable that holds the prediction."""
        return next(iter(self.names)) if len(self.names) == 1 else None

    @property
    def positional(self) -> bool:
        return any(arg.keyword is None and not arg.star for arg in self.call.args)

    @property
    def is_default(self) -> bool:
        """Whether the engine's own ``predict_noise`` does the same."""
        return self.model == "self.transformer" and self.result == "MODEL[0]" and not self.unused

    @property
    def arguments(self) -> str:
        """The call's arguments as a dict; a model that a variable stands for is one of them."""
        model = "" if self.model.startswith("self.") else f"{self.model}={self.model}, "
        bare = (arg.with_changes(comma=cst.MaybeSentinel.DEFAULT) for arg in self.call.args)
        return f"dict({model}{', '.join(map(code, bare))})"

    def keywords(self, signature: list[str]) -> list[str] | None:
        """The call's arguments by name; None where a position has none."""
        positional, keywords, starred = arguments(self.call)
        if len(positional) > len(signature) or any(arg.star == "*" for arg in starred):
            return None
        named = [f"{name}={code(arg.value)}" for name, arg in zip(signature, positional, strict=False)]
        named += [f"{name}={code(arg.value)}" for name, arg in keywords.items()]
        named += [f"**{code(arg.value)}" for arg in starred]
        return named if self.model.startswith("self.") else [f"{self.model}={self.model}", *named]

    def assigned(self, value: str) -> Any:
        """The line with ``value`` in the place of the prediction."""
        assign = cst.ensure_type(self.statement.body[0], cst.Assign)
        return self.statement.with_changes(body=[assign.with_changes(value=cst.Name(value))])

    def method(self) -> str:
        """``predict_noise`` for this call."""
        parameter = "" if self.model.startswith("self.") else f"{self.model}, "
        head, call = f"def predict_noise(self, {parameter}**kwargs):\n", f"{self.model}(**kwargs)"
        if self.unused:  # a model that returns another number of results is refused, as in the source
            return f"{head}    prediction{f', {UNUSED}' * self.unused} = {call}\n    return prediction\n"
        return f"{head}    return {self.result.replace('MODEL', call)}\n"


def find_prediction(item: Any, models: list[str]) -> Prediction | None:
    """The prediction that a statement makes, if it is a plain one."""
    assign = only(item)
    if not isinstance(assign, cst.Assign) or len(assign.targets) != 1:
        return None
    calls = [call for call in nodes(assign.value, cst.Call) if dotted(call.func) in models]
    if len(calls) != 1:
        return None
    [call] = calls
    target = assign.targets[0].target
    result = code(assign.value).replace(code(call), "MODEL")
    parts = isinstance(target, cst.Tuple) and all(isinstance(e.value, cst.Name) for e in target.elements)
    if not (RESULT.fullmatch(result) and isinstance(target, cst.Name)) and not (result == "MODEL" and parts):
        return None
    unused = 0
    if isinstance(target, cst.Tuple) and all(code(e.value) == UNUSED for e in target.elements[1:]):
        unused = len(target.elements) - 1
        result, target = "MODEL[0]", cst.ensure_type(target.elements[0].value, cst.Name)
        item = item.with_changes(body=[assign.with_changes(targets=[cst.AssignTarget(target)])])
    return Prediction(item, call, dotted(call.func) or "", result, frozenset(names_in(target)), unused)
