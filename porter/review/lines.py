"""Follow the lines of a definition through the steps that rewrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from porter.rules.history import History


@dataclass(frozen=True)
class Line:
    """A line of a port (or of its source, before any step).

    Attributes:
        text: without its end.
        source: number of the source line that it still is, or came from; None if a step wrote it.
        steps: names of the steps that changed it, in order.
    """

    text: str
    source: int | None
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """Lines of the source and the lines of the port that stand in their place.

    Attributes:
        source: number of the first source line; where nothing was there, of the line above which new ones stand.
        before: source lines.
        line: index of the first line in the port's definition.
        after: lines of the port.
        steps: names of the steps that made the change, in order.
    """

    source: int
    before: tuple[str, ...]
    line: int
    after: tuple[str, ...]
    steps: tuple[str, ...]


def changes(history: History, final: Sequence[str]) -> list[Change]:
    """The differences between a definition's source and its ``final`` lines, each with the steps that made it."""
    first = history.source.first_line - len(history.source.comments)
    original = history.original.split("\n")
    current = [Line(text, first + number) for number, text in enumerate(original)]
    removed: dict[int, tuple[str, ...]] = {}
    for step, text in [*history.steps, ("format", "\n".join(final))]:
        current = _advance(current, text.split("\n"), step, removed)
    return _grouped(original, first, current, removed)


def _advance(current: list[Line], texts: list[str], step: str, removed: dict[int, tuple[str, ...]]) -> list[Line]:
    """The lines after a step; source lines that it took away are noted in ``removed``."""
    before = [line.text for line in current]
    result: list[Line] = []
    for kind, a, b, c, d in SequenceMatcher(None, before, texts, autojunk=False).get_opcodes():
        if kind == "equal":
            result += current[a:b]
            continue
        old, new = current[a:b], texts[c:d]
        earlier = dict.fromkeys(name for line in old for name in line.steps)
        steps = tuple(dict.fromkeys([*earlier, step]))
        result += [Line(text, None, steps) for text in new]
        for line in old:
            if line.source is not None:
                removed[line.source] = tuple(dict.fromkeys([*line.steps, step]))
    return result


def _grouped(original: list[str], first: int, current: list[Line], removed: dict[int, tuple[str, ...]]) -> list[Change]:
    """Runs of lines between those that are the source's own."""
    found: list[Change] = []
    position, start = first, 0
    for index, line in enumerate([*current, Line("", first + len(original))]):
        if line.source is None:
            continue
        gone = range(position, line.source)
        written = current[start:index]
        before = tuple(original[number - first] for number in gone)
        after = tuple(item.text for item in written)
        if before != after:
            steps = [step for number in gone for step in removed.get(number, ())]
            steps += [step for item in written for step in item.steps]
            found.append(Change(position, before, start, after, tuple(dict.fromkeys(steps))))
        position, start = line.source + 1, index + 1
    return found
