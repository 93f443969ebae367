"""Ports of target ``porter`` with the imports of target ``vllm-omni``.

The other direction is a table (:mod:`porter.targets`) that sends both of the engine's packages to one; back, the table
of symbols says which of the two has a name.
"""

from __future__ import annotations

import re

from porter.targets import Symbols, get_target

_LINE = re.compile(r"^(\s*from )(porter\.runtime(?:\.\w+)*)( import )(\([^)]*\)|[^\n(]*)", re.MULTILINE)
_ALIAS = re.compile(r"\s+as\s+\w+")


def for_engine(text: str) -> str:
    """The text of a generated file with the engine's modules in its import lines.

    Raises:
        ValueError: the engine has no such name.
    """
    symbols = get_target("vllm-omni").symbols

    def replace(found: re.Match[str]) -> str:
        names = [_ALIAS.sub("", part).strip() for part in found[4].strip("()").split(",")]
        module = _module(symbols, found[2], [name for name in names if name])
        return f"{found[1]}{module}{found[3]}{found[4]}"

    return _LINE.sub(replace, text)


def _module(symbols: Symbols, module: str, names: list[str]) -> str:
    for package in ("vllm_omni", "vllm"):
        candidate = package + module.removeprefix("porter.runtime")
        if all(symbols.has(candidate, name) for name in names):
            return candidate
    raise ValueError(f"neither vllm_omni nor vllm has {', '.join(names)} where {module} has it")
