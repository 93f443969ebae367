"""Which variables a run of statements needs from before, and which it leaves behind.

The question behind every cut of a function into pieces (live-variable analysis): a piece has to be handed what it reads
before it surely bound it itself. Branches under the same test are taken together: what ``if guided:`` bound, a later
``if guided:`` may read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

from porter.source.walk import walk


@dataclass
class Flow:
    """What statements do to variables.

    Attributes:
        exposed: read before the statements surely bound them.
        bound: bound on some way through.
        sure: bound on every way through that goes on to the next statement.
        ends: no way goes on to the next statement.
    """

    exposed: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)
    sure: set[str] = field(default_factory=set)
    ends: bool = False
    _under: dict[str, set[str]] = field(default_factory=dict)
    """Bound under a test: by its text, for as long as none of its names is bound anew."""

    def then(self, other: Flow) -> None:
        """Take in what comes next."""
        self.exposed |= other.exposed - self.sure
        self.bound |= other.bound
        self.sure |= other.sure
        self.ends = self.ends or other.ends
        self._under = {test: names for test, names in self._under.items() if not _mentions(test, other.bound)}

    def known(self, test: ast.expr) -> set[str]:
        """What is surely bound where ``test`` holds: under itself, or under one of the tests that it joins by and."""
        parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
        return set().union(*(self._under.get(text, set()) for text in map(ast.unparse, [test, *parts])))


def _mentions(test: str, names: set[str]) -> bool:
    return any(isinstance(n, ast.Name) and n.id in names for n in walk(ast.parse(test)))


def flow(statements: Iterable[ast.stmt], known: set[str] = frozenset()) -> Flow:  # type: ignore[assignment]
    """The flow of variables through statements that follow one another.

    Args:
        statements: in order.
        known: surely bound before the first of them.
    """
    total = Flow(sure=set(known))
    for statement in statements:
        if total.ends:
            break
        if isinstance(statement, ast.If):
            _branches(total, statement)
        else:
            total.then(_statement(statement))
    return total


def _branches(total: Flow, node: ast.If) -> None:
    total.then(Flow(exposed=reads(node.test)))
    negated = ast.UnaryOp(ast.Not(), node.test)
    body = flow(node.body, total.known(node.test))
    other = flow(node.orelse, total.known(negated))
    if body.ends or other.ends:
        going = [branch for branch in (body, other) if not branch.ends]
    else:
        going = [body, other]
    merged = Flow(
        exposed=body.exposed | other.exposed,
        bound=body.bound | other.bound,
        sure=set.intersection(*(branch.sure for branch in going)) if going else set(),
        ends=not going,
    )
    total.then(merged)
    for test, branch in ((node.test, body), (negated, other)):
        if not _mentions(ast.unparse(test), branch.bound):
            total._under.setdefault(ast.unparse(test), set()).update(branch.sure)


def _statement(node: ast.stmt) -> Flow:
    match node:
        case ast.For() | ast.AsyncFor():
            body = flow([*node.body])
            targets = _targets(node.target)
            after = flow(node.orelse)
            exposed = reads(node.iter) | reads(node.target) | (body.exposed - targets) | after.exposed
            return Flow(exposed, targets | body.bound | after.bound)
        case ast.While():
            body, after = flow(node.body), flow(node.orelse)
            return Flow(reads(node.test) | body.exposed | after.exposed, body.bound | after.bound)
        case ast.With() | ast.AsyncWith():
            head = Flow()
            for item in node.items:
                targets = _targets(item.optional_vars) if item.optional_vars else set()
                head.then(Flow(reads(item.context_expr), targets, targets))
            head.then(flow(node.body))
            return head
        case ast.Try():
            body, last = flow(node.body), flow(node.finalbody)
            others = [flow(handler.body) for handler in node.handlers]
            parts = [body, *others, flow(node.orelse)]
            sure = set.intersection(body.sure, *(o.sure for o in others if not o.ends)) | last.sure
            exposed = set().union(*(p.exposed for p in parts)) | (last.exposed - sure)
            return Flow(exposed, set().union(*(p.bound for p in parts), last.bound), sure, last.ends)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return Flow(_free(node), {node.name}, {node.name})
        case ast.Import() | ast.ImportFrom():
            names = {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            return Flow(set(), names, names)
        case ast.Return() | ast.Raise() | ast.Continue() | ast.Break():
            return Flow(reads(node), ends=True)
        case ast.AugAssign():
            names = _targets(node.target)
            return Flow(reads(node.value) | reads(node.target) | names, names, names)
    names = {n.id for n in walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names -= _inner(node)
    return Flow(reads(node), names, names)


def _targets(node: ast.expr) -> set[str]:
    return {n.id for n in walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def reads(node: ast.AST) -> set[str]:
    """Variables that a node reads, those of its own comprehensions and lambdas left out."""
    found = {n.id for n in walk(node) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Store)}
    return found - _inner(node)


def _inner(node: ast.AST) -> set[str]:
    """Variables of comprehensions and lambdas in ``node``."""
    names: set[str] = set()
    for item in walk(node):
        if isinstance(item, ast.comprehension):
            names |= _targets(item.target)
        elif isinstance(item, ast.Lambda):
            names |= {a.arg for a in walk(item.args) if isinstance(a, ast.arg)}
    return names


def _free(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    """Variables that a nested definition takes from around it."""
    own = {a.arg for a in walk(node) if isinstance(a, ast.arg)}
    own |= {n.id for n in walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return {n.id for n in walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - own
