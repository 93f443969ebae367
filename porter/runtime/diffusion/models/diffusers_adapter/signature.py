"""The arguments that a pipeline's call really takes: ``**kwargs`` that are only searched for names hide mistakes."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def call_parameters(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a pipeline's ``__call__``, less ``self``.

    ``**kwargs`` stay only where the call hands them on, so that any name may mean something; where it just looks names
    up in them, those names take their place.
    """
    parameters = dict(inspect.signature(call).parameters)
    parameters.pop("self", None)
    rest = next((name for name, item in parameters.items() if item.kind is item.VAR_KEYWORD), None)
    if rest is None:
        return parameters
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(call))))
    except (OSError, TypeError, SyntaxError):
        return parameters
    looked_up: list[str] = []
    lookups = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_name(node.func.value, rest):
            lookups += 1
            if node.func.attr in ("pop", "get") and node.args and isinstance(node.args[0], ast.Constant):
                looked_up.append(str(node.args[0].value))
    uses = sum(_is_name(node, rest) for node in ast.walk(tree))
    if uses > lookups:
        return parameters
    del parameters[rest]
    for name in looked_up:
        parameters.setdefault(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
    return parameters


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
