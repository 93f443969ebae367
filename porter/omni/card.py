"""What the engine wants to know about a port before it loads it, read from the port's text."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from porter.emit.write import read_registry
from porter.omni.ports import port_folder
from porter.on_demand import ConversionRefused

# Keys of what a post-processing hook returns, and the modality that each makes; the first that is there decides.
_KINDS = {"video": "video", "audio": "audio"}


@dataclass(frozen=True)
class Card:
    """One port.

    Attributes:
        name: its pipeline class.
        kind: ``image``, ``video`` or ``audio``.
        image_input: whether it takes pictures.
        arguments: names of its call arguments, as diffusers has them.
    """

    name: str
    kind: str
    image_input: bool
    arguments: frozenset[str]


@cache
def card(name: str) -> Card | None:
    """The card of the port of a pipeline; None if there is no port that could be trusted."""
    try:
        folder = port_folder(name)
    except ConversionRefused:
        return None
    return read_card(folder, name)


def read_card(folder: Path, name: str) -> Card:
    """The card of a port in a folder that ``porter convert -o`` wrote."""
    tables = read_registry(folder)
    entry: Any = tables["_DIFFUSION_MODELS"][name]
    text = (folder / entry[0] / f"{entry[1]}.py").read_text("utf-8")
    return card_of(text, entry[2], tables["_DIFFUSION_POST_PROCESS_FUNCS"].get(name), name)


def card_of(text: str, class_name: str, hook: object, name: str = "") -> Card:
    """The card of a port, from the text of its pipeline file.

    Args:
        text: of the file.
        class_name: of the port's class in it.
        hook: name of the factory of its post-processing hook, if it has one.
        name: of the pipeline, if the class has another.
    """
    tree = ast.parse(text)
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    keys = {key for node in tree.body if getattr(node, "name", None) == hook for key in _returned_keys(node)}
    return Card(
        name=name or class_name,
        kind=next((kind for key, kind in _KINDS.items() if key in keys), "image"),
        image_input=any(_assigns(item, "support_image_input") for item in cls.body),
        arguments=frozenset(_arguments(cls)),
    )


def _returned_keys(node: ast.AST) -> list[str]:
    returned = (item.value for item in ast.walk(node) if isinstance(item, ast.Return))
    keys = (key for value in returned if isinstance(value, ast.Dict) for key in value.keys)
    return [str(key.value) for key in keys if isinstance(key, ast.Constant)]


def _assigns(item: ast.stmt, name: str) -> bool:
    return isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id == name


def _arguments(cls: ast.ClassDef) -> list[str]:
    functions = {item.name: item for item in cls.body if isinstance(item, ast.FunctionDef)}
    taking = functions.get("prepare_encode", functions["forward"])
    names = [arg.arg for arg in (*taking.args.posonlyargs, *taking.args.args, *taking.args.kwonlyargs)]
    return [name for name in names if name not in ("self", "req", "state")]
