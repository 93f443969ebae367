"""Earlier generations of a file, by their hash: in porter's cache, or in the history of the repository around them."""

from __future__ import annotations

import gzip
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from porter.cache import cache_folder
from porter.emit.manifest import digest

FOLDER = "generations"
# About ten generations of everything that diffusers has.
KEPT = 4000
REVISIONS = 200


def remember(texts: Iterable[str]) -> None:
    """Keep what was written; a cache that cannot be written is no error."""
    folder = cache_folder() / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for text in texts:
            place = folder / f"{digest(text)}.gz"
            if place.exists():
                os.utime(place)
            else:
                handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
                with os.fdopen(handle, "wb") as file:
                    file.write(gzip.compress(text.encode(), compresslevel=3, mtime=0))
                os.replace(temporary, place)
        kept = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        return


def recall(wanted: str, path: Path) -> str | None:
    """The text with the hash ``wanted`` that once stood at ``path``, or None if it is not to be had."""
    try:
        text = gzip.decompress((cache_folder() / FOLDER / f"{wanted}.gz").read_bytes()).decode()
        if digest(text) == wanted:
            return text
    except (OSError, ValueError, EOFError):
        pass
    for revision in _git(path, "log", "--format=%H", f"--max-count={REVISIONS}", "--", path.name).split():
        text = _git(path, "show", f"{revision}:./{path.name}")
        if digest(text) == wanted:
            return text
    return None


def is_committed(path: Path) -> bool:
    """Whether the history of a repository has the file just as it stands."""
    return _git(path, "ls-files", "--", path.name) != "" and _git(path, "status", "--porcelain", "--", path.name) == ""


def _git(path: Path, *command: str) -> str:
    """What git says in the folder of ``path``; nothing if it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(path.parent), *command], capture_output=True, encoding="utf-8", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""
