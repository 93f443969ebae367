"""What a definition computes, as a short hash, and the parameters that it takes.

The same functions serve the script that makes a symbol table and the converter that asks it, so the two always agree.
Nothing here depends on the version of Python that runs it: `ast.dump` does, so the tree is written out by hand.
"""

from __future__ import annotations

import ast
import hashlib

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_BODY_FIELDS = frozenset({"body", "orelse", "finalbody"})
_SILENT_FIELDS = frozenset({"ctx", "annotation", "returns", "type_comment", "kind"})


def definition_hash(definition: Definition | str) -> str:
    """A hash of what a function or class says, for comparison with `Symbols.same`.

    Comments, layout, docstrings, annotations and `pass` do not count; everything else does, decorators and bases
    included. It covers the definition alone: what the definition calls may differ all the same, and whoever needs
    to know has to compare that too.

    Args:
        definition: the node, or the source text of exactly one function or class that starts in the first column.
    """
    if isinstance(definition, str):
        definition = _only_definition(definition)
    parts: list[str] = []
    _write(definition, parts)
    return hashlib.sha256("".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def function_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool = False) -> tuple[str, ...]:
    """The names of the parameters of a function in their order, as `*args` and `**kwargs` where they are open.

    Args:
        function: the node.
        bound: leave out the first positional parameter (`self`, `cls`).
    """
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if bound:
        names = names[1:]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    names.extend(argument.arg for argument in arguments.kwonlyargs)
    if arguments.kwarg:
        names.append(f"**{arguments.kwarg.arg}")
    return tuple(names)


def _only_definition(source: str) -> Definition:
    body = ast.parse(source).body
    if len(body) != 1 or not isinstance(body[0], Definition):
        raise ValueError("the source text must hold exactly one function or class")
    return body[0]


def _write(node: ast.AST, out: list[str]) -> None:
    """Append the tree as text: fields by name, without what is empty or says nothing about the computation."""
    out.append(f"{type(node).__name__}(")
    for field in node._fields:
        value = getattr(node, field, None)
        if value is None or value == [] or field in _SILENT_FIELDS:
            continue
        if isinstance(value, ast.AST):
            out.append(f"{field}=")
            _write(value, out)
        elif isinstance(value, list):
            if field in _BODY_FIELDS:
                value = _statements(node, field, value)
            elif isinstance(node, ast.JoinedStr):
                value = _merged(value)
            out.append(f"{field}=[")
            for item in value:
                if isinstance(item, ast.AST):
                    _write(item, out)
                else:
                    out.append(repr(item))
                out.append(",")
            out.append("]")
        else:
            out.append(f"{field}={value!r}")
        out.append(";")
    out.append(")")


def _statements(node: ast.AST, field: str, body: list[ast.stmt]) -> list[ast.stmt]:
    if field == "body" and isinstance(node, Definition) and _is_docstring(body[0]):
        body = body[1:]
    return [statement for statement in body if not isinstance(statement, ast.Pass)]


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with neighbouring literals joined: parsers differ in whether they join them."""
    merged: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and value.value == "":
            continue
        last = merged[-1] if merged else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            merged[-1] = ast.Constant(value=str(last.value) + str(value.value))
        else:
            merged.append(value)
    return merged
