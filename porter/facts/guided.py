"""Which values of a function may differ with its guidance: all that can hold both branches is among them.

A batch of both branches is made where there is guidance, and is half as long where there is none. So a value that
depends on guidance neither by what it is computed from nor by the tests that it stands under is the same for both
branches, whatever its shape.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection

from porter.source.walk import walk

# What the parameters, tests and tensors of classifier-free guidance are called.
GUIDED = re.compile(r"guidance|guider|cfg|negative|uncond")
# Calls that put tensors together, which may be the two branches.
JOINS = ("cat", "concat", "stack", "repeat", "repeat_interleave", "tile")
# Calls that make a tensor of a size, given first.
MAKERS = ("zeros", "ones", "empty", "full")
_Body = list[ast.stmt]


class GuidedNames:
    """The variables of a function that may differ with its guidance where it calls its model.

    Args:
        function: a method.
        call: of the model, as ``ast.unparse`` writes it.
        apart: attributes of ``self`` that have nothing to do with guidance: components, and methods that do not
            mention it. Of others nothing is known.

    Attributes:
        names: the variables.
    """

    def __init__(self, function: ast.FunctionDef, call: str, apart: Collection[str] = ()) -> None:
        self._apart, self._call = apart, call
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        self.names = {argument.arg for argument in arguments if GUIDED.search(argument.arg)}
        self._there: set[str] | None = None
        self._block(function.body, False)
        self.names = self.names if self._there is None else self._there

    def mentioned(self, node: ast.AST) -> bool:
        """Whether what an expression gives may differ with guidance."""
        if speaks_of_guidance(node):
            return True
        for part in walk(node):
            match part:
                case ast.Name(id=name) if name in self.names:
                    return True
                case ast.Attribute(value=ast.Name(id="self"), attr=name) if name not in self._apart:
                    return True
                case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in JOINS:
                    return True
                case ast.BinOp(op=ast.Mult(), right=ast.Constant(value=2)) | ast.BinOp(left=ast.List(), op=ast.Add()):
                    return True
        return False

    def _block(self, body: _Body, under: bool) -> None:
        for item in body:
            inside = under
            match item:
                case ast.If(test=test) | ast.While(test=test):
                    inside = under or self.mentioned(test)
                case ast.For(target=target, iter=values) | ast.AsyncFor(target=target, iter=values):
                    self._take(target, under or self.mentioned(values))
                case ast.With(items=items) | ast.AsyncWith(items=items):
                    for held in items:
                        if held.optional_vars is not None:
                            self._take(held.optional_vars, under or self.mentioned(held.context_expr))
                case _ if not isinstance(item, ast.Try | ast.Match):
                    self._simple(item, under)
            # What the end of a loop makes guided, its beginning reads.
            for _ in range(2 if isinstance(item, ast.For | ast.AsyncFor | ast.While) else 1):
                for inner in _blocks(item):
                    self._block(inner, inside)

    def _simple(self, item: ast.stmt, under: bool) -> None:
        """A statement without a body: what it binds, or writes to, is as guided as what it mentions."""
        if isinstance(item, ast.Assign) and self._call in ast.unparse(item):
            self._there = set(self.names)
        if under or self.mentioned(item):
            for node in walk(item):
                if isinstance(node, ast.Assign):
                    for target in node.targets:
                        self._take(target, True)
                elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr):
                    self._take(node.target, True)
                elif isinstance(item, ast.Expr) and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    self._take(node.func.value, True)  # things.append(guided)

    def _take(self, target: ast.expr, guided: bool) -> None:
        if guided:
            held = target
            while isinstance(held, ast.Subscript | ast.Attribute | ast.Starred):
                held = held.value
            parts = held.elts if isinstance(held, ast.Tuple | ast.List) else []
            for part in parts:
                self._take(part, True)
            if isinstance(held, ast.Name) and held.id != "self":
                self.names.add(held.id)


def speaks_of_guidance(node: ast.AST) -> bool:
    """Whether a name in some code is one that guidance uses."""
    for part in walk(node):
        match part:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)) | ast.arg(arg=name):
                if GUIDED.search(name):
                    return True
    return False


def rows_along(function: ast.FunctionDef, names: Collection[str]) -> dict[str, int]:
    """Variables that hold tensors with a row for each sample of both branches behind their first dimension.

    ``cache[0] = torch.zeros((2, rows, heads))``, where ``rows`` is twice as much with guidance as without.
    """
    counts = {
        target.id
        for node in walk(function)
        if isinstance(node, ast.Assign) and _is_doubled(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: dict[str, set[int]] = {}
    for node in walk(function) if counts else ():
        if not isinstance(node, ast.Assign):
            continue
        owners = {base.id for target in node.targets if isinstance(base := _base(target), ast.Name)} & set(names)
        for call in (part for part in walk(node.value) if owners and isinstance(part, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr in MAKERS and call.args:
                sizes = call.args[0].elts if isinstance(call.args[0], ast.Tuple | ast.List) else call.args
                for place, size in enumerate(sizes):
                    if isinstance(size, ast.Name) and size.id in counts:
                        for owner in owners:
                            found.setdefault(owner, set()).add(place)
    return {name: places.pop() for name, places in found.items() if len(places) == 1 and places != {0}}


def _is_doubled(node: ast.expr) -> bool:
    """``count * 2 if guided else count``."""
    match node:
        case ast.IfExp(test=test, body=ast.BinOp(left=left, op=ast.Mult(), right=right), orelse=other):
            pair = {ast.unparse(left), ast.unparse(right)}
            return pair == {ast.unparse(other), "2"} and speaks_of_guidance(test)
    return False


def _base(node: ast.expr) -> ast.expr:
    return _base(node.value) if isinstance(node, ast.Subscript) else node


def _blocks(item: ast.stmt) -> list[_Body]:
    held = [getattr(item, name, None) or [] for name in ("body", "orelse", "finalbody")]
    held += [part.body for part in (*getattr(item, "handlers", ()), *getattr(item, "cases", ()))]
    return [block for block in held if isinstance(block, list)]
