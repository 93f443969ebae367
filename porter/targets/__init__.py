"""The targets of a port: how each spells its imports, and which names exist in it.

A port is written with the canonical names of vLLM-Omni (`vllm_omni.…`, `vllm.…`); a target maps these to its own.
The tables are data (`data/`), and nothing here imports torch, diffusers or a target.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from porter.targets.fingerprint import definition_hash, function_parameters
from porter.targets.symbols import Symbols, load_symbols

__all__ = [
    "Symbols",
    "Target",
    "definition_hash",
    "function_parameters",
    "get_target",
    "load_symbols",
    "target_names",
]


@dataclass(frozen=True)
class Target:
    """One target: its name, its import table, and the table of the symbols that exist in it."""

    name: str
    imports: Mapping[str, str]
    symbol_table: str

    def module(self, name: str) -> str:
        """The target's name for a dotted module of the canonical names."""
        prefix = name
        while prefix:
            if prefix in self.imports:
                return self.imports[prefix] + name[len(prefix) :]
            prefix = prefix.rpartition(".")[0]
        return name

    @property
    def symbols(self) -> Symbols:
        """The symbols under their canonical names, loaded at first use."""
        return load_symbols(self.symbol_table)


def target_names() -> tuple[str, ...]:
    """The names of all targets, the default first."""
    return tuple(_tables())


@cache
def get_target(name: str) -> Target:
    """The target of this name.

    Raises:
        ValueError: there is none; the message names those there are.
    """
    table = _tables().get(name)
    if table is None:
        raise ValueError(f"unknown target {name!r}; the targets are {', '.join(target_names())}")
    return Target(name=name, imports=MappingProxyType(table["imports"]), symbol_table=table["symbols"])


@cache
def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads((Path(__file__).parent / "data" / "targets.toml").read_text("utf-8"))
