"""Evidence that a port computes what diffusers computes.

``run_parity(name)`` runs both side by side and compares them stage by stage; ``checkpoint`` builds the tiny random
checkpoints that it uses. Nothing here is imported until it is asked for: torch is slow to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from porter.parity.models import check_model
    from porter.parity.request import to_request
    from porter.parity.results import ParityReport
    from porter.parity.run import run_parity

_EXPORTS = {"ParityReport": "results", "check_model": "models", "run_parity": "run", "to_request": "request"}

__all__ = ["ParityReport", "check_model", "run_parity", "to_request"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
