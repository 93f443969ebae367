"""Fold conditions whose outcome is known: the engine behind every rule that removes a branch.

A rule states facts (``XLA_AVAILABLE`` is False, ``callback_on_step_end`` is None, ``self.norm_cross`` is None, …) and
the shared walk folds what follows from them. Three-valued: what is not known stays as it is written.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import libcst as cst

from porter.rules.text import code
from porter.rules.trees import identifiers, nodes, visit


class _Special:
    def __init__(self, label: str) -> None:
        self.label = label

    def __repr__(self) -> str:
        return self.label


UNKNOWN = _Special("UNKNOWN")
NOT_NONE = _Special("NOT_NONE")


def dotted(node: cst.BaseExpression) -> str | None:
    """``a.b.c`` for a chain of names, None for anything else."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr.value}" if base else None
    return None


COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    cst.Equal: operator.eq,
    cst.NotEqual: operator.ne,
    cst.GreaterThan: operator.gt,
    cst.LessThan: operator.lt,
}


class Facts:
    """What is known: values of names and attribute chains, and of calls.

    Args:
        values: dotted name to a constant, or to ``NOT_NONE``.
        calls: dotted function name to a function from the call to a constant or ``UNKNOWN``.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        calls: Mapping[str, Callable[[cst.Call], Any]] | None = None,
    ) -> None:
        self.values = dict(values or {})
        self.calls = dict(calls or {})

    def merged(self, values: Mapping[str, Any]) -> Facts:
        return Facts({**self.values, **values}, self.calls)

    def value(self, node: cst.BaseExpression) -> Any:
        """The constant that ``node`` evaluates to, ``NOT_NONE``, or ``UNKNOWN``."""
        name = dotted(node)
        if name is not None:
            if name in self.values:
                return self.values[name]
            return {"True": True, "False": False, "None": None}.get(name, UNKNOWN)
        if isinstance(node, cst.Integer | cst.Float | cst.SimpleString):
            return ast.literal_eval(node.value)
        if isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Not):
            truth = self.truth(node.expression)
            return UNKNOWN if truth is None else not truth
        if isinstance(node, cst.BooleanOperation):
            return self._boolean(node)
        if isinstance(node, cst.Comparison) and len(node.comparisons) == 1:
            return self._comparison(node)
        if isinstance(node, cst.Call):
            function = dotted(node.func)
            if function == "isinstance" and len(node.args) == 2 and self.value(node.args[0].value) is None:
                return False
            if function in self.calls:
                return self.calls[function](node)
        if isinstance(node, cst.IfExp):
            truth = self.truth(node.test)
            if truth is not None:
                return self.value(node.body if truth else node.orelse)
        if isinstance(node, cst.BinaryOperation | cst.List | cst.Tuple | cst.Dict):
            return NOT_NONE
        return UNKNOWN

    def truth(self, node: cst.BaseExpression) -> bool | None:
        """Whether ``node`` is true, or None if that is not known."""
        if isinstance(node, cst.BooleanOperation):
            # Either operand may decide; the value of the operation needs the left one.
            deciding = isinstance(node.operator, cst.Or)
            left, right = self.truth(node.left), self.truth(node.right)
            if deciding in (left, right):
                return deciding
            return None if left is None or right is None else not deciding
        value = self.value(node)
        return None if isinstance(value, _Special) else bool(value)

    def _boolean(self, node: cst.BooleanOperation) -> Any:
        """The value of ``and`` and ``or``: one of their operands, not a truth value."""
        left = self.truth(node.left)
        if left is None:
            return UNKNOWN
        return self.value(node.right if left is isinstance(node.operator, cst.And) else node.left)

    def _comparison(self, node: cst.Comparison) -> Any:
        target = node.comparisons[0]
        left, right = self.value(node.left), self.value(target.comparator)
        relation = target.operator
        if isinstance(relation, cst.Is | cst.IsNot) and right is None:
            if left is UNKNOWN:
                return UNKNOWN
            return (left is None) == isinstance(relation, cst.Is)
        if isinstance(left, _Special) or isinstance(right, _Special):
            return UNKNOWN
        compare = COMPARE.get(type(relation))
        try:
            return compare(left, right) if compare else UNKNOWN
        except TypeError:
            return UNKNOWN

    def simplify(self, node: cst.BaseExpression) -> cst.BaseExpression:
        """``node`` with its known operands gone: ``known_true and x`` is ``x``."""
        if isinstance(node, cst.BooleanOperation):
            is_and = isinstance(node.operator, cst.And)
            left, right = self.truth(node.left), self.truth(node.right)
            if left is is_and:
                return in_place_of(node, self.simplify(node.right))
            if right is is_and:
                return in_place_of(node, self.simplify(node.left))
            return node.with_changes(left=self.simplify(node.left), right=self.simplify(node.right))
        return node


def in_place_of(outer: Any, inner: Any) -> Any:
    """``inner`` standing where ``outer`` stood, with the parentheses that bound it."""
    if isinstance(inner, cst.Name | cst.Integer | cst.SimpleString):
        return inner  # binds tighter than anything around it, and stands on one line
    return inner.with_changes(lpar=[*outer.lpar, *inner.lpar], rpar=[*inner.rpar, *outer.rpar])


def fold_if(facts: Facts, node: cst.If, is_elif: bool) -> cst.CSTNode | cst.FlattenSentinel | cst.RemovalSentinel:
    """An ``if`` (its parts already folded) with the branch that cannot run removed."""
    truth = facts.truth(node.test)
    if truth is None:
        return node.with_changes(test=facts.simplify(node.test))
    if truth:
        if is_elif:
            return cst.Else(body=node.body, leading_lines=node.leading_lines)
        return flatten(node.body, node.leading_lines)
    if node.orelse is None:
        return cst.RemoveFromParent()
    if is_elif:
        return node.orelse
    if isinstance(node.orelse, cst.If):
        return node.orelse.with_changes(leading_lines=node.leading_lines)
    return flatten(node.orelse.body, node.leading_lines)


def flatten(body: cst.BaseSuite, leading_lines: Any = ()) -> cst.FlattenSentinel | cst.RemovalSentinel:
    """The statements of a block, to stand in its parent's place; the comments above it go to the first of them."""
    if isinstance(body, cst.SimpleStatementSuite):
        statements: list[Any] = [cst.SimpleStatementLine(body=body.body)]
    else:
        statements = list(body.body)
    statements = [s for s in statements if not isinstance(only(s), cst.Pass)]
    if not statements:
        return cst.RemoveFromParent()
    statements[0] = statements[0].with_changes(leading_lines=[*leading_lines, *statements[0].leading_lines])
    return cst.FlattenSentinel(statements)


