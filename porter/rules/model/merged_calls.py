"""Calls of projections that became one layer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import libcst as cst

from porter.facts.parallel.merged import Found, Merge, role
from porter.rules.engine import code, names_in, nodes, statement, visit
from porter.rules.fold import dotted

OUTPUTS_OF = "outputs_of"
WORDS = {"q": "query", "k": "key", "v": "value"}


class MergedCalls(cst.CSTTransformer):
    """Puts one call of a layer in the place of calls of the projections that it holds.

    Args:
        within: the definition that is gone through.
        found: what is merged.
    """

    def __init__(self, within: str, found: Found) -> None:
        self.within, self.uses = within, found.uses
        self.members = {member for member, _, _ in found.uses}
        self._names: list[set[str]] = []

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self._names.append(set(names_in(node)))

    def leave_FunctionDef(self, original: cst.FunctionDef, updated: cst.FunctionDef) -> cst.FunctionDef:
        self._names.pop()
        return updated

    def merge(self, node: cst.BaseExpression) -> Merge | None:
        """The layer that ``owner.member`` is part of."""
        if not isinstance(node, cst.Attribute) or node.attr.value not in self.members:
            return None
        owner = ast.unparse(ast.parse(code(node.value), mode="eval"))
        return self.uses.get((node.attr.value, owner, self.within))

    def leave_SimpleStatementSuite(self, original: Any, updated: cst.SimpleStatementSuite) -> Any:
        """``if x: y = self.to_q(x)`` gets a block, so that a line can be put before it."""
        if not any(self._calls(item) for item in updated.body):
            return updated
        return self._block(cst.IndentedBlock([cst.SimpleStatementLine([item]) for item in updated.body]))

    def leave_IndentedBlock(self, original: cst.IndentedBlock, updated: cst.IndentedBlock) -> cst.IndentedBlock:
        return self._block(updated)

    def _calls(self, node: cst.CSTNode) -> list[tuple[cst.Call, Merge]]:
        found = ((call, self.merge(call.func)) for call in nodes(node, cst.Call))
        return [(call, merge) for call, merge in found if merge is not None]

    def _block(self, block: cst.IndentedBlock) -> cst.IndentedBlock:
        if not any(self._calls(item) for item in block.body if _is_simple(item)):
            return block
        body = list(_single(block.body))
        groups: dict[tuple[str, str, Merge], list[tuple[int, cst.Call, str]]] = {}
        for place, item in enumerate(body):
            for call, merge in self._calls(item) if _is_simple(item) else ():
                assert isinstance(call.func, cst.Attribute)
                key = code(call.func.value), code(call.args[0].value), merge
                groups.setdefault(key, []).append((place, call, call.func.attr.value))
        lines = [[item] for item in body]
        for (owner, argument, merge), found in groups.items():
            outputs = f"{OUTPUTS_OF}({owner}.{merge.name}, {argument})"
            names = self._assigned(body, found)
            if names is not None:
                for place, _, _ in found[1:]:
                    lines[place] = []
                above, lines[found[0][0]] = body[found[0][0]].leading_lines, []
            else:
                names = self._free(merge.members)
                values = _Values({id(call): cst.Name(names[member]) for _, call, member in found})
                for place, _, _ in found:
                    lines[place][-1] = visit(lines[place][-1], values)
                last = lines[found[0][0]][-1]
                above, lines[found[0][0]][-1] = last.leading_lines, last.with_changes(leading_lines=[])
            new: Any = statement(f"{', '.join(names[member] for member in merge.members)} = {outputs}")
            lines[found[0][0]].insert(max(len(lines[found[0][0]]) - 1, 0), new.with_changes(leading_lines=above))
        return block.with_changes(body=[line for held in lines for line in held])

    def _assigned(self, body: list[Any], found: list[tuple[int, cst.Call, str]]) -> dict[str, str] | None:
        """The variables that take the outputs, where lines that follow each other do nothing else."""
        places = [place for place, _, _ in found]
        if places != list(range(places[0], places[0] + len(places))):
            return None
        targets = {}
        for place, call, member in found:
            item = body[place].body[0]
            is_plain = isinstance(item, cst.Assign) and item.value is call and len(item.targets) == 1
            if not is_plain or not isinstance(item.targets[0].target, cst.Name):
                return None
            targets[member] = item.targets[0].target.value
        return targets if len(set(targets.values())) == len(targets) else None

    def _free(self, members: tuple[str, ...]) -> dict[str, str]:
        """Names for the outputs that the function does not have yet."""
        taken = self._names[-1] if self._names else set()
        found = {}
        for member in members:
            word = WORDS.get(role(member), member.removesuffix("_proj").removesuffix("_layer"))
            options = [word, member, f"{member}_output", *(f"{member}_output{n}" for n in range(2, 99))]
            found[member] = next(name for name in options if name not in taken)
            taken.add(found[member])
        return found

    def leave_Comparison(self, original: cst.Comparison, updated: cst.Comparison) -> cst.Comparison:
        """``self.add_k_proj is not None``"""
        merge = self.merge(updated.left)
        if merge is None or not isinstance(updated.left, cst.Attribute):
            return updated
        return updated.with_changes(left=updated.left.with_changes(attr=cst.Name(merge.name)))

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        """``hasattr(self, "add_k_proj")``"""
        if dotted(updated.func) != "hasattr" or len(updated.args) != 2:
            return updated
        owner, name = (argument.value for argument in updated.args)
        if not isinstance(name, cst.SimpleString):
            return updated
        merge = self.merge(cst.Attribute(owner, cst.Name(str(name.evaluated_value)))) if _is_name(name) else None
        if merge is None:
            return updated
        first, second = updated.args
        return updated.with_changes(args=[first, second.with_changes(value=cst.SimpleString(f'"{merge.name}"'))])


class _Values(cst.CSTTransformer):
    """Puts variables in the place of calls."""

    def __init__(self, values: dict[int, cst.Name]) -> None:
        self.values = values

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> Any:
        return self.values.get(id(original), updated)


def _is_name(node: cst.SimpleString) -> bool:
    return isinstance(node.evaluated_value, str) and node.evaluated_value.isidentifier()


def _is_simple(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.SimpleStatementLine)


def _single(body: Any) -> Iterator[Any]:
    """Lines of one statement each."""
    for item in body:
        if not isinstance(item, cst.SimpleStatementLine) or len(item.body) == 1:
            yield item
            continue
        for place, small in enumerate(item.body):
            lines = item.leading_lines if place == 0 else []
            plain = small.with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
            yield cst.SimpleStatementLine([plain], leading_lines=lines)
