"""Rows in tables of somebody else's Markdown pages: put where they belong, and nothing else touched."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# A heading cell of the page of features, by a word in it, and the port's feature that it asks about.
_FEATURES = {
    "cache-dit": "cache_dit",
    "teacache": "tea_cache",
    "sp ": "sequence_parallel",
    "cfg": "cfg_parallel",
    "tensor": "tensor_parallel",
    "hsdp": "hsdp",
    "offload": "layerwise_offload",
    "vae": "vae_patch_parallel",
    "quant": "quantization",
    "step": "step_execution",
}
YES, NO, UNTESTED = "✅", "❌", "❓"


def find_table(lines: Sequence[str], first_cell: str, section: str = "") -> tuple[int, int] | None:
    """Where the rows of a table begin and end; None if there is no such table.

    Args:
        lines: of the page.
        first_cell: of its heading.
        section: the heading that it stands under; empty: the first such table of the page.
    """
    start = 0
    if section:
        start = next((at + 1 for at, line in enumerate(lines) if line.strip("# ").strip() == section), len(lines))
    for at in range(start, len(lines)):
        if section and lines[at].startswith("#"):
            return None
        if cells(lines[at])[:1] == [first_cell]:
            end = at + 2
            while end < len(lines) and lines[end].startswith("|") and any(cells(lines[end])):
                end += 1
            return at + 2, end
    return None


def cells(line: str) -> list[str]:
    """The cells of a row; none where the line is no row."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def with_row(text: str, row: str, first_cell: str, kin: Callable[[str], bool], section: str = "") -> str:
    """A page with a row more; the page itself if it has no such table, or that row already.

    The row comes after the last of its kin; else, in a table that is sorted, at its place; else at the end.

    Args:
        text: of the page.
        row: a line of Markdown.
        first_cell: of the table's heading.
        kin: whether the first cell of a row belongs to the same family.
        section: the heading that the table stands under.
    """
    lines = text.split("\n")
    found = find_table(lines, first_cell, section)
    if found is None:
        return text
    start, end = found
    names = [cells(line)[0] for line in lines[start:end]]
    own = cells(row)[0]
    if own in names:
        return text
    at = max((number + 1 for number, name in enumerate(names) if kin(name)), default=-1)
    if at < 0:
        folded = [name.casefold() for name in names]
        at = sum(name < own.casefold() for name in folded) if folded == sorted(folded) else len(names)
    lines.insert(start + at, row)
    return "\n".join(lines)


def heading_of(text: str, first_cell: str, section: str = "") -> list[str]:
    """The cells of a table's heading; none if there is no such table."""
    lines = text.split("\n")
    found = find_table(lines, first_cell, section)
    return cells(lines[found[0] - 2]) if found else []


def feature_cell(heading: str, features: dict[str, str]) -> str:
    """What the page of features says of a port in one column: yes only where it was verified.

    Args:
        heading: of the column.
        features: of the port.
    """
    plain = re.sub(r"[^a-z0-9 -]", "", heading.casefold())
    name = next((feature for word, feature in _FEATURES.items() if word in f"{plain} "), "")
    state = features.get(name, "no" if name == "tea_cache" else "untested")
    if state.startswith("verified"):
        return YES
    return NO if state.startswith(("no", "refused", "unsupported")) else UNTESTED
