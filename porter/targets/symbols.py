"""The names that exist in a release of a target, looked up without importing it.

A table is made from published wheels by `tools/make_symbols.py` and stored in two files of `data/`: the names, which
every conversion reads, and the definitions, which are read when somebody first asks for one.
"""

from __future__ import annotations

import gzip
import json
from functools import cache, cached_property
from pathlib import Path
from typing import Any

DEFAULT_TABLE = "vllm-omni-0.30"

_DATA = Path(__file__).parent / "data"


class Symbols:
    """The modules, names and definitions of one table."""

    def __init__(self, table: str = DEFAULT_TABLE) -> None:
        self.table = table
        data = _read(f"symbols-{table}.json.gz")
        self.wheels: dict[str, dict[str, str]] = data["wheels"]
        """The wheels that the table was made from: distribution -> `version` and `sha256`."""
        self._roots = frozenset(data["roots"])
        self._modules: dict[str, str] = data["modules"]
        self._names: dict[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        return f"Symbols({self.table!r})"

    def covers(self, module: str) -> bool:
        """Whether the table speaks about the top-level package of this module at all."""
        return module.partition(".")[0] in self._roots

    def has_module(self, name: str) -> bool:
        """Whether `import name` finds a module."""
        return name in self._modules

    def has(self, module: str, name: str) -> bool:
        """Whether `from module import name` finds something: a name of the module or a module inside it."""
        return name in self.names(module) or f"{module}.{name}" in self._modules

    def names(self, module: str) -> frozenset[str]:
        """The top-level names of a module, empty if there is no such module."""
        names = self._names.get(module)
        if names is None:
            names = self._names[module] = frozenset(self._modules.get(module, "").split())
        return names

    def parameters(self, module: str, name: str) -> tuple[str, ...] | None:
        """The parameters of a function, or of the constructor of a class, in their order; None if not known.

        Open ends carry their stars: `*args`, `**kwargs`.
        """
        entry = self._entry(module, name)
        if entry is None or entry[1:] == ["?"]:
            return None
        return tuple(entry[1:])

    def same(self, module: str, name: str, definition_hash: str) -> bool:
        """Whether the name is defined there with this hash (see `porter.targets.definition_hash`)."""
        entry = self._entry(module, name)
        return entry is not None and entry[0] == definition_hash

    def origin(self, module: str, name: str) -> tuple[str, str] | None:
        """The module that defines what `from module import name` gives, and its name there; None if not known."""
        if name in self._definitions["modules"].get(module, ()):
            return module, name
        target = self._definitions["aliases"].get(module, {}).get(name)
        if target is None:
            return None
        origin, _, origin_name = target.partition(":")
        return origin, origin_name

    def definers(self, name: str) -> tuple[str, ...]:
        """The modules that define a function or class of this name, sorted: where to look for one that moved."""
        return tuple(module for module, entries in self._definitions["modules"].items() if name in entries)

    def _entry(self, module: str, name: str) -> list[str] | None:
        origin = self.origin(module, name)
        if origin is None:
            return None
        entry: str = self._definitions["modules"][origin[0]][origin[1]]
        return entry.split()

    @cached_property
    def _definitions(self) -> dict[str, Any]:
        return _read(f"definitions-{self.table}.json.gz")


@cache
def load_symbols(table: str = DEFAULT_TABLE) -> Symbols:
    """The symbols of a table; one object for each table in a process."""
    return Symbols(table)


def _read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress((_DATA / name).read_bytes()))
    return data
