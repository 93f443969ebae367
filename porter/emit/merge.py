"""Three-way merge of lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

Lines = list[str]


@dataclass(frozen=True)
class Region:
    """A run of lines as the base has it and as each side has it.

    Attributes:
        line: number of its first line in ``mine``.
    """

    line: int
    base: Lines
    mine: Lines
    theirs: Lines

    @property
    def conflict(self) -> bool:
        """Both sides changed it, each in its own way."""
        return self.base not in (self.mine, self.theirs) and self.mine != self.theirs

    @property
    def merged(self) -> Lines:
        """The side that changed it; of a conflict, ``mine``."""
        return self.theirs if self.mine == self.base else self.mine


def regions(base: Lines, mine: Lines, theirs: Lines) -> list[Region]:
    """The three texts cut at the lines that all of them share; joined, each side of the regions is its text again."""
    in_mine, in_theirs = _matches(base, mine), _matches(base, theirs)
    found: list[Region] = []
    start = (0, 0, 0)
    for index in range(len(base) + 1):
        if index == len(base):
            point = (index, len(mine), len(theirs))
        elif index in in_mine and index in in_theirs:
            point = (index, in_mine[index], in_theirs[index])
        else:
            continue
        if point != start:
            found.append(_region(base, mine, theirs, start, point))
        if index < len(base):
            after = (point[0] + 1, point[1] + 1, point[2] + 1)
            found.append(_region(base, mine, theirs, point, after))
            start = after
    return found


def _region(base: Lines, mine: Lines, theirs: Lines, start: tuple[int, ...], end: tuple[int, ...]) -> Region:
    return Region(start[1] + 1, base[start[0] : end[0]], mine[start[1] : end[1]], theirs[start[2] : end[2]])


def _matches(base: Sequence[str], other: Sequence[str]) -> dict[int, int]:
    """Indices of lines of ``base`` that ``other`` still has, with their indices there; both rise."""
    blocks = SequenceMatcher(None, base, other, autojunk=False).get_matching_blocks()
    return {block.a + offset: block.b + offset for block in blocks for offset in range(block.size)}
