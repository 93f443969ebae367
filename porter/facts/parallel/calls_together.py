"""Where the projections of a module are applied, and which of them always read one input together."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from porter.source.walk import walk

# Parts of an expression that may not be reached, or be reached several times.
LAZY = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

Key = tuple[str, str, int, str]
Use = tuple[str, str, str]


@dataclass(frozen=True)
class Call:
    """One projection applied to a value: ``owner.member(argument)``.

    Attributes:
        owner: text of what holds the projection.
        argument: text of what it reads.
        suite: the statements among which it stands, by identity; ``place`` counts in it.
        within: the class whose method it is in, or the function.
    """

    member: str
    owner: str
    argument: str
    suite: int
    place: int
    within: str

    @property
    def key(self) -> Key:
        """Alike for projections that are applied to one value side by side."""
        return self.owner, self.argument, self.suite, self.within


class Mentions:
    """How a file uses attributes of some names, constructors left out.

    Attributes:
        calls: where they are applied.
        uses: where they are applied or asked for: name, owner, class or function.
        other: where they are used in another way, or where that may not happen: name, owner, class or function.
    """

    def __init__(self, definitions: list[ast.stmt], names: set[str]) -> None:
        self.names = names
        self.calls: list[Call] = []
        self.uses: dict[Use, None] = {}
        self.other: set[Use] = set()
        self._suites: dict[int, list[ast.stmt]] = {}
        for node in definitions:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            for item in node.body if isinstance(node, ast.ClassDef) else [node]:
                if isinstance(item, ast.FunctionDef):
                    self._suite(item.body, node.name, item.name == "__init__")
                else:  # a list of names of modules
                    self._expression(item, 0, 0, node.name, True)

    def _suite(self, statements: list[ast.stmt], within: str, init: bool) -> None:
        self._suites[id(statements)] = statements
        for place, node in enumerate(statements):
            inner = {id(body): body for body in suites(node)}
            held = {id(item) for body in inner.values() for item in body}
            for child in ast.iter_child_nodes(node):
                if id(child) in held or isinstance(child, ast.ExceptHandler | ast.match_case):
                    continue
                if not (init and _is_own(child)):
                    self._expression(child, id(statements), place, within, bool(inner))
            for body in inner.values():
                self._suite(body, within, init)

    def _expression(self, node: ast.AST, suite: int, place: int, within: str, lazy: bool) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in self.names:
            member, owner = node.func.attr, ast.unparse(node.func.value)
            if lazy or len(node.args) != 1 or node.keywords or not _is_plain(node.args[0]):
                self.other.add((member, owner, within))
            else:
                self.calls.append(Call(member, owner, ast.unparse(node.args[0]), suite, place, within))
                self.uses[member, owner, within] = None
            self._expression(node.func.value, suite, place, within, lazy)
            self._expression(node.args[0], suite, place, within, lazy) if node.args else None
            return
        if (asked := _asked_for(node, self.names)) is not None:
            self.uses[(*asked, within)] = None
            return
        if isinstance(node, ast.Attribute) and node.attr in self.names:
            self.other.add((node.attr, ast.unparse(node.value), within))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in self.names:
            self.other.add((node.value, "", within))
        for child in ast.iter_child_nodes(node):
            self._expression(child, suite, place, within, lazy or isinstance(node, LAZY))

    def together(self, calls: list[Call]) -> bool:
        """Whether nothing between calls of one key changes what they read."""
        statements = self._suites[calls[0].suite]
        first, last = min(call.place for call in calls), max(call.place for call in calls)
        reads = names_of(calls[0].argument) | names_of(calls[0].owner)
        return not any(reads & changed(node) for node in statements[first:last])


def _is_own(node: ast.AST) -> bool:
    """``self.x = …``"""
    own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return own and isinstance(node.ctx, ast.Store)  # type: ignore[attr-defined]


def suites(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks inside a statement."""
    for name in ("body", "orelse", "finalbody"):
        body = getattr(node, name, None)
        if isinstance(body, list) and body:
            yield body
    for part in [*getattr(node, "handlers", ()), *getattr(node, "cases", ())]:
        yield part.body


def names_of(text: str) -> set[str]:
    """Variables of an expression, and attributes of ``self`` in full."""
    found = set()
    for node in walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found - {"self"}


def changed(node: ast.stmt) -> set[str]:
    """Variables that a statement binds or works on in place, attributes in full."""
    found = set()
    for item in walk(node):
        if isinstance(item, ast.Name | ast.Attribute) and not isinstance(item.ctx, ast.Load):
            found.add(ast.unparse(item))
        elif isinstance(item, ast.Subscript) and not isinstance(item.ctx, ast.Load):
            found |= names_of(ast.unparse(item.value))
        elif isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute):
            if item.func.attr.endswith("_") and not item.func.attr.endswith("__"):
                found |= names_of(ast.unparse(item.func.value))
    return found


def by_key(calls: list[Call]) -> dict[Key, list[Call]]:
    """Calls of several projections, those of one value at one place together."""
    found: dict[Key, list[Call]] = defaultdict(list)
    for call in calls:
        found[call.key].append(call)
    return found


def _is_plain(node: ast.expr) -> bool:
    """Whether an argument can be read once for all: nothing in it is called."""
    return not any(isinstance(item, ast.Call | ast.NamedExpr | ast.Await) for item in walk(node))


def _asked_for(node: ast.AST, names: set[str]) -> tuple[str, str] | None:
    """``x.member is None``, ``hasattr(x, "member")``: true of all that are built together, or of none."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Is | ast.IsNot):
        left, against = node.left, node.comparators[0]
        is_none = isinstance(against, ast.Constant) and against.value is None
        if is_none and isinstance(left, ast.Attribute) and left.attr in names:
            return left.attr, ast.unparse(left.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
        name = node.args[1] if len(node.args) == 2 else None
        if isinstance(name, ast.Constant) and name.value in names:
            return name.value, ast.unparse(node.args[0])
    return None
