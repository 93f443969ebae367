"""The differences of committed ports: all attributed, and together they are the port."""

from __future__ import annotations

import json
import re

import pytest

from parity_tests.review.conftest import MODELS, committed, reviewed
from porter.cli import main
from porter.review.diff import PortDiff
from porter.review.html import render
from porter.review.steps import rules, summary
from porter.rules.history import STEPS


@pytest.mark.parametrize("name", committed())
def test_every_hunk_of_a_committed_port_is_attributed(name):
    port, texts, hunks = reviewed(name)
    assert [(h.file, h.line) for h in hunks if not h.steps] == []
    for hunk in hunks:
        if hunk.after:
            lines = texts[hunk.file].split("\n")
            assert lines[hunk.line - 1 : hunk.line - 1 + len(hunk.after)] == hunk.after
    # Recorded step by step or in one walk, the port is the same.
    for file in port.built:
        assert texts[file] == (MODELS / file).read_text("utf-8"), file


@pytest.mark.parametrize("name", ["QwenImageEditPipeline", "FluxPipeline", "PixArtSigmaPipeline"])
def test_what_no_hunk_shows_stands_in_the_source(name):
    port, texts, hunks = reviewed(name)
    for file, built in port.built.items():
        shown = {n for h in hunks if h.file == file for n in range(h.line, h.line + len(h.after))}
        sources = {line.strip() for module in built.sources for line in module.lines}
        sources |= {line.strip() for h in built.histories.values() for line in h.source.module.lines}
        for number, line in enumerate(texts[file].split("\n"), 1):
            if line.strip() and number not in shown:
                assert line.strip() in sources, f"{file}:{number}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "QwenImageEditPipeline",
            {"specialise-attention", "pre-process-hook", "post-process-hook", "template:support"},
        ),
        ("FluxPipeline", {"fold-processor", "engine-ada-layer-norm", "template:post_process"}),
    ],
)
def test_hunks_name_what_made_them(name, expected):
    _, _, hunks = reviewed(name)
    made = {step for hunk in hunks for step in hunk.steps}
    assert {"pipeline-constructor", "pipeline-forward", "imports", "header", *expected} <= made
    assert all(hunk.why and all(hunk.why) for hunk in hunks)
    assert all(hunk.safety == "same arithmetic" for hunk in hunks if "engine-ada-layer-norm" in hunk.steps)


def test_every_step_has_a_line_of_why():
    for step in (*rules(), *STEPS):
        assert summary(step).endswith(".") or summary(step), step


def test_json_is_what_the_schema_says(capsys):
    assert main(["diff", "diffusers.FluxPipeline", "--json"]) == 0
    found = PortDiff.model_validate(json.loads(capsys.readouterr().out))
    assert found.schema_version == 1 and found.pipeline == "FluxPipeline" and found.hunks


def test_a_terminal_shows_hunks_side_by_side_or_below_each_other(capsys):
    assert main(["diff", "FluxPipeline"]) == 0
    wide = capsys.readouterr().out
    assert main(["diff", "FluxPipeline", "--unified"]) == 0
    narrow = capsys.readouterr().out
    assert "0 unattributed" in wide and "0 unattributed" in narrow
    assert "+        self.device = get_local_device()" in narrow


def test_the_page_holds_every_hunk_as_text(tmp_path, capsys):
    page = tmp_path / "diff.html"
    assert main(["diff", "FluxPipeline", "--html", str(page)]) == 0
    text = page.read_text("utf-8")
    assert text.count("<details") == len(reviewed("FluxPipeline")[2])
    assert not re.search(r"<[^>]*\ssrc=|@import", text)


def test_the_page_escapes_what_sources_say(flagship):
    _, _, hunks = flagship
    hostile = hunks[0].model_copy(update={"name": "<script>alert(1)</script>", "after": ["</pre><script>"]})
    page = render(PortDiff(pipeline="P", diffusers="0", target="porter", hunks=[hostile]))
    assert "<script>alert" not in page and "</pre><script>" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["diff", "QwenImageEditPipelin"], "Did you mean QwenImageEditPipeline"),
        (["diff", "FluxPipeline", "--target", "nowhere"], "nowhere"),
        (["diff", "FluxPipeline", "--html", "/"], "folder"),
    ],
)
def test_bad_questions(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
