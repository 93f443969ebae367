"""Faults that change no result: shown from the source, or looked into, each with the reason.

What somebody looked into a reviewer can check, and the run checks that values agree.
"""

from __future__ import annotations

import ast
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard

from pydantic import BaseModel

from porter.parity.mutants.edits import Mutant
from porter.parity.spec import DATA

FILE = DATA / "equivalents.json"


class Equivalent(BaseModel):
    """A change of source text that is known to change nothing."""

    module: str
    function: str
    before: str
    after: str
    reason: str
    later: bool = False
    """Whether values differ at the place itself, and what is made of them is the same: they are not compared there."""


@lru_cache
def known(file: Path = FILE) -> tuple[Equivalent, ...]:
    """All that were looked into."""
    return tuple(Equivalent.model_validate(entry) for entry in json.loads(file.read_text(encoding="utf-8")))


def looked_into(mutant: Mutant) -> Equivalent | None:
    """What is known of a fault that changes nothing; None if nobody looked into it."""
    place = (mutant.module, mutant.function, mutant.before, mutant.after)
    return next(
        (entry for entry in known() if (entry.module, entry.function, entry.before, entry.after) == place), None
    )


def proof(mutant: Mutant, source: bytes) -> str:
    """Why a fault cannot change anything, by the source alone; empty if that does not follow from it.

    Equal rows are the same repeated as a whole or each by itself: proven where the receiver has one row, or one value
    in all of them, by construction.
    """
    if mutant.mutator != "repeated-in-another-order":
        return ""
    text = mutant.before.replace(" .", ".")
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError:
        return ""
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
        return ""
    function = _function(ast.parse(source), mutant)
    if function is None:
        return ""
    made = _parameters_with_one_row(ast.parse(source), mutant.line)
    held = ast.unparse(call.func.value)
    if _one_row(call.func.value, function, mutant.line, 3, made):
        return f"{held} has one row by construction: repeated as a whole or by itself, the rows are the same"
    if _one_value(call.func.value, function, mutant.line, 3):
        return f"{held} is one value for every row by construction: in whatever order, the rows are the same"
    return ""


def _function(tree: ast.Module, mutant: Mutant) -> ast.FunctionDef | None:
    """The innermost function around the fault."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.lineno <= mutant.line <= (node.end_lineno or node.lineno)
    ]
    return max(around, key=lambda node: node.lineno, default=None)


def _parameters_with_one_row(tree: ast.Module, line: int) -> set[str]:
    """Parameters of the class around a line that have one row: ``self.x = nn.Parameter(torch.zeros(1, …))``."""
    around = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.lineno <= line <= (node.end_lineno or 0)
    )
    return {
        ast.unparse(node.targets[0])
        for cls in around
        for node in ast.walk(cls)
        if isinstance(node, ast.Assign) and re.match(r"nn\.Parameter\(torch\.\w+\(\(?1,", ast.unparse(node.value))
    }


def _one_row(value: ast.expr, function: ast.FunctionDef, line: int, depth: int, known: set[str]) -> bool:
    """Whether a tensor has one row, or copies of one, by the expression that made it; ``known`` ones have."""
    if ast.unparse(value) in known:
        return True
    if isinstance(value, ast.Name):
        made = _only_value(value.id, function, line)
        made = _doubled_value(value.id, function, line) if made is None else made
        return made is not None and depth > 0 and _one_row(made, function, made.lineno, depth - 1, known)
    if isinstance(value, ast.Subscript):  # x[None, …], x[-1:], x[:1]
        first = value.slice.elts[0] if isinstance(value.slice, ast.Tuple) and value.slice.elts else value.slice
        return ast.unparse(first) in ("None", "-1:", ":1", "0:1")
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)):
        return False
    name, arguments = value.func.attr, value.args
    if name == "tensor":  # of a list with one item
        return bool(arguments) and isinstance(arguments[0], ast.List) and len(arguments[0].elts) == 1
    texts = [ast.unparse(argument) for argument in arguments]
    if name == "unsqueeze":
        return texts == ["0"]
    if name in ("view", "reshape"):
        return len(texts) > 1 and texts[0] == "1"
    keeps = name in ("to", "float", "type_as", "contiguous", "clone")
    return keeps and _one_row(value.func.value, function, line, depth, known)


def _one_value(value: ast.expr, function: ast.FunctionDef, line: int, depth: int) -> bool:
    """Whether all rows of a vector are the same number: a scalar expanded, and what is computed from it and numbers."""
    if isinstance(value, ast.Name):
        made = _only_value(value.id, function, line)
        return made is not None and depth > 0 and _one_value(made, function, made.lineno, depth - 1)
    if isinstance(value, ast.BinOp):
        sides = (value.left, value.right)
        return any(isinstance(side, ast.Constant) for side in sides) and any(
            _one_value(side, function, line, depth) for side in sides if not isinstance(side, ast.Constant)
        )
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        if value.func.attr == "expand":  # to one axis: what it stands on has none, or one of length 1
            return len(value.args) == 1 and isinstance(value.func.value, ast.Name)
        return value.func.attr == "to" and _one_value(value.func.value, function, line, depth)
    return False


def _only_value(name: str, function: ast.FunctionDef, line: int) -> ast.expr | None:
    """What a name holds at a line: the value of the last assignment before it, if all of them stand straight in a row.

    That is in the block of the function itself, where each runs before the next; None if that cannot be told.
    """
    names = (node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == name)
    stores = [node for node in names if isinstance(node.ctx, ast.Store)]
    straight = [statement for statement in function.body if _gives(statement, name)]
    before = [statement for statement in straight if statement.lineno < line]
    return before[-1].value if before and len(straight) == len(stores) else None


def _doubled_value(name: str, function: ast.FunctionDef, line: int) -> ast.expr | None:
    """The last value that a name was given straight before a line, if all it was given since are copies of its rows."""
    straight = [s for s in function.body if _gives(s, name) and s.lineno < line]
    if not straight:
        return None
    since = [n for n in ast.walk(function) if _gives(n, name) and straight[-1].lineno < n.lineno < line]
    copies = all(re.match(rf"torch\.cat\(\[{name}\] \* \d", ast.unparse(node.value)) for node in since)
    return straight[-1].value if copies else None


def _gives(node: ast.AST, name: str) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]
