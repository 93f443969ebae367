"""The source files that a port is made of, and a digest by which results are kept valid."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path


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
    """sha256 of a port's source, comment lines left out: headers name versions, not what is computed."""
    found = hashlib.sha256()
    for each in port_files(file):
        lines = each.read_bytes().splitlines(True)
        found.update(b"".join(line for line in lines if not line.startswith(b"#")))
    return found.hexdigest()
