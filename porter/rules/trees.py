"""Walks over libcst trees, and what can be read off them.

libcst's own ``visit`` goes through every space and bracket and makes every node anew, which is most of the time of a
conversion. The walk here looks at what is not layout and rebuilds only what changed. Nodes never change and equal only
themselves, so what was read off one (its text, its names) is kept for the next who asks.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, Literal, TypeVar, get_origin

import libcst as cst

from porter.rules.text import code
from porter.source.walk import walk

Node = TypeVar("Node", bound=cst.CSTNode)

# Fields that hold layout: spaces, comments, brackets and punctuation.
LAYOUT = {
    *("lpar", "rpar", "lbracket", "rbracket", "lbrace", "rbrace", "comma", "colon", "dot", "equal", "semicolon"),
    *("leading_lines", "lines_after_decorators", "header", "footer", "trailing_whitespace", "first_line", "operator"),
}


@cache
def fields(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    """The fields of a node type that may hold nodes which are not layout, decorators first, as written."""
    names = [field.name for field in dataclasses.fields(kind) if not _is_text(field.type)]
    kept = [name for name in names if name not in LAYOUT and not name.startswith("whitespace_")]
    return tuple(sorted(kept, key=lambda name: name != "decorators"))


def _is_text(annotation: Any) -> bool:
    return annotation is str or get_origin(annotation) is Literal


@cache
def _is(kind: Any, wanted: Any) -> bool:
    # libcst's nodes have an abstract base, so that `isinstance` runs Python; the answer is the same for all of a type.
    return issubclass(kind, wanted)


@cache
def _last_first(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    return tuple(reversed(fields(kind)))


def visit(node: Any, visitor: cst.CSTTransformer | cst.CSTVisitor) -> Any:
    """``node`` after ``visitor`` was offered it and everything in it that is not layout, as by libcst's ``node.visit``.

    Returns:
        A node, or what ``on_leave`` put in its place (``RemoveFromParent``, ``FlattenSentinel``).
    """
    return _Walk(visitor).visit(node)


class _Walk:
    """One walk of a visitor, which is asked for the types of nodes that it has a method for and no others.

    libcst's visitors have a method for every type; to call one that does nothing, twice for each node, takes longer
    than the walk itself.
    """

    def __init__(self, visitor: cst.CSTTransformer | cst.CSTVisitor) -> None:
        self._visitor = visitor
        self._looks = isinstance(visitor, cst.CSTVisitor)
        self._asked: dict[type, tuple[bool, bool]] = {}

    def visit(self, node: Any) -> Any:
        kind = type(node)
        asked = self._asked.get(kind)
        if asked is None:
            asked = self._asked[kind] = _asked(self._visitor, kind)
        enters, leaves = asked
        updated = node if enters and not self._visitor.on_visit(node) else self._children(node, kind)
        if not leaves:
            return updated
        if self._looks:
            self._visitor.on_leave(node)  # type: ignore[call-arg]
            return node
        return self._visitor.on_leave(node, updated)  # type: ignore[call-arg]

    def _children(self, node: cst.CSTNode, kind: type[cst.CSTNode]) -> cst.CSTNode:
        changes: dict[str, Any] = {}
        for name in fields(kind):
            value = getattr(node, name)
            held: Any = type(value)
            if held is tuple or held is list:
                items = self._sequence(value)
                if items is not value:
                    changes[name] = items
            elif _is(held, cst.CSTNode):
                new = self.visit(value)
                if new is not value:
                    changes[name] = None if isinstance(new, cst.RemovalSentinel) else new
        return node.with_changes(**changes) if changes else node

    def _sequence(self, items: Any) -> Any:
        found: list[Any] = []
        changed = False
        for item in items:
            new = self.visit(item)
            if new is item:
                found.append(item)
                continue
            changed = True
            if isinstance(new, cst.FlattenSentinel):
                found.extend(new)
            elif not isinstance(new, cst.RemovalSentinel) and not _emptied(item, new):
                found.append(new)
        return tuple(found) if changed else items


def _asked(visitor: Any, kind: type) -> tuple[bool, bool]:
    """Whether a visitor does anything where a node of a type is entered, and where it is left."""
    if hasattr(visitor, "asked"):
        return visitor.asked(kind.__name__)
    own, base = type(visitor), cst.CSTVisitor if isinstance(visitor, cst.CSTVisitor) else cst.CSTTransformer

    def differs(*names: str) -> bool:
        return any(getattr(own, name, None) is not getattr(base, name, None) for name in names)

    return differs("on_visit", f"visit_{kind.__name__}"), differs("on_leave", f"leave_{kind.__name__}")


def _emptied(before: cst.CSTNode, after: cst.CSTNode) -> bool:
    """Whether a line lost its last statement."""
    return isinstance(after, cst.SimpleStatementLine) and not after.body and bool(getattr(before, "body", True))


def nodes(
    root: cst.CSTNode, kind: type[Node] | tuple[type[Node], ...], leave_out: Mapping[type, tuple[str, ...]] = {}
) -> Iterator[Node]:
    """All nodes of one type in ``root`` that are not layout, in source order.

    Args:
        root: where to look.
        kind: the type, or several.
        leave_out: by type of node, the fields not to look into.
    """
    stack = [root]
    while stack:
        node = stack.pop()
        own = type(node)
        if _is(own, kind):
            yield node  # type: ignore[misc]
        skipped = leave_out.get(own, ())
        for name in _last_first(own):
            value = getattr(node, name)
            if not value or name in skipped:
                continue
            held: Any = type(value)
            if held is tuple or held is list:
                stack.extend(reversed(value))
            elif _is(held, cst.CSTNode):
                stack.append(value)


@lru_cache(maxsize=512)
def to_ast(node: cst.CSTNode) -> ast.Module:
    """The standard library's tree of a node: ten times faster to walk than libcst's, for questions that only read.

    All who ask get the same tree; whoever changes it takes a copy.
    """
    if isinstance(node, cst.BaseSuite):
        node = cst.FunctionDef(name=cst.Name("_"), params=cst.Parameters(), body=node)
    return ast.parse(code(node))


CONSTANTS = ("True", "False", "None")  # names to libcst
# Identifiers that are no variables: members, keywords, the names that definitions and imports bind.
NO_VARIABLES: dict[type[cst.CSTNode], tuple[str, ...]] = {
    cst.Attribute: ("attr",),
    cst.Arg: ("keyword",),
    cst.Param: ("name",),
    cst.FunctionDef: ("name",),
    cst.ClassDef: ("name",),
    cst.ImportFrom: ("module", "names"),
    cst.Import: ("names",),
    cst.ExceptHandler: ("name",),
    cst.Global: ("names",),
    cst.Nonlocal: ("names",),
}


@lru_cache(maxsize=1024)
def names_in(node: cst.CSTNode) -> tuple[str, ...]:
    """Variables read or bound anywhere in ``node``, in source order."""
    found = dict.fromkeys(item.value for item in nodes(node, cst.Name, NO_VARIABLES))
    return tuple(name for name in found if name not in CONSTANTS)


@lru_cache(maxsize=512)
def names_read(node: cst.CSTNode) -> frozenset[str]:
    """Variables read anywhere in ``node``."""
    found = (n for n in walk(to_ast(node)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
    return frozenset(n.id for n in found)


@lru_cache(maxsize=512)
def names_bound(node: cst.CSTNode) -> frozenset[str]:
    """Variables bound anywhere in ``node``."""
    found = (n for n in walk(to_ast(node)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return frozenset(n.id for n in found)


@lru_cache(maxsize=1024)
def identifiers(node: cst.CSTNode) -> frozenset[str]:
    """All identifiers anywhere in ``node``, whatever they stand for."""
    return frozenset(found.value for found in nodes(node, cst.Name))


class Substitution(cst.CSTTransformer):
    """Puts something in the place of variables; subclasses say what, in ``leave_Name``. Members and keywords stay."""

    def leave_Attribute(self, original: cst.Attribute, updated: cst.Attribute) -> cst.Attribute:
        return updated if updated.attr is original.attr else updated.with_changes(attr=original.attr)

    def leave_Arg(self, original: cst.Arg, updated: cst.Arg) -> cst.Arg:
        return updated if updated.keyword is original.keyword else updated.with_changes(keyword=original.keyword)


class _Rename(Substitution):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, cst.parse_expression(new)

    def leave_Name(self, original: cst.Name, updated: cst.Name) -> cst.BaseExpression:
        return self.new.deep_clone() if updated.value == self.old else updated


def rename(node: Any, old: str, new: str) -> Any:
    """``node`` with the expression ``new`` where the variable ``old`` was."""
    return node if old == new else visit(node, _Rename(old, new))
