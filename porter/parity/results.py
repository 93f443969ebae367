"""What a parity run found, in a form that can be stored."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from porter.parity.compare import StageResult
from porter.parity.locate import Location
from porter.parity.pictures import RawPictures
from porter.parity.weight_check import WeightReport

CaseVerdict = Literal["parity", "begun", "rejected alike", "differs", "reference not repeatable"]
Verdict = Literal[
    "parity",
    "begun",
    "differs",
    "reference not repeatable",
    "reference refuses all calls",
    "reference does not load",
    "port does not load",
    "does not run",
    "not tested (no checkpoint)",
]


class CaseResult(BaseModel):
    """One call, compared.

    Attributes:
        verdict: ``begun``: equal as far as it was compared, which was not to its end.
        stopped: whether it was ended on purpose: before its first prediction, or before a call that would be long.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str
    description: str
    verdict: CaseVerdict
    stages: list[StageResult] = Field(default_factory=list)
    first_difference: StageResult | None = None
    location: Location | None = None
    """Inside the component, where the difference starts."""
    unobserved: list[str] = Field(default_factory=list)
    """Stages that the reference has and the port does not show; the stages behind them were compared."""
    largest_difference: float = 0.0
    stopped: bool = False
    """Whether it was ended on purpose: before its first prediction, or before a call that would be long."""
    reference_error: str = ""
    port_error: str = ""
    seconds_reference: float = 0.0
    seconds_port: float = 0.0
    pictures: SkipValidation[RawPictures | None] = Field(default=None, repr=False, exclude=True)
    """For the page; they are not stored."""

    @property
    def passed(self) -> bool:
        """Whether the port does what the reference does as far as it was compared, be it refusing."""
        return self.verdict in ("parity", "begun", "rejected alike")


class ParityReport(BaseModel):
    """Everything about one pipeline.

    Attributes:
        verdict: ``parity`` asks for one call at least that was compared to its end; ``begun``: there was none.
    """

    schema_version: int = 1
    """Of this form; a field that goes or changes its meaning raises it."""
    pipeline: str
    verdict: Verdict
    reason: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    weights: WeightReport | None = None
    cases: list[CaseResult] = Field(default_factory=list)
    drawn: int = 0
    """How many calls were drawn besides the cases, those made while a failing one was made smaller among them."""
    undecided: int = 0
    """How many of those showed nothing, since diffusers itself computes NaN in them."""
    reproduce: str = ""
    """Python that runs the smallest drawn call that failed again; empty if none failed."""
    environment: dict[str, str] = Field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the port is at parity."""
        return self.verdict == "parity"

    def to_json(self) -> str:
        """The report without the pictures."""
        return self.model_dump_json(indent=2)

    @property
    def exit_code(self) -> int:
        """0 at parity; 1 for every other answer, "not tested" among them: what was not tested has not passed."""
        return 0 if self.passed else 1

    @property
    def largest_difference(self) -> float:
        """The largest absolute difference over all cases."""
        return max((case.largest_difference for case in self.cases), default=0.0)
