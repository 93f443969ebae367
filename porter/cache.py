"""What porter keeps between runs: results that follow from sources and from porter's own code alone.

Everything lies in one folder per state of both, so nothing is ever stale; older states are removed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import platformdirs

import porter
from porter.facts.tiers import DEEPEST

# What a conversion reads besides the sources.
OWN_CODE = (
    "port.py",
    "model_port.py",
    "batch.py",
    "listing.py",
    "source",
    "facts",
    "rules",
    "emit",
    "targets",
    "parity/data/features.json",
)
KEPT_STATES = 4
STATE_LETTERS = 24


def cache_folder() -> Path:
    """Where everything is kept: ``PORTER_CACHE_DIR``, else the user's cache folder."""
    given = os.environ.get("PORTER_CACHE_DIR")
    return Path(given) if given else platformdirs.user_cache_path("porter", appauthor=False)


class Cache:
    """Values by name, for one state of the sources, of porter's code and of the target.

    Args:
        sources: the diffusers package folder.
        target: name of the target.
        folder: where to keep them; None: see :func:`cache_folder`.
        tier: of the ports.
    """

    def __init__(self, sources: Path, target: str, folder: Path | None = None, tier: str = DEEPEST) -> None:
        state = hashlib.sha256()
        allowed = os.environ.get("PORTER_ALLOW_IMPORTS", "")
        for part in (_digest(_own_files()), _digest(_python_files(sources)), f"{target} {tier}", allowed):
            state.update(part.encode())
        self.base = folder or cache_folder()
        self.folder = self.base / state.hexdigest()[:STATE_LETTERS]

    def read(self, name: str) -> Any:
        """The value, or None if there is none or it cannot be read."""
        try:
            return json.loads(gzip.decompress((self.folder / f"{name}.json.gz").read_bytes()))
        except (OSError, ValueError, EOFError):
            return None

    def has(self, name: str) -> bool:
        """Whether there is a value."""
        return (self.folder / f"{name}.json.gz").is_file()

    def write(self, name: str, value: Any) -> None:
        """Keep a value (anything JSON can hold). A cache that cannot be written is no error."""
        try:
            if not self.folder.is_dir():
                self._remove_old_states()
                self.folder.mkdir(parents=True, exist_ok=True)
            data = gzip.compress(json.dumps(value).encode(), compresslevel=3, mtime=0)
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, self.folder / f"{name}.json.gz")
        except OSError:
            return

    def _remove_old_states(self) -> None:
        if not self.base.is_dir():
            return
        folders = [path for path in self.base.iterdir() if path.is_dir() and len(path.name) == STATE_LETTERS]
        states = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
        for state in states[KEPT_STATES - 1 :]:
            shutil.rmtree(state, ignore_errors=True)


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    found = hashlib.sha256()
    for name, path in files:
        found.update(f"{name}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _python_files(folder: Path) -> list[tuple[str, Path]]:
    return sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.py"))


def _own_files() -> list[tuple[str, Path]]:
    package = Path(porter.__file__).parent
    templates = next(f for f in (package / "templates", package.parent / "templates") if f.is_dir())
    found = []
    for root in (*(package / name for name in OWN_CODE), templates):
        paths = root.rglob("*") if root.is_dir() else [root]
        kept = (path for path in paths if path.is_file() and "__pycache__" not in path.parts)
        found += [(path.relative_to(root.parent).as_posix(), path) for path in kept]
    return sorted(found)
