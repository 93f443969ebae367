"""What was measured about a port: in the project's own tables, and in files that the caller measured just now."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porter.emit.templates import fill
from porter.export import ExportError

if TYPE_CHECKING:
    from porter.bench.results import BenchReport

DATA = Path(__file__).resolve().parent.parent / "parity" / "data"
_SIDES = (("diffusers", "reference"), ("port", "port"), ("difference, stretched", "difference"))
_WIDTH = 320


@cache
def measured(table: str) -> dict[str, Any]:
    """A table of results by pipeline: ``results`` (in one process) or ``omni`` (in vLLM-Omni's own worker)."""
    file = DATA / f"{table}.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def read_evidence(files: Iterable[Path]) -> tuple[dict[str, BenchReport], dict[str, Any]]:
    """What ``porter bench --json`` and ``porter parity --json`` printed into files, by pipeline.

    Returns:
        Measurements of speed and memory, and parity in the form of the project's own table.

    Raises:
        ExportError: a file is neither.
    """
    from pydantic import ValidationError

    from porter.bench.results import BenchReport
    from porter.parity.results import ParityReport

    speed: dict[str, BenchReport] = {}
    parity: dict[str, Any] = {}
    for file in files:
        try:
            fields = json.loads(file.read_text("utf-8"))
            if "modes" in fields:
                speed[fields["pipeline"]] = BenchReport.model_validate(fields)
                continue
            report = ParityReport.model_validate(fields)
        except (OSError, ValueError, TypeError, KeyError, ValidationError) as error:
            raise ExportError(
                f"{file} holds no result: write it with `porter bench NAME --json > {file.name}` or `porter parity "
                f"NAME --json > {file.name}` ({str(error).splitlines()[0]})"
            ) from error
        cases = {
            case.name: {"verdict": case.verdict, "largest_difference": case.largest_difference} for case in report.cases
        }
        parity[report.pipeline] = {
            "verdict": report.verdict,
            "reason": report.reason,
            "cases": cases,
            "how": f"{report.device}, {report.dtype}; `{report.command}`",
        }
    return speed, parity


def pictures_of(report: BenchReport) -> str:
    """The pictures of a measurement beside each other, an SVG that needs nothing else; empty if it has none."""
    held = report.pictures.model_dump() if report.pictures is not None else {}
    shown = [(title, held[side]) for title, side in _SIDES if held.get(side)]
    if not shown:
        return ""
    return fill("export/pictures.svg.j2", report=report, pictures=shown, side=_WIDTH)
