"""What a measurement found; ``porter bench --json`` prints it."""

from __future__ import annotations

import statistics

from pydantic import BaseModel, ConfigDict, Field

from porter.parity.pictures import Pictures


class Times(BaseModel):
    """One quantity on one side.

    Attributes:
        values: every run's, in order.
        median: of them.
        low: first quartile; ``high``: third.
    """

    model_config = ConfigDict(extra="forbid")
    values: list[float]
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Times:
        """Summary of at least one value."""
        low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(values=values, median=statistics.median(values), low=low, high=high)


class Compared(BaseModel):
    """One quantity on both sides.

    Attributes:
        name: ``denoiser step`` or ``whole call``, in seconds, or ``peak memory``, in megabytes.
        unit: of the values.
        diffusers: of the original.
        port: of the port.
        ratio: of the medians, port to diffusers; below 1 the port needs less.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    unit: str
    diffusers: Times
    port: Times
    ratio: float


class Measured(BaseModel):
    """One way to run both: eager or compiled.

    Attributes:
        mode: ``eager`` or ``compiled``.
        quantities: that were measured.
    """

    model_config = ConfigDict(extra="forbid")
    mode: str
    quantities: list[Compared]


class BenchReport(BaseModel):
    """``porter bench --json``

    Attributes:
        schema_version: of this form.
        pipeline: class name.
        checkpoint: that was loaded; ``tiny random`` where none was named.
        device: where both sides ran.
        machine: processor or accelerator.
        dtype: of the weights.
        threads: of torch.
        runs: of each side, after one that does not count.
        memory: what ``peak memory`` is: allocated on the accelerator, or the growth of the process's resident memory.
        environment: versions.
        modes: eager, and compiled if it was asked for.
        pictures: the first picture of each side, if they were asked for and there are any.
        command: that repeats it.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: int = 1
    pipeline: str
    checkpoint: str
    device: str
    machine: str
    dtype: str
    threads: int
    runs: int
    memory: str
    environment: dict[str, str]
    modes: list[Measured]
    pictures: Pictures | None = Field(default=None, repr=False)
    command: str
