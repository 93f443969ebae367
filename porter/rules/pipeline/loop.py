"""The denoising loop of a pipeline's call, and where one step of it can be cut in two."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import libcst as cst

from porter.rules.engine import arguments, bare, code, names_bound, names_in, names_read, nodes, to_ast, visit
from porter.rules.fold import dotted, only
from porter.rules.pipeline.parts import take_apart


class NoSplit(Exception):
    """Why a call cannot be cut at its denoising loop."""


@dataclass
class Loop:
    """A call, cut at its one denoising loop.

    Attributes:
        before: statements up to the loop.
        denoise: the part of the loop's body that predicts.
        step: the part that applies the prediction.
        after: statements behind the loop.
        index: variable that counts the steps, if the loop has one.
        element: variable that holds what the loop goes over; None if it only counts.
        schedule: what the loop goes over.
        given: variables in what the scheduler's step is given to apply.
        sample: the variable that the scheduler's step moves on.
    """

    before: list[Any]
    denoise: list[Any]
    step: list[Any]
    after: list[Any]
    index: str | None
    element: str | None
    schedule: cst.BaseExpression
    given: frozenset[str]
    sample: str


def find_loop(body: list[Any], denoisers: list[str]) -> Loop:
    """The one denoising loop among the statements of a call.

    Args:
        body: the statements of the call.
        denoisers: what predicts, by the expressions that name it.

    Raises:
        NoSplit: there is none or several, or it is not a plain loop over the schedule; the message says which.
    """
    flat = list(_unwrapped(body))
    found = [i for i, item in enumerate(flat) if isinstance(item, cst.For) and _denoises(item, denoisers)]
    if not found:
        raise NoSplit("no denoising loop at the level of the call")
    if len(found) > 1:
        raise NoSplit("several denoising loops follow one another")
    [at] = found
    loop = flat[at]
    if loop.orelse is not None:
        raise NoSplit("the denoising loop has an else")
    index, element, schedule = _heads(loop)
    kept: list[Any] = []
    dropped: list[Any] = []
    for item in loop.body.body:
        (dropped if _is_interrupt(item) or _is_progress(item) else kept).append(item)
    kept = [visit(item, _WithoutProgress()) if "progress_bar" in names_in(item) else item for item in kept]
    if any("progress_bar" in names_in(item) for item in kept):
        raise NoSplit("the denoising loop reads its progress bar")
    _check_jumps(kept, flat[:at])
    first = _first_of_step(kept, denoisers)
    rest = [*flat[:at], *kept, *flat[at + 1 :]]
    unused = set().union(*(names_read(item) for item in dropped), set())
    unused -= set().union(*(names_read(item) for item in rest)) | names_read(schedule)
    before = [item for item in flat[:at] if not _binds_only(item, unused)]
    given, sample = _handed(kept[first:])
    denoise, step = take_apart(kept[:first], kept[first:], given)
    return Loop(before, denoise, step, flat[at + 1 :], index, element, schedule, given, sample)


def _unwrapped(body: list[Any]) -> Any:
    """Statements, with those of a progress bar's block in its place."""
    for item in body:
        if isinstance(item, cst.With) and any(_is_bar(part.item) for part in item.items) and len(item.items) == 1:
            inner: list[Any] = list(item.body.body)
            inner[0] = inner[0].with_changes(leading_lines=[*item.leading_lines, *inner[0].leading_lines])
            yield from inner
        else:
            yield item


def _is_bar(node: cst.BaseExpression) -> bool:
    return isinstance(node, cst.Call) and (dotted(node.func) or "").rpartition(".")[2] in ("progress_bar", "tqdm")


def _heads(loop: cst.For) -> tuple[str | None, str | None, cst.BaseExpression]:
    """(index, element, schedule) of ``for i, t in enumerate(schedule)`` and its kin."""
    iterable, index = _without_bar(loop.iter), None
    target: cst.BaseExpression = loop.target
    function = dotted(iterable.func) if isinstance(iterable, cst.Call) else None
    if isinstance(iterable, cst.Call) and function == "enumerate" and len(iterable.args) == 1:
        if not isinstance(target, cst.Tuple) or len(target.elements) != 2:
            raise NoSplit("the denoising loop does not count its steps in the usual way")
        index, target = code(target.elements[0].value), target.elements[1].value
        iterable = _without_bar(iterable.args[0].value)
        function = dotted(iterable.func) if isinstance(iterable, cst.Call) else None
    if not isinstance(target, cst.Name):
        raise NoSplit("the denoising loop goes over more than one thing")
    if isinstance(iterable, cst.Call) and function == "range" and len(iterable.args) == 1 and index is None:
        return target.value, None, iterable.args[0].value
    if isinstance(iterable, cst.Call):
        raise NoSplit(f"the denoising loop goes over {code(iterable)}")
    return index, target.value, iterable


def _without_bar(node: cst.BaseExpression) -> cst.BaseExpression:
    return node.args[0].value if isinstance(node, cst.Call) and _is_bar(node) and node.args else node


def _denoises(loop: cst.For, denoisers: list[str]) -> bool:
    return any(_is_step(call) or _calls(call, denoisers) for call in nodes(loop, cst.Call))


