"""A port's differences as one self-contained page, filtered by the class of what made them."""

from __future__ import annotations

from html import escape
from itertools import groupby
from pathlib import Path

from porter.review.diff import Hunk, PortDiff
from porter.review.steps import GRAVITY
from porter.review.terminal import summary

SOURCES = "https://github.com/huggingface/diffusers/blob/v{version}/src/{path}#L{line}"
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; color: #1c1c1c; }
h2 { font: 600 15px ui-monospace, monospace; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
label { margin-right: 1.2rem; } .why { color: #666; margin: .2rem 0 .4rem; }
details { margin: .4rem 0; } summary { cursor: pointer; font: 13px ui-monospace, monospace; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }
pre { margin: 0; padding: .4rem; overflow-x: auto; font: 12px/1.4 ui-monospace, monospace; }
.before { background: #fdecea; } .after { background: #e8f5e9; }
.class { border-radius: .6rem; padding: 0 .5rem; font-size: 12px; background: #e3f2fd; }
.same-arithmetic .class { background: #fff3cd; } .changed-arithmetic .class { background: #f8d7da; }
"""
# Hides the hunks of a class whose box is not ticked, and files that then show none.
SCRIPT = """
const boxes = [...document.querySelectorAll("input[data-class]")];
function show() {
  const on = new Set(boxes.filter(b => b.checked).map(b => b.dataset.class));
  document.querySelectorAll("details[data-class]").forEach(d => { d.hidden = !on.has(d.dataset.class); });
  document.querySelectorAll("section").forEach(s => { s.hidden = !s.querySelector("details:not([hidden])"); });
}
boxes.forEach(b => b.addEventListener("change", show));
document.getElementById("fold").addEventListener("click", () => {
  const all = [...document.querySelectorAll("details")], open = all.some(d => d.open);
  all.forEach(d => { d.open = !open; });
});
"""


def write(diff: PortDiff, path: str | Path) -> None:
    """Write the page to ``path``."""
    Path(path).write_text(render(diff), encoding="utf-8")


def render(diff: PortDiff) -> str:
    """The page."""
    boxes = "".join(
        f'<label><input type="checkbox" data-class="{escape(safety)}" checked> {escape(safety)} '
        f"({sum(hunk.safety == safety for hunk in diff.hunks)})</label>"
        for safety in GRAVITY
    )
    sections = "".join(
        f"<section><h2>{escape(file)}</h2>{''.join(_hunk(hunk, diff.diffusers) for hunk in hunks)}</section>"
        for file, hunks in groupby(diff.hunks, key=lambda hunk: hunk.file)
    )
    title = escape(f"{diff.pipeline}: diffusers {diff.diffusers} and its port")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><p>{escape(summary(diff))}</p>"
        f'<p>{boxes}<button id="fold">fold all</button></p>{sections}<script>{SCRIPT}</script></body></html>\n'
    )


def _hunk(hunk: Hunk, version: str) -> str:
    css = hunk.safety.replace(" ", "-")
    place = ""
    if hunk.source:
        link = SOURCES.format(version=version, path=hunk.source, line=hunk.source_line)
        place = f'<a href="{escape(link)}">{escape(hunk.source)}:{hunk.source_line}</a> → '
    steps = escape(", ".join(hunk.steps))
    why = "".join(f'<p class="why">{escape(line)}</p>' for line in dict.fromkeys(hunk.why))
    sides = "".join(
        f'<pre class="{side}">{escape(chr(10).join(lines))}</pre>'
        for side, lines in (("before", hunk.before), ("after", hunk.after))
    )
    return (
        f'<details class="{css}" data-class="{escape(hunk.safety)}" open><summary>{place}line {hunk.line} '
        f'<b>{escape(hunk.name)}</b> <span class="class">{escape(hunk.safety)}</span> {steps}</summary>'
        f'{why}<div class="sides">{sides}</div></details>'
    )
