"""What was measured about a port, from the project's own tables; where nothing was, there is nothing."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "parity" / "data"


@cache
def measured(table: str) -> dict[str, Any]:
    """A table of results by pipeline: ``results`` (in one process) or ``omni`` (in vLLM-Omni's own worker)."""
    file = DATA / f"{table}.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found