def only(node: cst.CSTNode) -> cst.BaseSmallStatement | None:
    """The statement of a line that holds one, None for anything else."""
    return node.body[0] if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1 else None


def _is_pass(body: cst.BaseSuite) -> bool:
    return len(body.body) == 1 and isinstance(only(body.body[0]), cst.Pass)


class Folder(cst.CSTTransformer):
    """Folds conditional statements, conditional expressions and boolean operations by ``facts``."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.count = 0
        self._elifs: set[int] = set()

    def visit_If(self, node: cst.If) -> None:
        if isinstance(node.orelse, cst.If):
            self._elifs.add(id(node.orelse))

    def leave_If(self, original_node: cst.If, updated_node: cst.If) -> Any:
        result = fold_if(self.facts, updated_node, id(original_node) in self._elifs)
        self.count += result is not updated_node and not isinstance(result, cst.If)
        return result

    def leave_IfExp(self, original_node: cst.IfExp, updated_node: cst.IfExp) -> cst.BaseExpression:
        truth = self.facts.truth(updated_node.test)
        if truth is None:
            return updated_node
        self.count += 1
        return in_place_of(updated_node, updated_node.body if truth else updated_node.orelse)

    def leave_BooleanOperation(self, original_node: cst.BooleanOperation, updated_node: cst.BooleanOperation) -> Any:
        # Here the operation may be a value (`x = a or b`), so only its left operand may decide.
        left = self.facts.truth(updated_node.left)
        if left is None:
            return updated_node
        kept = updated_node.right if left is isinstance(updated_node.operator, cst.And) else updated_node.left
        return in_place_of(updated_node, kept)

    def leave_IndentedBlock(self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock) -> Any:
        body = list(cut_unreachable(updated_node.body))
        if not body:
            body = [cst.SimpleStatementLine(body=[cst.Pass()])]
        same = len(body) == len(updated_node.body) and all(a is b for a, b in zip(body, updated_node.body))
        return updated_node if same else updated_node.with_changes(body=body)

    def leave_Else(self, original_node: cst.Else, updated_node: cst.Else) -> Any:
        emptied = _is_pass(updated_node.body) and not _is_pass(original_node.body)
        return cst.RemoveFromParent() if emptied else updated_node


def cut_unreachable(body: Any) -> Any:
    """Statements up to and including the first ``return`` or ``raise`` of a block."""
    for index, statement in enumerate(body):
        if isinstance(only(statement), cst.Return | cst.Raise):
            return body[: index + 1]
    return body


@dataclass
class Bindings:
    """How often each name or attribute is bound, and what single-target assignments assign to a name last."""

    counts: dict[str, int] = field(default_factory=dict)
    values: dict[str, cst.BaseExpression] = field(default_factory=dict)

    def add(self, target: cst.CSTNode) -> None:
        """Count what an assignment to ``target`` binds."""
        if isinstance(target, cst.Tuple | cst.List):
            for element in target.elements:
                self.add(element.value)
        elif isinstance(target, cst.Name | cst.Attribute):
            name = dotted(target) or code(target)
            self.counts[name] = self.counts.get(name, 0) + 1


TARGETED = (cst.AnnAssign, cst.AugAssign, cst.NamedExpr, cst.For, cst.CompFor)
BINDING: tuple[type[cst.CSTNode], ...] = (cst.Assign, cst.AsName, cst.Param, cst.ImportAlias, *TARGETED)


@lru_cache(maxsize=256)
def bindings(body: cst.BaseSuite) -> Bindings:
    """What a block binds: by assignments, loops, ``with``, imports, parameters of inner functions."""
    found = Bindings()
    for node in nodes(body, BINDING):
        if isinstance(node, cst.Assign):
            for item in node.targets:
                found.add(item.target)
            if len(node.targets) == 1 and isinstance(node.targets[0].target, cst.Name):
                found.values[node.targets[0].target.value] = node.value
        elif isinstance(node, cst.AsName | cst.Param):
            found.add(node.name)
        elif isinstance(node, cst.ImportAlias):
            if node.asname is None:
                found.add(cst.Name(code(node.name).split(".")[0]))
        elif isinstance(node, TARGETED):
            found.add(node.target)
    return found


# Calls that are common and known in one form only: the text that tells that form.
TELLTALE = {"isinstance": "isinstance(self", "hasattr": "scaled_dot_product_attention"}


def mentions(node: cst.CSTNode, facts: Facts) -> bool:
    """Whether ``node`` names anything that the facts speak about; most functions do not, and need no folding."""
    text = code(node)
    if not any(name.rpartition(".")[2] in text for name in [*facts.values, *facts.calls]):
        return False  # the common case, and a text is found faster than names are collected
    there = identifiers(node)
    if any(name.rpartition(".")[2] in there for name in facts.values):
        return True
    called = [name for name in facts.calls if name.rpartition(".")[2] in there]
    return any(name not in TELLTALE or TELLTALE[name] in text for name in called)


def fold(node: Any, facts: Facts) -> Any:
    """``node`` folded by ``facts``."""
    return visit(node, Folder(facts))


def fold_function(function: Any, facts: Facts) -> Any:
    """A function folded by ``facts`` and by what its own single assignments then make known."""
    if not mentions(function, facts):
        return function
    starred = [p for p in (function.params.star_arg, function.params.star_kwarg) if isinstance(p, cst.Param)]
    params = {p.name.value for p in (*function.params.params, *function.params.kwonly_params, *starred)}
    function, usable = _fold_assuming(function, facts)
    local = bindings(function.body)
    constants = {
        name: value
        for name, node in local.values.items()
        if local.counts[name] == 1 and name not in params
        for value in [usable.value(node)]
        if value is None or isinstance(value, bool)
    }
    return fold(function, usable.merged(constants)) if constants else function


def _fold_assuming(function: Any, facts: Facts) -> tuple[Any, Facts]:
    """Fold a function that may rebind what the facts speak about.

    The facts are assumed to hold throughout. Where every rebinding turns out to lie in a branch that cannot run, the
    assumption was right; a fact whose name is still rebound afterwards is withdrawn, and folding starts again.
    """
    usable = facts
    while True:
        folded = fold(function, usable)
        rebound = set(bindings(folded.body).counts) & set(usable.values)
        if not rebound:
            return folded, usable
        usable = Facts({k: v for k, v in usable.values.items() if k not in rebound}, usable.calls)
