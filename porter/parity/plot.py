"""A difference over stages, steps or layers as a drawing: SVG without scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _TOP = 900, 150, 60, 8
_LOWEST, _HIGHEST = -9, 1


def plot(title: str, points: Sequence[tuple[str, float]]) -> str:
    """Relative differences, in order, on a logarithmic scale; hovering over a point names it.

    Args:
        title: what the points are.
        points: name and relative difference; 0 stands on the axis, infinity at the top.
    """
    if not points:
        return ""
    step = _WIDTH / max(1, len(points))
    dots, line = [], []
    for index, (name, value) in enumerate(points):
        x, y = _LEFT + step * (index + 0.5), _TOP + _HEIGHT * (1 - _share(value))
        line.append(f"{x:.1f},{y:.1f}")
        kind = "good" if value == 0 else "bad"
        label = f"{escape(name)}: {value:.2e}" if math.isfinite(value) else f"{escape(name)}: cannot be compared"
        dots.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{label}</title></circle>')
    marks = "".join(
        f'<text x="4" y="{_TOP + _HEIGHT * (1 - _share(10.0**power)) + 4:.1f}">1e{power}</text>'
        for power in range(_LOWEST + 1, _HIGHEST + 1, 3)
    )
    size = f"0 0 {_LEFT + _WIDTH} {_TOP + _HEIGHT + 8}"
    return (
        f'<figure class="plot"><svg viewBox="{size}" role="img" aria-label="{escape(title)}">{marks}'
        f'<polyline points="{" ".join(line)}"/>{"".join(dots)}</svg><figcaption>{escape(title)}</figcaption></figure>'
    )


def _share(value: float) -> float:
    """Where a difference lies between nothing and the most that is shown."""
    if value == 0 or math.isnan(value):
        return 0.0
    power = _HIGHEST if math.isinf(value) else min(max(math.log10(value), _LOWEST), _HIGHEST)
    return (power - _LOWEST) / (_HIGHEST - _LOWEST)
