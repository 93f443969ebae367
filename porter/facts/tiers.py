"""How deep a port goes: each tier adds to those before it.

A keeps the structure of diffusers; B splits projections over tensor-parallel ranks; C divides the sequence over ranks;
D has guidance on ranks of its own, step-wise execution, batches of requests and cached blocks.
"""

from __future__ import annotations

import re

# The line of a generated file's header that names its tier.
TIER = "# Tier: "
TIERS = ("A", "B", "C", "D")
DEEPEST = TIERS[-1]


def check_tier(tier: str) -> str:
    """The tier, if it is one.

    Raises:
        ValueError: it is none; the message names those there are.
    """
    if tier not in TIERS:
        raise ValueError(f"unknown tier {tier!r}; the tiers are {', '.join(TIERS)}")
    return tier


def left_out(tier: str) -> str:
    """Why a port lacks what belongs to a deeper tier."""
    return f"left out by --tier {tier}"


def tier_of(text: str) -> str:
    """The tier that the header of a generated file names; the deepest, if it names none."""
    found = re.search(rf"^{TIER}([A-Z])$", text, re.MULTILINE)
    return found[1] if found and found[1] in TIERS else DEEPEST
