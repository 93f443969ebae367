"""A measurement as a picture: one SVG file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from porter.bench.results import BenchReport, Times
from porter.emit.templates import fill

_WIDTH, _ROW, _LEFT, _BAR = 760, 30, 210, 380


def write_plot(report: BenchReport, path: Path) -> None:
    """Write a bar a side and quantity: its length the median, its line the quartiles."""
    path.write_text(plot(report), "utf-8")


def plot(report: BenchReport) -> str:
    """The text of the picture."""
    rows = []
    top = 74
    for mode in report.modes:
        for quantity in mode.quantities:
            longest = max(quantity.diffusers.high, quantity.port.high, 1e-12)
            for side, times in (("diffusers", quantity.diffusers), ("port", quantity.port)):
                rows.append(
                    {
                        "label": f"{quantity.name}, {mode.mode}" if side == "diffusers" else "",
                        "side": side,
                        "y": top,
                        "bar": _scaled(times.median, longest),
                        "low": _LEFT + _scaled(times.low, longest),
                        "high": _LEFT + _scaled(times.high, longest),
                        "text": _told(times, quantity.unit),
                    }
                )
                top += _ROW - 6
            top += 14
    return fill("export/bench.svg.j2", report=report, rows=rows, width=_WIDTH, height=top + 10, left=_LEFT)


def _scaled(value: float, longest: float) -> float:
    return round(max(value, 0.0) / longest * _BAR, 1)


def _told(times: Times, unit: str) -> str:
    factor, name = (1000.0, "ms") if unit == "s" and times.median < 1 else (1.0, unit)
    return f"{times.median * factor:.3g} {name} [{times.low * factor:.3g}, {times.high * factor:.3g}]"
