"""Calls of a denoiser in the body of a pipeline."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import libcst as cst

from porter.facts.pipeline import PipelineFacts
from porter.rules.engine import arguments, code, names_in, nodes, statements
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
        then: statements that make the variable what is wanted of it: they belong to predicting.
        wants: variables that these read.
    """

    statement: cst.SimpleStatementLine
    call: cst.Call
    model: str
    result: str
    names: frozenset[str]
    unused: int = 0
    then: tuple[Any, ...] = ()
    wants: tuple[str, ...] = ()

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
        return self.model == "self.transformer" and self.result == "MODEL[0]" and not self.unused and not self.then

    @property
    def has_parts(self) -> bool:
        """Whether the variable holds all that the model returns: a tuple, of however many tensors."""
        return self.result == "MODEL" and self.variable is not None and not self.then

    def out_of(self, parameter: str) -> str:
        """The prediction as an expression, where ``parameter`` is what ``combine_cfg_noise`` is handed of it."""
        return parameter if self.has_parts else f"single({parameter})"

    @property
    def arguments(self) -> str:
        """The call's arguments as a dict, and whatever else ``predict_noise`` takes."""
        bare = (arg.with_changes(comma=cst.MaybeSentinel.DEFAULT) for arg in self.call.args)
        return f"dict({', '.join([*(f'{name}={name}' for name in self._taken), *map(code, bare)])})"

    @property
    def _taken(self) -> list[str]:
        """Parameters of ``predict_noise`` that are not the model's: a model that a variable stands for is one."""
        return [*([] if self.model.startswith("self.") else [self.model]), *self.wants]

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
        call = f"{self.model}(**kwargs)"
        lines = [f"return {self.result.replace('MODEL', call)}"]
        if self.unused:  # a model that returns another number of results is refused, as in the source
            lines = [f"{self.variable}{f', {UNUSED}' * self.unused} = {call}", f"return {self.variable}"]
        elif self.then:
            lines = [f"{self.variable} = {self.result.replace('MODEL', call)}", f"return {self.variable}"]
        made = statements(f"def predict_noise({', '.join(['self', *self._taken])}, **kwargs):\n    pass\n")[0]
        body = statements("\n".join(lines))
        return code(made.with_changes(body=cst.IndentedBlock([*body[:-1], *self.then, body[-1]])))


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
    taken = RESULT.fullmatch(result) and isinstance(target, cst.Name)
    if not taken and not (result == "MODEL" and (_is_row(target) or _returns_tuple(call, target))):
        return None
    unused = 0
    if isinstance(target, cst.Tuple) and all(code(e.value) == UNUSED for e in target.elements[1:]):
        unused = len(target.elements) - 1
        result, target = "MODEL[0]", cst.ensure_type(target.elements[0].value, cst.Name)
        item = item.with_changes(body=[assign.with_changes(targets=[cst.AssignTarget(target)])])
    return Prediction(item, call, dotted(call.func) or "", result, frozenset(names_in(target)), unused)


def _is_row(target: cst.BaseExpression) -> bool:
    return isinstance(target, cst.Tuple) and all(isinstance(e.value, cst.Name) for e in target.elements)


def _returns_tuple(call: cst.Call, target: cst.BaseExpression) -> bool:
    """Whether a variable is bound to a model's results as ``return_dict=False`` gives them."""
    _, keywords, _ = arguments(call)
    asked = "return_dict" in keywords and code(keywords["return_dict"].value) == "False"
    return isinstance(target, cst.Name) and asked
