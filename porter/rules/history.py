"""What became of a definition, step by step: kept only when someone asks, to say which rule made which line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from porter.rules.text import code
from porter.source import Definition

# Steps that are no rules of their own: what they do, in one line. All of them are surface changes.
STEPS = {
    "absolute-imports": "Relative imports inside functions are made absolute.",
    "fold-conditions": "Conditions whose outcome is known in the engine are folded; what cannot run is gone.",
    "left-out": "Methods that nothing in the port calls any more are left out.",
    "rename": "A name that two source files give to different things has the file's name added.",
    "port-class": "The class becomes a module of the engine: its bases, its component lists, its weight loading.",
    "mixin-methods": "Arithmetic methods of a removed mixin that the class calls are taken into it.",
    "format": "Layout by ruff, as diffusers has it.",
}


@dataclass
class History:
    """The texts of one definition after each step that changed it.

    Attributes:
        source: where it comes from.
        steps: (name of rule or step, text after it), in order.
    """

    source: Definition
    steps: list[tuple[str, str]] = field(default_factory=list)

    @property
    def original(self) -> str:
        """The source text, with the comments above it."""
        return "\n".join([*self.source.comments, self.source.code.strip()])

    def record(self, step: str, text: str) -> None:
        """Keep ``text`` if the step changed anything."""
        if text != (self.steps[-1][1] if self.steps else self.original):
            self.steps.append((step, text))


class Recorder:
    """Writes histories, by the name of what is written; definitions may be begun within others."""

    def __init__(self, histories: dict[str, History]) -> None:
        self.histories = histories
        self._open: list[str] = []

    def begin(self, name: str, source: Definition) -> None:
        """Record what follows for ``name``, until :meth:`end`."""
        self.histories[name] = History(source)
        self._open.append(name)

    def end(self) -> None:
        """Go back to what was recorded before."""
        self._open.pop()

    def record(self, step: str, node: Any, name: str | None = None) -> None:
        """Keep the text of ``name`` (by default what is recorded now) after a step."""
        self.histories[name or self._open[-1]].record(step, code(node))
