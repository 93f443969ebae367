"""Branches of guidance that a loop predicts, one after the other, and that are combined behind it: guiders."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import libcst as cst

from porter.facts.flow import flow
from porter.rules.engine import code, make_call, nodes, statements, to_ast
from porter.rules.fold import dotted, only
from porter.rules.pipeline.predictions import RESULT, Prediction
from porter.source.walk import walk


@dataclass
class BranchLoop:
    """``for branch in branches: branch.prediction = self.transformer(…)[0]``, and whatever goes with it.

    All statements but the call run for each branch on every rank: what they do to the model may depend on how often
    they ran.

    Attributes:
        loop: the statement.
        branches, branch: what it goes over, and its variable.
        attribute: of a branch, where its prediction is put.
        prediction: the call.
        at: where in the loop it stands.
    """

    loop: cst.For
    branches: str
    branch: str
    attribute: str
    prediction: Prediction
    at: int

    @classmethod
    def find(cls, item: Any, after: list[Any], models: list[str]) -> BranchLoop | None:
        """The loop that a statement is.

        Args:
            item: the statement.
            after: those behind it in its block.
            models: expressions that name what predicts.
        """
        if not isinstance(item, cst.For) or item.orelse is not None or item.asynchronous is not None:
            return None
        if not isinstance(item.target, cst.Name) or not isinstance(item.iter, cst.Name):
            return None
        calls = [call for call in nodes(item.body, cst.Call) if dotted(call.func) in models]
        places = [at for at, held in enumerate(item.body.body) if calls and code(calls[0]) in code(held)]
        assign = only(item.body.body[places[0]]) if len(calls) == 1 and len(places) == 1 else None
        if not isinstance(assign, cst.Assign) or len(assign.targets) != 1:
            return None
        [call], [at], target = calls, places, assign.targets[0].target
        result = code(assign.value).replace(code(call), "MODEL")
        line = cst.ensure_type(item.body.body[at], cst.SimpleStatementLine)
        names = frozenset({target.value}) if isinstance(target, cst.Name) else frozenset()
        prediction = Prediction(line, call, dotted(call.func) or "", result, names)
        attribute = _kept_as(item, at, target, after)
        inside = flow([node for held in item.body.body for node in to_ast(held).body])
        if attribute is None or not RESULT.fullmatch(result) or inside.exposed & (inside.bound - {item.target.value}):
            return None
        return cls(item, item.iter.value, item.target.value, attribute, prediction, at)

    def shared(self, arguments: list[str]) -> list[Any]:
        """The loop with each prediction made by one rank, and the exchange of what they made.

        Args:
            arguments: of the model's call, as ``name=value``.
        """
        called = make_call("predict_own", ["self", self.branches, self.branch, *arguments])
        body = list(self.loop.body.body)
        assign = self.prediction.statement.body[0].with_changes(value=called)
        body[self.at] = self.prediction.statement.with_changes(body=[assign])
        exchange = statements(f'exchange_predictions(self, {self.branches}, "{self.attribute}")')
        return [self.loop.with_changes(body=self.loop.body.with_changes(body=body)), *exchange]


def _kept_as(loop: cst.For, at: int, target: cst.BaseExpression, after: list[Any]) -> str | None:
    """The attribute of a branch that holds its prediction, which the loop does nothing else with."""
    branch = cst.ensure_type(loop.target, cst.Name).value
    text = "".join(code(held) for place, held in enumerate(loop.body.body) if place != at)
    if isinstance(target, cst.Attribute):
        owner, _, attribute = (dotted(target) or "").partition(".")
        return attribute if owner == branch and f"{branch}.{attribute}" not in text else None
    if not isinstance(target, cst.Name):
        return None
    names = (n for held in loop.body.body for n in walk(to_ast(held)) if isinstance(n, ast.Name))
    uses = [name for name in names if name.id == target.value]
    behind = flow([node for held in after for node in to_ast(held).body]).exposed
    for held in loop.body.body[at + 1 :]:
        assign = only(held)
        if isinstance(assign, cst.Assign) and code(assign.value) == target.value and len(assign.targets) == 1:
            owner, _, attribute = (dotted(assign.targets[0].target) or "").partition(".")
            alone = len(uses) == 2 and text.count(f"{branch}.{attribute}") == 1 and target.value not in behind
            return attribute if alone and owner == branch and attribute.isidentifier() else None
    return None
