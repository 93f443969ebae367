"""The hashes of what porter wrote last, in ``manifest.json``: by them an edit is told from an older generation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"
VERSION = 1


def digest(text: str) -> str:
    """The sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_manifest(folder: Path) -> dict[str, str]:
    """Hash of the last generation of each file of a folder, before any edit; empty if nothing is known.

    A manifest that cannot be read (a merge left its marks in it, say) knows nothing: edits are then kept aside rather
    than merged.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        files = found["files"] if found["schema_version"] == VERSION else {}
        return {str(name): str(value) for name, value in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def manifest_text(files: dict[str, str]) -> str:
    """The text of ``manifest.json``."""
    return json.dumps({"schema_version": VERSION, "files": dict(sorted(files.items()))}, indent=1) + "\n"
