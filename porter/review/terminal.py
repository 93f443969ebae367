"""A port's differences on a terminal: side by side where it is wide enough, or as a unified diff."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest

from rich.console import Console
from rich.table import Table
from rich.text import Text

from porter.review.diff import Hunk, PortDiff
from porter.review.steps import explain

# Two columns of code need about this much.
WIDE = 160
COLOURS = {"surface": "cyan", "same arithmetic": "yellow", "changed arithmetic": "red"}


def print_diff(diff: PortDiff, out: Console, unified: bool = False) -> None:
    """Print every hunk, below the steps that made it and why."""
    file = None
    for hunk in diff.hunks:
        if hunk.file != file:
            file = hunk.file
            out.print(Text(f"\n{file}", style="bold underline"))
        out.print(_heading(hunk), soft_wrap=True)
        if unified or out.width < WIDE or not hunk.before or not hunk.after:
            for line in unified_lines(hunk):
                out.print(Text(line, style="red" if line.startswith("-") else "green"), soft_wrap=True)
        else:
            out.print(_side_by_side(hunk))
    out.print(Text(f"\n{summary(diff)}", style="bold"))


def print_steps(diff: PortDiff, out: Console) -> None:
    """Print how many hunks each rule and step had a hand in."""
    counts = Counter(step for hunk in diff.hunks for step in hunk.steps)
    table = Table(box=None, pad_edge=False, show_header=False)
    for step, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(str(count), step, ", ".join(explain([step])))
    out.print(table)


def unified_lines(hunk: Hunk) -> Iterator[str]:
    """The lines that go, then those that come."""
    yield from (f"-{line}" for line in hunk.before)
    yield from (f"+{line}" for line in hunk.after)


def heading(hunk: Hunk) -> str:
    """Where a hunk stands, what made it and its class, in one line."""
    source = f"{hunk.source}:{hunk.source_line} " if hunk.source else ""
    return f"@@ {source}→ {hunk.file}:{hunk.line} {hunk.name} [{', '.join(hunk.steps)}] {hunk.safety}"


def summary(diff: PortDiff) -> str:
    """How many hunks there are of each class."""
    counts = [f"{sum(h.safety == safety for h in diff.hunks)} {safety}" for safety in COLOURS]
    return f"{diff.pipeline}: {len(diff.hunks)} hunks: {', '.join(counts)}; {len(diff.unattributed)} unattributed"


def _heading(hunk: Hunk) -> Text:
    text = Text(heading(hunk), style=COLOURS[hunk.safety])
    for why in dict.fromkeys(hunk.why):
        text.append(f"\n   {why}", style="dim")
    return text


def _side_by_side(hunk: Hunk) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, show_header=False)
    table.add_column(ratio=1, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for before, after in zip_longest(hunk.before, hunk.after, fillvalue=""):
        table.add_row(Text(before, style="red"), Text(after, style="green"))
    return table
