"""``porter convert --tier``: how deep a port goes, and that what comes after knows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TINY = Path("out/tiny/pipeline_tiny.py")


def header(file: Path, label: str) -> str:
    return next((line for line in file.read_text().splitlines() if line.startswith(f"# {label}")), "")


@pytest.mark.parametrize("tier", ["A", "B", "C", "D"])
def test_check_regenerates_a_port_in_its_tier(porter, tree, tier):
    result = porter("convert", "TinyPipeline", "--source", tree.root, "--tier", tier, "--json")
    assert json.loads(result.out)["tier"] == tier
    assert header(TINY, "Tier") == f"# Tier: {tier}"
    assert porter("check", "out", "--source", tree.root, "--no-cache").code == 0
    assert porter("check", "out", "--source", tree.root).code == 0


def test_the_header_says_what_is_there_and_what_is_not(porter, tree):
    porter("convert", "TinyPipeline", "--source", tree.root, "--tier", "C")
    text = TINY.read_text()
    assert "step execution (left out by --tier C)" in " ".join(text.replace("#  ", "").split())
    assert "verified" not in header(TINY, "Features") + header(TINY, "Without")


def test_the_cache_keeps_tiers_apart(porter, tree):
    porter("convert", "TinyPipeline", "--source", tree.root, "--tier", "D")
    deep = TINY.read_text()
    assert porter("convert", "TinyPipeline", "--source", tree.root, "--tier", "A").code == 0
    assert TINY.read_text() != deep
    porter("convert", "TinyPipeline", "--source", tree.root)
    assert TINY.read_text() == deep


def test_an_unknown_tier_is_one_line(porter, tree):
    result = porter("convert", "TinyPipeline", "--source", tree.root, "--tier", "E")
    assert (result.code, result.out) == (2, "") and not Path("out").exists()
    assert result.err == "porter: error: unknown tier 'E'; the tiers are A, B, C, D\n"


def test_a_family_is_of_one_tier(porter, tree):
    second = tree.root / "pipelines/tiny/pipeline_tiny.py"
    text = second.read_text()
    tree.write("pipelines/tiny/pipeline_tiny_edit.py", text.replace("class TinyPipeline", "class TinyEditPipeline"))
    porter("convert", "TinyPipeline", "--source", tree.root, "--tier", "B")
    result = porter("convert", "TinyEditPipeline", "--source", tree.root)
    assert result.code == 2 and "TinyPipeline in tier B" in result.err and result.err.count("\n") == 1
    assert porter("convert", "TinyEditPipeline", "--source", tree.root, "--tier", "B").code == 0


def test_upgrade_keeps_the_tier(porter, tree):
    porter("convert", "TinyPipeline", "--source", tree.root, "--tier", "A")
    result = porter("upgrade", "out", "--from", tree.root, "--to", tree.root, "--jobs", 1, "--json")
    found = json.loads(result.out)
    assert (found["tier"], found["same"]) == ("A", ["TinyPipeline"])
