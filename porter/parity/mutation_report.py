"""What planting faults found, in a form that can be stored."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from porter.parity.mutants import Mutant

MutantVerdict = Literal["killed", "survived", "does not load", "unreached", "equivalent"]

UNCOUNTED = frozenset(("unreached", "equivalent"))
"""Verdicts on faults that no case could show; the reason is told."""


class MutantResult(BaseModel):
    """One fault, and whether the comparison saw it."""

    mutator: str
    bug: int = 0
    """Number of the known bug; 0: a generic fault."""
    module: str
    line: int
    function: str
    before: str
    after: str
    verdict: MutantVerdict = "survived"
    case: str = ""
    stage: str = ""
    """The first stage that differed; how it failed, if it did not load."""
    reason: str = ""
    seconds: float = 0.0

    @classmethod
    def of(cls, mutant: Mutant) -> MutantResult:
        """The entry of a fault that was not tried yet."""
        return cls(
            mutator=mutant.mutator,
            bug=mutant.bug,
            module=mutant.module,
            line=mutant.line,
            function=mutant.function,
            before=mutant.before[:200],
            after=mutant.after[:200],
        )

    @property
    def place(self) -> tuple[str, str, int, str, str]:
        """What tells one fault of a port from the others."""
        return self.mutator, self.module, self.line, self.before, self.after

    @property
    def caught(self) -> bool:
        """Whether the fault cannot pass unseen."""
        return self.verdict in ("killed", "does not load")


class MutationReport(BaseModel):
    """Everything about one pipeline."""

    schema_version: int = 1
    pipeline: str
    family: str = ""
    port: str = ""
    """sha256 of the port's source files: of another port, nothing is said."""
    seed: int = 0
    sites: int = 0
    """Places of faults in code that some case runs."""
    unreached_sites: int = 0
    """Places in code that no case runs; nothing was planted there."""
    cases: list[str] = Field(default_factory=list)
    mutants: list[MutantResult] = Field(default_factory=list)
    seconds: float = 0.0

    def tally(self, known: bool = False) -> tuple[int, int]:
        """(seen, planted) of the known bugs or of the generic faults, without those whose value nothing uses."""
        counted = [m for m in self.mutants if bool(m.bug) == known and m.verdict not in UNCOUNTED]
        return sum(m.caught for m in counted), len(counted)

    @property
    def survivors(self) -> list[MutantResult]:
        """The faults that were not seen."""
        return [mutant for mutant in self.mutants if mutant.verdict == "survived"]

    @property
    def exit_code(self) -> int:
        """0 if every fault was seen."""
        return 1 if self.survivors else 0


def print_mutation(report: MutationReport, out: Console) -> None:
    """Print how many faults were seen, the known bugs, and every fault that was not seen."""
    for title, known in (("generic faults", False), ("known bugs", True)):
        seen, planted = report.tally(known)
        out.print(f"{report.pipeline}: {seen} of {planted} {title} seen")
    unused = sum(mutant.verdict in UNCOUNTED for mutant in report.mutants)
    out.print(f"{unused} more change nothing that a case uses; {report.unreached_sites} places no case runs")
    table = Table(box=None, pad_edge=False)
    for heading in ("verdict", "fault", "where", "before", "after", "seen at"):
        table.add_column(heading)
    for mutant in report.mutants:
        if mutant.bug or mutant.verdict == "survived":
            name = f"{mutant.bug} {mutant.mutator}" if mutant.bug else mutant.mutator
            seen_at = f"{mutant.case}: {mutant.stage}" if mutant.case else mutant.stage or mutant.reason
            cells = (name, f"{mutant.module}.py:{mutant.line}", mutant.before[:60], mutant.after[:60], seen_at[:80])
            table.add_row(mutant.verdict, *(escape(cell) for cell in cells))
    out.print(table)
