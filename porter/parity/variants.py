"""Configurations that nobody tuned: each constructor parameter of a model changed in turn."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from porter.source import Definition, SourceTree

# Where the words are compared that models pass on: kinds of norm, activation, position embedding.
_VOCABULARY = (
    "diffusers.models.attention",
    "diffusers.models.attention_processor",
    "diffusers.models.normalization",
    "diffusers.models.activations",
    "diffusers.models.embeddings",
)
_MISSING = object()


def variants(tree: SourceTree, definition: Definition, config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and changed entries of configurations that differ from ``config`` in one parameter.

    Booleans are flipped, words of a ``Literal`` (and words that the sources compare the parameter with) alternated,
    what may be None is made None or given a value, numbers are changed, lists of them turned round. Whether the model
    accepts the result is for the caller to find out.
    """
    assert isinstance(definition.node, ast.ClassDef)
    init = next((i for i in definition.node.body if isinstance(i, ast.FunctionDef) and i.name == "__init__"), None)
    if init is None:
        return
    arguments = [*init.args.args[1:], *init.args.kwonlyargs]
    padding: list[Any] = [None] * (len(init.args.args) - 1 - len(init.args.defaults))
    defaults = [*padding, *init.args.defaults, *init.args.kw_defaults]
    for argument, default in zip(arguments, defaults, strict=True):
        name = argument.arg
        value = config.get(name, _literal(default))
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        for other in _others(tree, definition, name, value, annotation):
            yield f"{name}={other!r}", {name: other}


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else _MISSING
    except ValueError:
        return _MISSING


def _others(tree: SourceTree, definition: Definition, name: str, value: Any, annotation: str) -> list[Any]:
    others: list[Any] = []
    if isinstance(value, bool):
        others.append(not value)
    elif isinstance(value, int):
        others += [value * 2 or 1, *([1] if name.startswith("num_") else [])]
    elif isinstance(value, float):
        others.append(value * 1.5 or 0.25)
    elif isinstance(value, str):
        others += _words(tree, definition, name, annotation)
    elif isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        others += [[*reversed(value)], [*value[:-1], value[-1] * 2]]
    elif value is None:
        others += [kind for word, kind in (("bool", True), ("int", 2), ("float", 0.5)) if word in annotation][:1]
        others += _words(tree, definition, name, annotation) if "str" in annotation or "Literal" in annotation else []
    if value is not None and "None" in annotation:
        others.append(None)
    held = list(value) if isinstance(value, tuple) else value
    return [other for index, other in enumerate(others) if other != held and other not in others[:index]]


def _words(tree: SourceTree, definition: Definition, name: str, annotation: str) -> list[str]:
    words: list[str] = []
    for node in ast.walk(ast.parse(annotation or "None")):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
            words += [n.value for n in ast.walk(node.slice) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    if not words:
        modules = [definition.module, *(m for m in map(tree.module, _VOCABULARY) if m is not None)]
        words = [word for module in modules for word in _compared(module.tree, name)]
    return list(dict.fromkeys(words))


def _compared(tree: ast.Module, name: str) -> Iterator[str]:
    """The words that a parameter or attribute called ``name`` is compared with."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        if any(getattr(side, "id", getattr(side, "attr", None)) == name for side in sides):
            for side in sides:
                yield from (n.value for n in ast.walk(side) if isinstance(n, ast.Constant) and isinstance(n.value, str))
