"""Two predictions of which the second is made for guidance, and what becomes of both."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import libcst as cst

from porter.facts.flow import flow, reads
from porter.rules.engine import (
    bare,
    code,
    names_bound,
    names_in,
    names_read,
    nodes,
    parameters,
    statements,
    to_ast,
    visit,
)
from porter.rules.fold import dotted
from porter.rules.pipeline.predictions import Prediction, find_prediction
from porter.source.walk import walk

# How guidance scales are called, at the end of whatever holds them.
SCALE = re.compile(r"(^|[._])(guidance_scale|cfg_scale)$")


@dataclass
class Pair:
    """A prediction, and a second one under a test, neither of which needs the other.

    Attributes:
        at: where in the block the test stands.
        between: statements from the first prediction to the test.
        before: statements under the test before the second prediction.
        after: those behind it.
    """

    positive: Prediction
    negative: Prediction
    guard: cst.If
    at: int
    between: list[Any]
    before: list[Any]
    after: list[Any]

    @classmethod
    def find(cls, body: list[Any], at: int, positive: Prediction, models: list[str]) -> Pair | None:
        for index in range(at + 1, len(body)):
            item = body[index]
            if isinstance(item, cst.If):
                for inner, under in enumerate(item.body.body):
                    negative = find_prediction(under, models)
                    if negative is not None:
                        between, inside = body[at + 1 : index], list(item.body.body)
                        pair = cls(positive, negative, item, index, between, inside[:inner], inside[inner + 1 :])
                        return pair if pair._independent() else None
            if find_prediction(item, models) is not None:
                return None
        return None

    def _independent(self) -> bool:
        first, second = self.positive, self.negative
        if (first.model, first.result, first.unused) != (second.model, second.result, second.unused):
            return False
        if first.positional or second.positional:
            return False
        if not all(_binds_names(item) for item in (*self.between, *self.before)):
            return False
        made = _bound([first.statement, *self.between])
        needed = reads(to_ast(self.guard.test)) | _reads(self.before) | reads(to_ast(second.call))
        return not made & needed and not _bound(self.before) & _reads(self.between)

    def alike(self, local: set[str]) -> Pair:
        """The pair with what is done to each of the two predictions, and to both alike, as a part of predicting.

        Cut down to image tokens, say, both have one shape, which ranks need to exchange them.

        Args:
            local: variables of the function.
        """
        pair = self
        while (shorter := pair._without_first_end(local)) is not None:
            pair = shorter
        return pair

    def _without_first_end(self, local: set[str]) -> Pair | None:
        first, second = self.positive.variable, self.negative.variable
        if first is None or second is None or not self.between or not self.after:
            return None
        end, calls = self.between[0], (self.positive.call, self.negative.call)
        if names_bound(end) != {first} or first not in names_read(end) or not _binds_names(end):
            return None
        # A slice of the first tokens is the engine's to take.
        if bare(visit(end, _Replace(first, second))) != bare(self.after[0]) or _sliced(end, first) is not None:
            return None
        wanted = (set(names_read(end)) - {first}) & local
        keywords = {arg.keyword.value for call in calls for arg in call.args if arg.keyword is not None}
        if any(arg.keyword is None for call in calls for arg in call.args) or wanted & {*keywords, second, "kwargs"}:
            return None
        wants = tuple(dict.fromkeys((*self.positive.wants, *sorted(wanted))))
        positive = replace(self.positive, then=(*self.positive.then, end), wants=wants)
        negative = replace(self.negative, then=(*self.negative.then, self.after[0]), wants=wants)
        return replace(self, positive=positive, negative=negative, between=self.between[1:], after=self.after[1:])


@dataclass
class Combined:
    """A pair whose results are combined and nothing else: by a method of its own."""

    pair: Pair
    result: str
    scale: str | None
    taken: list[str]
    body: list[Any]
    length: str | None

    @classmethod
    def of(cls, pair: Pair, forward: cst.FunctionDef) -> Combined | None:
        positive, negative = pair.positive.variable, pair.negative.variable
        result = _result(pair)
        if positive is None or negative is None or result is None:
            return None
        after, length = list(pair.after), None
        if pair.between:
            length = _sliced(pair.between[0], positive)
            if len(pair.between) > 1 or length is None or not after or _sliced(after[0], negative) != length:
                return None
            after = after[1:]
        through = flow([node for item in after for node in to_ast(item).body])
        if result not in through.sure or any(isinstance(n, ast.Return) for item in after for n in walk(to_ast(item))):
            return None
        inside = {
            id(node) for item in (pair.guard, pair.positive.statement, *pair.between) for node in nodes(item, cst.Name)
        }
        outside = {n.value for n in nodes(forward.body, cst.Name) if id(n) not in inside}
        if (through.bound - {result}) & outside:
            return None
        free = through.exposed - {positive, negative, "self"}
        local = free & local_names(forward)
        if local & _bound(pair.before):
            return None
        scales = {text for item in after for text in _scales(item)}
        scale = scales.pop() if len(scales) == 1 else None
        if scale is not None:
            after = [visit(item, _Replace(scale, "true_cfg_scale")) for item in after]
            local -= {scale}
        order = [n for item in after for n in names_in(item)]
        return cls(pair, result, scale, sorted(local, key=order.index), after, length)

    def call(self) -> list[Any]:
        test = code(self.pair.guard.test)
        text = f"{self.result} = self.predict_noise_maybe_with_cfg(do_true_cfg={test}, "
        text += f"true_cfg_scale={self.scale or 1.0}, positive_kwargs=positive_kwargs, "
        text += "negative_kwargs=negative_kwargs, cfg_normalize=False"
        text += f", output_slice={self.length}" if self.length else ""
        text += f", kwargs=dict({', '.join(f'{n}={n}' for n in self.taken)})" if self.taken else ""
        return statements(f"{text})")

    def method(self) -> str:
        head = (
            "def combine_cfg_noise(self, positive_noise_pred, negative_noise_pred, true_cfg_scale, "
            "cfg_normalize=False, kwargs=None):\n"
            '    """What guidance makes of the two predictions."""\n'
        )
        lines = [
            f"{self.pair.positive.variable} = {self.pair.positive.out_of('positive_noise_pred')}",
            f"{self.pair.negative.variable} = {self.pair.negative.out_of('negative_noise_pred')}",
            *(f'{name} = kwargs["{name}"]' for name in self.taken),
        ]
        function = cst.ensure_type(cst.parse_statement(f"{head}    pass\n"), cst.FunctionDef)
        doc = list(function.body.body)[:1]
        body = [*doc, *statements("\n".join(lines)), *self.body, *statements(f"return {self.result}")]
        return code(function.with_changes(body=cst.IndentedBlock(body)))


def _result(pair: Pair) -> str | None:
    """The variable that holds the guided prediction, with and without guidance."""
    other = pair.guard.orelse
    if other is None:
        return pair.positive.variable
    if not isinstance(other, cst.Else) or len(other.body.body) != 1:
        return None
    found = re.fullmatch(r"(\w+) = (\w+)", bare(other.body.body[0]))
    return found[1] if found and found[2] == pair.positive.variable else None


def _sliced(item: Any, variable: str) -> str | None:
    """``N`` of ``x = x[:, :N]``."""
    match to_ast(item).body:
        case [
            ast.Assign(
                targets=[ast.Name(id=target)],
                value=ast.Subscript(
                    value=ast.Name(id=source),
                    slice=ast.Tuple(
                        elts=[
                            ast.Slice(lower=None, upper=None, step=None),
                            ast.Slice(lower=None, upper=ast.expr() as upper, step=None),
                        ]
                    ),
                ),
            )
        ] if target == source == variable:
            return ast.unparse(upper)
    return None


def _scales(item: Any) -> Iterable[str]:
    for node in nodes(item, (cst.Name, cst.Attribute)):
        text = dotted(node)
        if text and SCALE.search(text) and (isinstance(node, cst.Attribute) or text in names_in(item)):
            yield text


class _Replace(cst.CSTTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def leave_Attribute(self, original: cst.Attribute, updated: cst.Attribute) -> cst.BaseExpression:
        return cst.Name(self.new) if dotted(original) == self.old else updated.with_changes(attr=original.attr)

    def leave_Name(self, original: cst.Name, updated: cst.Name) -> cst.BaseExpression:
        return cst.Name(self.new) if original.value == self.old else updated

    def leave_Arg(self, original: cst.Arg, updated: cst.Arg) -> cst.Arg:
        return updated.with_changes(keyword=original.keyword)


def local_names(function: cst.FunctionDef) -> set[str]:
    """Parameters of a function, and what it binds."""
    return _bound(list(function.body.body)) | {parameter.name.value for parameter in parameters(function)}


def _binds_names(item: Any) -> bool:
    """A statement that does nothing but bind variables."""
    return all(
        isinstance(node, ast.Assign) and all(isinstance(n, ast.Name | ast.Tuple) for n in node.targets)
        for node in to_ast(item).body
    )


def _bound(items: list[Any]) -> set[str]:
    return {name for item in items for name in names_bound(item)}


def _reads(items: list[Any]) -> set[str]:
    return {name for item in items for name in names_read(item)}
