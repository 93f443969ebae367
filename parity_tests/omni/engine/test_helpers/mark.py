"""Stands in for vLLM-Omni's helper of this name: marks of hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def hardware_marks(*, res: dict[str, str], num_cards: int = 1) -> list[Any]:
    """The marks of a platform, its hardware and how many there have to be."""
    [(platform, hardware)] = res.items()
    return [getattr(pytest.mark, name) for name in (platform, hardware, "gpu", f"cards_{num_cards}")]


def hardware_test(*, res: dict[str, str], num_cards: int = 1) -> Callable[[Any], Any]:
    """A decorator with these marks."""

    def mark(function: Any) -> Any:
        for one in hardware_marks(res=res, num_cards=num_cards):
            function = one(function)
        return function

    return mark
