"""Edits by hand and override files, as the commands treat them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PIPELINE = Path("out/tiny/pipeline_tiny.py")
MODEL = Path("out/tiny/tiny_transformer.py")


@pytest.fixture
def converted(porter, tree):
    """A converted folder and the command line on it."""

    def run(*arguments: object):
        return porter(*arguments, "--source", tree.root)

    assert run("convert", "TinyPipeline").code == 0
    return run


def edit(path: Path, old: str, new: str) -> str:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path.read_text()


def test_an_edit_is_drift_until_it_is_recorded(converted):
    edited = edit(MODEL, "return self.proj(hidden_states)", "return self.proj(hidden_states) * 2")
    result = converted("check", "out")
    assert result.code == 1
    assert f"differs: {MODEL} (edited by hand: --fix keeps the edit and records it)" in result.out
    assert converted("check", "out", "--fix").code == 0
    assert MODEL.read_text() == edited
    result = converted("check", "out", "--diff")
    assert result.code == 0
    assert f"edited by hand: {MODEL} (+1 -1)" in result.out
    assert "+        return self.proj(hidden_states) * 2" in result.out
    found = json.loads(converted("check", "out", "--json").out)
    assert found["same"] and found["edits"] == [{"path": str(MODEL), "added": 1, "removed": 1, "recorded": True}]


@pytest.mark.parametrize("names", [["TinyPipeline"], ["--all"]])
def test_converting_again_keeps_an_edit(converted, tree, names):
    edit(MODEL, "return self.proj(hidden_states)", "return self.proj(hidden_states) * 2")
    source = tree.root / "models/transformers/transformer_tiny.py"
    source.write_text(source.read_text().replace("dim: int = 4", "dim: int = 8"))
    result = converted("convert", *names)
    assert result.code == 0
    assert f"edit by hand kept: {MODEL} (+1 -1)" in result.out
    assert "self.proj(hidden_states) * 2" in MODEL.read_text() and "dim: int = 8" in MODEL.read_text()
    assert converted("check", "out").code == 0


def test_drift_under_an_edit_is_still_seen(converted, tree):
    edit(MODEL, "return self.proj(hidden_states)", "return self.proj(hidden_states) * 2")
    converted("convert", "TinyPipeline")
    source = tree.root / "models/transformers/transformer_tiny.py"
    source.write_text(source.read_text().replace("dim: int = 4", "dim: int = 8"))
    assert converted("check", "out").code == 1
    assert converted("check", "out", "--fix").code == 0
    assert converted("check", "out").code == 0
    assert "self.proj(hidden_states) * 2" in MODEL.read_text() and "dim: int = 8" in MODEL.read_text()


def test_a_conflict_is_an_error_that_shows_both_sides(converted, tree):
    edited = edit(MODEL, "return self.proj(hidden_states)", "return self.proj(hidden_states) * 2")
    source = tree.root / "models/transformers/transformer_tiny.py"
    source.write_text(source.read_text().replace("self.proj(hidden_states)", "self.proj(hidden_states) * 3"))
    for arguments in (("convert", "TinyPipeline"), ("check", "out"), ("check", "out", "--fix"), ("convert", "--all")):
        result = converted(*arguments)
        assert result.code == 2, arguments
        assert "<<<<<<< by hand" in result.err and "* 2" in result.err and "* 3" in result.err
        assert result.err.splitlines()[-1].startswith("porter: error: ")
        assert MODEL.read_text() == edited
    [conflict] = json.loads(converted("check", "out", "--json").out)["conflicts"]
    assert conflict["file"] == str(MODEL) and "* 2" in conflict["mine"] and "* 3" in conflict["porter"]
    assert converted("convert", "TinyPipeline", "--conflicts", "mine").code == 0
    assert "* 2" in MODEL.read_text() and "* 3" not in MODEL.read_text()
    assert converted("check", "out").code == 0


def test_an_unknown_choice_is_refused(converted):
    assert "fail, mine, porter" in converted("check", "out", "--conflicts", "theirs").err


def test_an_override_file_replaces_a_method_until_what_it_replaces_changes(converted, tree):
    override = Path("out/tiny/tiny_transformer.override.py")
    mine = "# replaces: {}\ndef forward(self, hidden_states):\n    return hidden_states\n"
    override.write_text(mine.format("TinyTransformer2DModel.forward"))
    refusal = converted("convert", "TinyPipeline")
    assert refusal.code == 2
    line = next(line for line in refusal.err.splitlines() if "# replaces: " in line)
    override.write_text(mine.format(line.partition("# replaces: ")[2]))
    assert converted("check", "out").code == 1
    assert converted("convert", "TinyPipeline").code == 0
    assert "        return hidden_states\n" in MODEL.read_text()
    assert converted("check", "out").code == 0
    source = tree.root / "models/transformers/transformer_tiny.py"
    source.write_text(source.read_text().replace("self.proj(hidden_states)", "self.proj(hidden_states) * 3"))
    before = MODEL.read_text()
    for command in (("check", "out", "--fix"), ("convert", "TinyPipeline")):
        result = converted(*command)
        assert result.code == 2
        assert "stale" in result.err and "return hidden_states" in result.err and "* 3" in result.err
    assert MODEL.read_text() == before


def test_an_override_file_beside_nothing_is_an_error(converted):
    Path("out/tiny/gone.override.py").write_text("import os\n")
    result = converted("check", "out")
    assert result.code == 2 and "no generated file beside it" in result.err


def test_a_pipeline_that_somebody_added_to_the_registry_is_theirs(converted):
    registry = Path("out/registry.py")
    entry = '    "MyPipeline": ("mine", "pipeline_my", "MyPipeline"),\n'
    edit(registry, "_DIFFUSION_MODELS = {\n", f"_DIFFUSION_MODELS = {{\n{entry}")
    Path("out/mine").mkdir()
    Path("out/mine/pipeline_my.py").write_text("class MyPipeline: ...\n")
    assert converted("check", "out", "--fix").code == 0
    assert converted("check", "out").code == 0
    converted("convert", "TinyPipeline")
    assert "MyPipeline" in registry.read_text() and Path("out/mine/pipeline_my.py").is_file()
    assert converted("check", "out").code == 0