def _is_step(call: cst.Call) -> bool:
    """``self.scheduler.step(…)``, on whatever scheduler."""
    owner, _, name = (dotted(call.func) or "").rpartition(".")
    return name == "step" and "scheduler" in owner


def _calls(call: cst.Call, denoisers: list[str]) -> bool:
    return dotted(call.func) in denoisers


def _is_interrupt(item: Any) -> bool:
    """``if self.interrupt: continue``; nothing sets it, since callbacks are dropped."""
    if not isinstance(item, cst.If) or item.orelse is not None or dotted(item.test) != "self.interrupt":
        return False
    return len(item.body.body) == 1 and isinstance(only(item.body.body[0]), cst.Continue | cst.Break)


def _is_progress(item: Any) -> bool:
    """A statement that only moves the progress bar, under whatever condition."""
    if isinstance(item, cst.If):
        return item.orelse is None and all(_is_progress(inner) for inner in item.body.body)
    text = bare(item) if isinstance(item, cst.SimpleStatementLine) else ""
    return text.startswith(("progress_bar.", "xm.mark_step("))


class _WithoutProgress(cst.CSTTransformer):
    """Removes what moves the progress bar from among other statements."""

    def leave_SimpleStatementLine(self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine) -> Any:
        return cst.RemoveFromParent() if _is_progress(original) else updated

    def leave_IndentedBlock(self, original: cst.IndentedBlock, updated: cst.IndentedBlock) -> cst.IndentedBlock:
        return updated if updated.body else updated.with_changes(body=[cst.parse_statement("pass")])


def _check_jumps(kept: list[Any], before: list[Any]) -> None:
    for item in kept:
        for found in _own_jumps(to_ast(item).body):
            raise NoSplit(f"a {found} inside the denoising loop")
    if any(isinstance(n, ast.Return) for item in before for n in _outside_functions(to_ast(item))):
        raise NoSplit("the call can return before its denoising loop")


def _own_jumps(body: list[ast.stmt]) -> Any:
    """Jumps out of one pass of a loop with this body."""
    for item in body:
        if isinstance(item, ast.Continue | ast.Break | ast.Return):
            yield type(item).__name__.lower()
        if isinstance(item, ast.If | ast.With | ast.Try):
            for name in ("body", "orelse", "handlers", "finalbody"):
                yield from _own_jumps(getattr(item, name, []))
        elif isinstance(item, ast.For | ast.While):
            yield from ("return" for n in _outside_functions(item) if isinstance(n, ast.Return))
        elif isinstance(item, ast.ExceptHandler):
            yield from _own_jumps(item.body)


def _outside_functions(node: ast.AST) -> Any:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            yield child
            yield from _outside_functions(child)


def _first_of_step(body: list[Any], denoisers: list[str]) -> int:
    """Where the part of a step begins that applies the prediction: at the scheduler's step."""
    stepping = [i for i, item in enumerate(body) if any(_is_step(call) for call in nodes(item, cst.Call))]
    predicting = [i for i, item in enumerate(body) if any(_calls(call, denoisers) for call in nodes(item, cst.Call))]
    last = predicting[-1] if predicting else -1
    if any(i <= last for i in stepping):
        raise NoSplit("a scheduler step and a prediction are mixed in one step")
    if not stepping:
        raise NoSplit("no scheduler step in the denoising loop")
    # A scheduler that is asked what a prediction means moves nothing on yet.
    while len(stepping) > 1 and _given(body[stepping[0]]) & names_bound(body[stepping[0]]):
        del stepping[0]
    first = stepping[0]
    # What only prepares the scheduler step goes with it, back to the last statement that makes what it is given.
    given = _given(body[first])
    while first - 1 > last and not names_bound(body[first - 1]) & given:
        first -= 1
    return first


def _given(item: Any) -> set[str]:
    """Variables in what a statement hands to the scheduler's step as the prediction."""
    return {name for call in nodes(item, cst.Call) if _is_step(call) for name in names_in(call.args[0].value)}


def _handed(step: list[Any]) -> tuple[frozenset[str], str]:
    """What the scheduler's step is given as the prediction, and the variable that it moves on."""
    [call, *_] = [call for item in step for call in nodes(item, cst.Call) if _is_step(call)]
    positional, keywords, _ = arguments(call)
    prediction = keywords["model_output"].value if "model_output" in keywords else call.args[0].value
    sample = (
        keywords["sample"].value if "sample" in keywords else (positional[2].value if len(positional) > 2 else None)
    )
    names = names_in(sample) if sample is not None else ()
    if not names:
        raise NoSplit("what the scheduler's step moves on is not a variable")
    return frozenset(names_in(prediction)), names[0]


def _binds_only(item: Any, names: set[str]) -> bool:
    """A plain assignment of nothing but variables that no one reads."""
    tree = to_ast(item).body
    if len(tree) != 1 or not isinstance(tree[0], ast.Assign):
        return False
    return bool(names_bound(item)) and names_bound(item) <= names and isinstance(tree[0].targets[0], ast.Name)
