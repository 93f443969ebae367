"""A parity report in the terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from porter.parity.compare import StageResult
from porter.parity.results import CaseResult, ParityReport

_STYLES = {
    "equal": "green",
    "within gate": "green",
    "unobserved": "dim",
    "parity": "green",
    "begun": "yellow",
    "rejected alike": "green",
    "reference not repeatable": "yellow",
    "not tested (no checkpoint)": "yellow",
}


def print_report(report: ParityReport, console: Console | None = None, verbose: bool = False) -> None:
    """Print the verdict, a row per case, and the stages of each case that failed (of every case if ``verbose``)."""
    out = console or Console()
    out.print(f"[bold]{report.pipeline}[/bold]  {_styled(report.verdict)}  {report.dtype} on {report.device}")
    if report.reason:
        out.print(escape(report.reason))
    if report.weights is not None:
        out.print(f"weights: {escape(report.weights.summary())}")
    if report.cases:
        out.print(_case_table(report.cases))
    if report.drawn:
        nothing = f", {report.undecided} of them NaN in diffusers itself" if report.undecided else ""
        out.print(f"{report.drawn} calls drawn{nothing}")
    if report.reproduce:
        out.print("the smallest drawn call that fails:")
        out.print(report.reproduce, markup=False, highlight=False)
    for case in report.cases:
        if verbose or not case.passed:
            _print_case(out, case)


def describe_difference(case: CaseResult) -> str:
    """Where and how a case first differs, in one line; empty if it does not."""
    found = case.first_difference
    if case.verdict == "differs" and case.reference_error:
        return f"the reference refused: {case.reference_error}; the port: {case.port_error or 'did not'}"
    if case.verdict == "differs" and case.port_error:
        before = f", before {found.stage}" if found is not None and found.verdict == "missing" else ""
        return f"the port raised{before}: {case.port_error}"
    if found is None:
        return ""
    parts = [found.stage, found.part, found.note or _size(found)]
    if case.location is not None:
        where = case.location
        parts.append(f"starts in {where.path or 'its own forward'}")
        if where.arguments_differ:
            parts.append("(its arguments differ already)")
        parts.append(f"{where.reference_source} → {where.port_source}")
    return " ".join(part for part in parts if part)


def _case_table(cases: list[CaseResult]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("case", "verdict", "stages", "largest difference", "reference", "port", "first difference"):
        table.add_column(heading, justify="right" if heading in ("stages", "reference", "port") else "left")
    for case in cases:
        table.add_row(
            escape(case.name),
            _styled(case.verdict),
            str(len(case.stages)),
            number(case.largest_difference) if case.stages else "",
            f"{case.seconds_reference:.2f} s",
            f"{case.seconds_port:.2f} s",
            escape(describe_difference(case)),
        )
    return table


def _print_case(out: Console, case: CaseResult) -> None:
    if not case.stages:
        return
    table = Table(title=escape(f"{case.name}: {case.description}"), title_justify="left", box=None, pad_edge=False)
    for heading in ("stage", "verdict", "where", "max abs", "max rel", "rel L2", "cosine", "note"):
        table.add_column(heading)
    for stage in case.stages:
        found = stage.metrics
        numbers = ["", "", "", ""]
        if found is not None:
            numbers = [number(found.max_abs), number(found.max_rel), number(found.rel_l2), f"{found.cosine:.6f}"]
        table.add_row(stage.stage, _styled(stage.verdict), stage.part, *numbers, escape(stage.note))
    out.print(table)


def number(value: float | None) -> str:
    """A distance, short."""
    if value is None:
        return ""
    if math.isinf(value):
        return "∞"
    return "0" if value == 0 else f"{value:.2e}"


def _size(stage: StageResult) -> str:
    return f"max abs {number(stage.metrics.max_abs)}" if stage.metrics else stage.verdict


def _styled(verdict: str) -> str:
    style = _STYLES.get(verdict, "red")
    return f"[{style}]{escape(verdict)}[/{style}]"
