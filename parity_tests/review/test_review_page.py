"""The pages of ``porter diff --html`` and ``porter parity --html``, used in a browser as a reviewer uses them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from parity_tests.review.conftest import converter, reviewed
from porter.parity import html as parity_html
from porter.parity.compare import StageResult
from porter.parity.locate import LayerDifference, Location
from porter.parity.metrics import Metrics
from porter.parity.pictures import RawPictures
from porter.parity.results import CaseResult, ParityReport
from porter.review.diff import Hunk, PortDiff
from porter.review.html import write

NAME = "FluxPipeline"
SHOWN = "[...document.querySelectorAll('details')].filter(d => d.offsetParent !== null)"


@pytest.fixture(scope="module")
def hunks() -> list[Hunk]:
    return reviewed(NAME)[2]


@pytest.fixture(scope="module")
def file(hunks, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "diff.html"
    write(PortDiff(pipeline=NAME, diffusers=converter().tree.version, target="porter", hunks=hunks), path)
    return path


@pytest.fixture
def page(visitor, file) -> Page:
    return visitor.open(file.as_uri())


def classes(page: Page) -> Counter[str]:
    """How many hunks of each class can be seen."""
    return Counter(page.evaluate(f"{SHOWN}.map(d => d.dataset.class)"))


def box(safety: str) -> str:
    return f"input[data-class='{safety}']"


def test_the_page_needs_nothing_but_itself(visitor, page, file, hunks):
    assert visitor.requests == [file.as_uri()] and visitor.problems == []
    assert classes(page) == Counter(hunk.safety for hunk in hunks)
    assert NAME in page.inner_text("h1")


def test_hunks_are_filtered_by_class(page, hunks):
    counts = Counter(hunk.safety for hunk in hunks)
    assert counts["surface"] and counts["same arithmetic"]
    page.click(box("surface"))
    assert classes(page) == Counter({k: v for k, v in counts.items() if k != "surface"})
    headings = page.evaluate("[...document.querySelectorAll('h2')].filter(h => h.offsetParent).map(h => h.innerText)")
    assert set(headings) == {hunk.file for hunk in hunks if hunk.safety != "surface"}
    page.click(box("same arithmetic"))
    page.click(box("surface"))
    assert classes(page) == Counter({k: v for k, v in counts.items() if k != "same arithmetic"})
    page.click(box("same arithmetic"))
    assert classes(page) == counts


def test_hunks_fold_one_by_one_and_together(page, hunks):
    opened = "document.querySelectorAll('details[open]').length"
    assert page.evaluate(opened) == len(hunks)
    body = "document.querySelector('details pre.after').checkVisibility()"
    assert page.evaluate(body)
    page.click("details summary b")
    assert page.evaluate(opened) == len(hunks) - 1 and not page.evaluate(body)
    page.click("#fold")
    assert page.evaluate(opened) == 0
    page.click("#fold")
    assert page.evaluate(opened) == len(hunks)


def test_links_lead_to_the_lines_of_the_source(page, file, hunks):
    body = "<title>source</title>"
    page.route("https://github.com/**", lambda route: route.fulfill(body=body, content_type="text/html"))
    links = page.evaluate("[...document.querySelectorAll('summary a')].map(a => a.href)")
    assert len(links) == sum(bool(hunk.source) for hunk in hunks)
    numbers = [n for n, hunk in enumerate(h for h in hunks if h.source) if hunk.before]
    named = [hunk for hunk in hunks if hunk.source]
    for number in (numbers[0], numbers[len(numbers) // 2], numbers[-1]):
        page.goto(file.as_uri())
        page.evaluate(f"document.querySelectorAll('summary a')[{number}].id = 'this'")
        page.click("#this")
        page.wait_for_function("document.title === 'source'")
        at = page.evaluate("location.href")
        found = re.fullmatch(r"https://github\.com/huggingface/diffusers/blob/v([\d.]+)/src/diffusers/(.*)#L(\d+)", at)
        assert found and found[1] == converter().tree.version
        lines = (converter().tree.root / found[2]).read_text("utf-8").split("\n")
        assert lines[int(found[3]) - 1] == named[number].before[0]


def test_what_sources_say_is_shown_and_not_run(visitor, tmp_path):
    evil = '</pre><script>document.title = "run"</script><img src=x onerror=\'document.title = "run"\'>'
    hunk = Hunk(
        file=evil, line=1, name=evil, source=evil, source_line=1, before=[evil], after=[evil], steps=["imports"]
    )
    write(PortDiff(pipeline=evil, diffusers=evil, target="porter", hunks=[hunk]), tmp_path / "diff.html")
    page = visitor.open((tmp_path / "diff.html").as_uri())
    assert page.evaluate("document.title").startswith("</pre>") and visitor.problems == []
    assert page.evaluate("document.querySelector('pre.before').innerText") == evil
    assert page.evaluate("document.images.length + document.scripts.length") == 1  # the page's own script


def test_a_parity_report_opens_what_differs_and_shows_pictures(visitor, tmp_path):
    red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    pictures = RawPictures(red, blue)
    cases = [
        CaseResult(name="plain", description="as it comes", verdict="parity"),
        CaseResult(name="guided", description="<b>guided</b>", verdict="differs", pictures=pictures),
    ]
    report = ParityReport(pipeline="TinyPipeline", verdict="differs", cases=cases, command="porter parity TinyPipeline")
    parity_html.write(report, tmp_path / "parity.html")
    page = visitor.open((tmp_path / "parity.html").as_uri())
    assert visitor.problems == [] and visitor.requests == [page.url]  # the pictures are in the page
    assert page.evaluate("[...document.querySelectorAll('details')].map(d => d.open)") == [False, True]
    page.wait_for_function(
        "[...document.images].length === 3 && [...document.images].every(i => i.naturalWidth === 128)"
    )
    assert "<b>guided</b>" in page.inner_text("body")
    page.click("details summary")
    page.click("details:nth-of-type(2) summary")
    assert page.evaluate("[...document.querySelectorAll('details')].map(d => d.open)") == [True, False]


def test_the_page_of_parity_draws_the_difference_over_stages_and_layers(visitor, tmp_path):
    metrics = [Metrics(equal=True), Metrics(equal=False, rel_l2=1e-3)]
    stages = [
        StageResult(stage=f"transformer[{i}]", kind="component", verdict="differs" if i else "equal", metrics=found)
        for i, found in enumerate(metrics)
    ]
    layers = [LayerDifference(path=f"blocks.{i}", rel_l2=10.0 ** (i - 5)) for i in range(4)]
    location = Location(path="blocks.0", arguments_differ=False, layers=layers)
    case = CaseResult(name="plain", description="", verdict="differs", stages=stages, location=location)
    report = ParityReport(pipeline="TinyPipeline", verdict="differs", cases=[case], reproduce="changes = {}")
    parity_html.write(report, tmp_path / "parity.html")
    page = visitor.open((tmp_path / "parity.html").as_uri())
    assert visitor.problems == [] and visitor.requests == [page.url]
    assert page.evaluate("[...document.querySelectorAll('svg')].map(s => s.querySelectorAll('circle').length)") == [
        2,
        4,
    ]
    second = "[...document.querySelectorAll('svg')[1].querySelectorAll('circle')]"
    heights = page.evaluate(f"{second}.map(c => c.cy.baseVal.value)")
    assert heights == sorted(heights, reverse=True)  # what is further off stands higher
    assert page.evaluate("document.querySelectorAll('svg')[0].getBoundingClientRect().width") > 300
    assert "changes = {}" in page.inner_text("body")
