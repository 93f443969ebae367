"""A parity report as one self-contained page: no scripts, no files beside it."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from porter.parity.compare import StageResult
from porter.parity.plot import plot
from porter.parity.report import describe_difference, number
from porter.parity.results import CaseResult, ParityReport

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1c1c1c; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
td.n { font-variant-numeric: tabular-nums; text-align: right; }
.good { color: #1a7f37; } .bad { color: #c62828; font-weight: 600; } .dim { color: #777; }
figure { display: inline-block; margin: 0 1rem 1rem 0; } figcaption { font-size: 12px; color: #555; }
img { image-rendering: pixelated; border: 1px solid #ccc; max-width: 20rem; }
.plot { display: block; } .plot svg { width: 100%; max-width: 60rem; } .plot text { font-size: 10px; fill: #777; }
.plot polyline { fill: none; stroke: #bbb; } .plot .good { fill: #1a7f37; } .plot .bad { fill: #c62828; }
details { margin: .3rem 0; } summary { cursor: pointer; }
"""
_GOOD = frozenset({"parity", "rejected alike", "equal", "within gate"})
_NEITHER = frozenset({"begun", "unobserved"})


def render(report: ParityReport) -> str:
    """The page."""
    facts = {**report.environment, "device": report.device, "dtype": report.dtype, "seconds": f"{report.seconds:.1f}"}
    if report.weights is not None:
        facts["weights"] = report.weights.summary()
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items())
    again = f"<h2>A call that fails</h2><pre>{escape(report.reproduce)}</pre>" if report.reproduce else ""
    reason = f"<p>{escape(report.reason)}</p>" if report.reason else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(report.pipeline)}: parity</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(report.pipeline)}: {_verdict(report.verdict)}</h1>{reason}"
        f"{_overview(report.cases)}{''.join(map(_case, report.cases))}{again}"
        f"<h2>Environment</h2><table>{rows}</table><p>Made by <code>{escape(report.command)}</code></p></body></html>\n"
    )


def write(report: ParityReport, path: str | Path) -> None:
    """Write the page to ``path``."""
    Path(path).write_text(render(report), encoding="utf-8")


def _overview(cases: list[CaseResult]) -> str:
    if not cases:
        return ""
    head = _row("th", "case", "verdict", "largest difference", "first difference")
    body = "".join(
        _row(
            "td",
            escape(case.name),
            _verdict(case.verdict),
            number(case.largest_difference) if case.stages else "",
            escape(describe_difference(case)),
        )
        for case in cases
    )
    return f"<h2>Cases</h2><table>{head}{body}</table>"


def _case(case: CaseResult) -> str:
    figures = ""
    if case.pictures is not None:
        shown = case.pictures.encode()
        named = (
            ("diffusers", shown.reference),
            ("port", shown.port),
            ("difference, stretched", shown.difference),
        )
        figures = "".join(
            f'<figure><img src="{source}" alt="{label}"><figcaption>{label}</figcaption></figure>'
            for label, source in named
            if source
        )
    columns = ("max abs", "rel L2", "cosine", "PSNR", "SSIM", "spectral")
    head = _row("th", "stage", "verdict", "where", *columns, "note")
    table = f"<table>{head}{''.join(map(_stage, case.stages))}</table>" if case.stages else ""
    errors = "".join(
        f"<p>{side}: <code>{escape(text)}</code></p>"
        for side, text in (("diffusers", case.reference_error), ("port", case.port_error))
        if text
    )
    opened = "" if case.passed else " open"
    return (
        f"<details{opened}><summary>{escape(case.name)}: {_verdict(case.verdict)} "
        f'<span class="dim">{escape(case.description)}</span></summary>{figures}{errors}{_plots(case)}{table}</details>'
    )


def _plots(case: CaseResult) -> str:
    """The difference over the stages, and over the layers of the component that it starts in."""
    stages = [(stage.stage, _distance(stage)) for stage in case.stages if stage.verdict != "unobserved"]
    drawn = plot("relative difference over stages and steps", stages)
    if case.location is not None:
        layers = [(f"{layer.path or 'all of it'}[{layer.call}]", layer.rel_l2) for layer in case.location.layers]
        drawn += plot("relative difference over the layers, in the order in which they return", layers)
    return drawn


def _distance(stage: StageResult) -> float:
    if stage.metrics is not None:
        return stage.metrics.rel_l2
    return math.inf if stage.failed else 0.0


def _stage(stage: StageResult) -> str:
    found = stage.metrics
    numbers = [""] * 6
    if found is not None:
        scores = ["" if value is None else f"{value:.3f}" for value in (found.psnr, found.ssim, found.log_spectral)]
        numbers = [number(found.max_abs), number(found.rel_l2), f"{found.cosine:.6f}", *scores]
    return _row("td", escape(stage.stage), _verdict(stage.verdict), escape(stage.part), *numbers, escape(stage.note))


def _row(tag: str, *cells: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _verdict(verdict: str) -> str:
    kind = "good" if verdict in _GOOD else "dim" if verdict in _NEITHER else "bad"
    return f'<span class="{kind}">{escape(verdict)}</span>'
