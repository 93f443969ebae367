"""A mix of requests as a server meets them, the same every time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

CANCELLED, MALFORMED = "cancelled", "malformed"
SIZES = ("64x64", "96x64", "128x128")
STEPS = (2, 4, 8)
BAD: tuple[dict[str, Any], ...] = (
    {"size": "big"},
    {"num_inference_steps": 0},
    {"moon": 1},
    {"seed": "x"},
    {"prompt": None},
    {"model": "other"},
)


@dataclass(frozen=True)
class Item:
    """One request of the mix, and what becomes of it."""

    kind: str
    body: dict[str, Any]


def make_mix(count: int, sizes: tuple[str, ...] = SIZES, steps: tuple[int, ...] = STEPS) -> list[Item]:
    """``count`` requests: 5 % are cancelled, 5 % are malformed, the others valid, in sizes and steps of all sorts."""
    draw = random.Random(0)
    kinds = [CANCELLED] * (count // 20) + [MALFORMED] * (count // 20)
    kinds += ["valid"] * (count - len(kinds))
    draw.shuffle(kinds)
    items = []
    for number, kind in enumerate(kinds):
        body = {
            "prompt": f"picture {number % 7}",
            "size": draw.choice(sizes),
            "num_inference_steps": draw.choice(steps),
            "seed": number,
        }
        if kind == MALFORMED:
            body |= draw.choice(BAD)
        if kind == CANCELLED:
            body |= {"num_inference_steps": 200, "size": sizes[-1]}
        items.append(Item(kind, body))
    return items
