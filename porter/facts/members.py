"""What the constructor of a module keeps, as far as calling it later asks for it."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from porter.facts.scope import Found, dotted, find_method
from porter.source.walk import walk

CONTAINERS = ("ModuleList", "ModuleDict", "Sequential")
TENSORS = ("Parameter", "Buffer", "Tensor", "FloatTensor", "Generator", "FrozenDict")
# The one function of diffusers that makes modules by their names.
ACTIVATION = "get_activation"


@dataclass(frozen=True)
class Built:
    """One construction: of a class whose code is at hand, or of one known by where it comes from."""

    origin: str
    found: Found | None = None

    def __hash__(self) -> int:
        return hash((self.origin, id(self.found.node) if self.found else 0))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Built) and hash(self) == hash(other)


class Members:
    """By attribute of a class: what is built for it, containers left out; nothing at all for what was handed in."""

    def __init__(self) -> None:
        self._known: dict[int, dict[str, tuple[Built, ...]]] = {}

    def of(self, owner: Found | None) -> dict[str, tuple[Built, ...]]:
        if owner is None:
            return {}
        key = id(owner.node)
        if key not in self._known:
            self._known[key] = _members(owner)
        return self._known[key]


def _members(owner: Found) -> dict[str, tuple[Built, ...]]:
    init = find_method(owner, "__init__")
    if init is None:
        return {}
    found: dict[str, tuple[Built, ...]] = {}
    lists: dict[str, list[ast.expr]] = {}
    for node in walk(init.node):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name, value in _pairs(target, node.value):
                    if name.startswith("self."):
                        _add(found, name.removeprefix("self."), _built(value, init, lists))
                    elif name:
                        lists.setdefault(name, []).append(value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            name = dotted(node.func.value)
            if name.startswith("self."):
                _add(found, name.removeprefix("self."), _built(node.args[0], init, lists))
            else:
                lists.setdefault(name, []).append(node.args[0])
    if inherited := _super_init(owner, init):
        for name, built in _members(inherited).items():
            found.setdefault(name, built)
    return found


def _super_init(owner: Found, init: Found) -> Found | None:
    """The base whose constructor an own constructor calls."""
    assert isinstance(owner.node, ast.ClassDef)
    for base in owner.node.bases:
        found = owner.scope.find(base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found.node, ast.ClassDef):
            inherited = find_method(found, "__init__")
            if inherited is not None and inherited.node is not init.node:
                return found
    return None


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[str, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return [pair for inner, part in zip(target.elts, value.elts) for pair in _pairs(inner, part)]
    return [(dotted(target), value)]


def _add(found: dict[str, tuple[Built, ...]], name: str, built: tuple[Built, ...] | None) -> None:
    if built is not None:
        found[name] = tuple(dict.fromkeys([*found.get(name, ()), *built]))


def _built(value: ast.expr, init: Found, lists: dict[str, list[ast.expr]]) -> tuple[Built, ...] | None:
    """What an expression builds; None if that is no module."""
    if isinstance(value, ast.Name):
        parts = [_built(item, init, {}) for item in lists.get(value.id, ())]
        return tuple(b for part in parts for b in part or ()) or None
    made: list[Built] = []
    is_module = False
    for call in (node for node in walk(value) if isinstance(node, ast.Call)):
        name = dotted(call.func)
        last = name.rpartition(".")[2]
        if last in TENSORS or not (last[:1].isupper() or last == ACTIVATION):
            continue
        is_module = True
        if last in CONTAINERS:
            for argument in call.args:
                argument = argument.value if isinstance(argument, ast.Starred) else argument
                for item in lists.get(dotted(argument), ()):
                    made += _built(item, init, lists) or ()
            continue
        made.append(Built(init.scope.origin(name), init.scope.find(name) if "." not in name else None))
    return tuple(made) if is_module else None
