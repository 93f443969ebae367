"""The source files that a port is made of, and a digest by which results are kept valid."""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path

_EVIDENCE = re.compile(rb'"(derived|verified)"')


def siblings(file: Path) -> set[str]:
    """Modules of its own package that a file imports."""
    tree = ast.parse(file.read_bytes())
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1)
    return {node.module for node in imports if node.module}


def port_files(file: Path) -> list[Path]:
    """A port's own file and what it imports beside it, directly or not, by name."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            others = (file.parent.joinpath(*name.split(".")).with_suffix(".py") for name in siblings(current))
            waiting += [other for other in others if other.is_file()]
    return sorted(found)


def digest(file: Path) -> str:
    """sha256 of a port's source, without what says how it was made and tried rather than what it computes.

    Comment lines are left out, where headers name versions, and whether a feature is derived or verified by now.
    """
    found = hashlib.sha256()
    for each in port_files(file):
        lines = each.read_bytes().splitlines(True)
        code = b"".join(line for line in lines if not line.startswith(b"#"))
        found.update(_EVIDENCE.sub(b"", code))
    return found.hexdigest()
