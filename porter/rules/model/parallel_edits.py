"""Changes inside the functions of modules that are split over ranks."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst

from porter.facts.parallel.flow import Edit
from porter.rules.engine import code, make_call, statement
from porter.rules.fold import dotted
from porter.rules.model.parallel_helpers import GATHER
from porter.rules.trees import fields, visit


def edited(function: cst.FunctionDef, edits: frozenset[Edit]) -> tuple[cst.FunctionDef, set[str]]:
    """The function with its edits made, and the names that they need.

    Edits are those of :class:`porter.facts.parallel.flow.Plan`.
    """
    changes = _Changes(function, edits)
    new = visit(function, changes)
    return new, changes.needs


class _Changes(cst.CSTTransformer):
    def __init__(self, function: cst.FunctionDef, edits: frozenset[Edit]) -> None:
        self.needs: set[str] = set()
        found = _preorder(function.body)
        ifs = [node for node in found if isinstance(node, cst.If)]
        returns = [node for node in found if isinstance(node, cst.Return)]
        self._norms = {edit[1] for edit in edits if edit[0] == "norm"}
        self._tables = {edit[1] for edit in edits if edit[0] == "table"}
        self._masks = {edit[1] for edit in edits if edit[0] == "mask"}
        self._returns: dict[int, list[int | None]] = {}
        self._branches: dict[int, list[tuple[str, str]]] = {}
        for kind, *what in sorted(edits, key=str):
            if kind == "return":
                self._returns.setdefault(id(returns[what[0]]), []).append(what[1])
            elif kind == "branch":
                self._branches.setdefault(id(ifs[what[0]]), []).append((what[1], what[2]))

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        function = dotted(updated.func) or ""
        if function.split(".")[-1] in self._norms and "." in function:
            self.needs.add("norm_over_ranks")
            return make_call("norm_over_ranks", [cst.Arg(updated.func), *updated.args])
        if self._masks and isinstance(updated.func, cst.Attribute) and _plain(original) in self._masks:
            self.needs.add("rank_heads")
            batch, heads = (cst.Arg(argument.value) for argument in updated.args[:2])
            mask = make_call("rank_heads", [cst.Arg(updated.func.value), batch, heads])
            return updated.with_changes(func=updated.func.with_changes(value=mask))
        if self._tables and _plain(original) in self._tables:
            self.needs.add("rank_table")
            first, *rest = updated.args
            return updated.with_changes(args=[first, *(self._cut(argument) for argument in rest)])
        return updated

    def _cut(self, argument: cst.Arg) -> cst.Arg:
        return argument.with_changes(value=make_call("rank_table", [cst.Arg(argument.value)]))

    def leave_Return(self, original: cst.Return, updated: cst.Return) -> cst.Return:
        places = self._returns.get(id(original), [])
        value = updated.value
        if not places or value is None:
            return updated
        self.needs.add(GATHER)
        if places == [None]:
            return updated.with_changes(value=_gathered(value))
        assert isinstance(value, cst.Tuple)
        elements = [
            element.with_changes(value=_gathered(element.value)) if place in places else element
            for place, element in enumerate(value.elements)
        ]
        return updated.with_changes(value=value.with_changes(elements=elements))

    def leave_If(self, original: cst.If, updated: cst.If) -> cst.If:
        for branch, name in self._branches.get(id(original), []):
            self.needs.add(GATHER)
            line = statement(f"{name} = {GATHER}({name})")
            if branch == "body":
                updated = updated.with_changes(body=_appended(updated.body, line))
            elif isinstance(updated.orelse, cst.Else):
                updated = updated.with_changes(
                    orelse=updated.orelse.with_changes(body=_appended(updated.orelse.body, line))
                )
            else:  # none, or an elif, which goes into an else of its own
                held = [] if updated.orelse is None else [updated.orelse]
                updated = updated.with_changes(orelse=cst.Else(cst.IndentedBlock([*held, line])))
        return updated


def _appended(block: cst.BaseSuite, line: Any) -> cst.BaseSuite:
    return block.with_changes(body=[*block.body, line])


def _gathered(value: cst.BaseExpression) -> cst.Call:
    return make_call(GATHER, [cst.Arg(value)])


def _plain(node: cst.CSTNode) -> str:
    return ast.unparse(ast.parse(code(node), mode="eval"))


def _preorder(node: cst.CSTNode) -> list[cst.CSTNode]:
    """Nodes in source order, functions inside left out."""
    found: list[cst.CSTNode] = []
    for name in fields(type(node)):
        value = getattr(node, name)
        for child in value if isinstance(value, tuple | list) else [value]:
            if isinstance(child, cst.CSTNode) and not isinstance(child, cst.FunctionDef | cst.Lambda | cst.ClassDef):
                found.append(child)
                found += _preorder(child)
    return found
