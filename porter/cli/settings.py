"""Settings of a project: ``[tool.porter]`` in its pyproject.toml. What the command line says wins."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from porter.cli.common import Failure

# Setting: its type, and the parameter that it stands for in each command.
SETTINGS: dict[str, tuple[type, dict[str, str]]] = {
    "source": (str, dict.fromkeys(("list", "convert", "check", "diff", "explain"), "source")),
    "target": (str, dict.fromkeys(("convert", "diff"), "target")),
    "output": (str, {"convert": "output", "check": "folder", "upgrade": "folder"}),
    "models_dir": (str, dict.fromkeys(("parity", "run"), "models_dir")),
    "jobs": (int, dict.fromkeys(("list", "convert", "check", "upgrade", "parity"), "jobs")),
    "tier": (str, {"convert": "tier"}),
    "strict": (bool, {"convert": "strict"}),
    "conflicts": (str, dict.fromkeys(("convert", "check", "upgrade"), "conflicts")),
    "allow_imports": (list, {}),
}
# Relative to the folder of pyproject.toml.
PATHS = ("source", "output", "models_dir")
WORDS = {str: "a string", int: "a whole number", bool: "true or false", list: "a list of names"}


def defaults(start: Path | None = None) -> dict[str, dict[str, Any]]:
    """Defaults of each command's parameters, from the nearest pyproject.toml that has the table.

    Args:
        start: the folder to look in first; the current one by default.

    Raises:
        Failure: an unknown setting (the nearest name is given), or a value of the wrong type.
    """
    file, table = _find(start or Path.cwd())
    found: dict[str, dict[str, Any]] = {}
    for name, value in table.items():
        kind, commands = _known(file, name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise Failure(f"{file}: [tool.porter] {name} must be {WORDS[kind]}")
        if name in PATHS:
            value = _path(file.parent, str(value))
        if isinstance(value, list):
            os.environ.setdefault("PORTER_ALLOW_IMPORTS", ",".join(map(str, value)))
        for command, parameter in commands.items():
            found.setdefault(command, {})[parameter] = value
    return found


def _path(folder: Path, value: str) -> str:
    """A path of the file, as seen from here; in full where it lies beside or above."""
    path = os.path.normpath(os.path.join(folder, value))
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def _find(start: Path) -> tuple[Path, Mapping[str, Any]]:
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            tool = tomllib.loads(file.read_text("utf-8")).get("tool", {})
        except (ValueError, OSError) as error:
            raise Failure(f"{file}: {error}") from error
        if isinstance(tool, dict) and "porter" in tool:
            table = tool["porter"]
            if not isinstance(table, dict):
                raise Failure(f"{file}: tool.porter must be a table")
            return file, table
    return start, {}


def _known(file: Path, name: str) -> tuple[type, dict[str, str]]:
    if name not in SETTINGS:
        near = difflib.get_close_matches(name.replace("-", "_"), SETTINGS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTINGS)}"
        raise Failure(f"{file}: [tool.porter] has no setting {name!r}; {hint}")
    return SETTINGS[name]
