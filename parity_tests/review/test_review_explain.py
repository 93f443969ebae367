"""What ``porter explain`` tells."""

from __future__ import annotations

import shutil

import pytest

from parity_tests.review.conftest import MODELS
from porter.cli import main
from porter.review.explain import explain_rule
from porter.review.steps import OTHERS, rules
from porter.rules.history import STEPS


def told(capsys, *arguments: str) -> str:
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", sorted([*rules(), *STEPS, *OTHERS]))
def test_every_rule_and_step_has_a_manual(name):
    text = explain_rule(name)
    assert text.startswith(f"# {name}\n") and "Class: " in text
    if name in rules() and rules()[name].INVALID:
        assert "Before:" in text and "After:" in text


def test_a_pipeline_is_told_by_what_was_recognised(capsys):
    text = told(capsys, "diffusers.FluxPipeline")
    assert "`transformer`: ported: FluxTransformer2DModel" in text
    assert "`guidance_scale` = 3.5" in text and "`callback_on_step_end`" in text
    assert "`flux/flux_transformer.py`" in text


def test_a_line_is_told_by_what_made_it(capsys):
    file = MODELS / "flux" / "flux_transformer.py"
    lines = file.read_text("utf-8").split("\n")
    changed = 1 + next(n for n, line in enumerate(lines) if "OmniAdaLayerNormZero(" in line)
    assert "engine-ada-layer-norm" in told(capsys, f"{file}:{changed}")
    same = 1 + next(n for n, line in enumerate(lines) if "self.mlp_hidden_dim = " in line)
    assert "As in diffusers." in told(capsys, f"{file}:{same}")


def test_verbose_has_the_places_and_the_neighbours(capsys):
    short, long = told(capsys, "DiTPipeline"), told(capsys, "DiTPipeline", "--verbose")
    assert long.startswith(short) and "`register-modules`" not in short
    [change] = [line for line in long.split("## Changes")[1].splitlines() if line.startswith("- `attention-layer`")]
    assert "(same arithmetic)" in change and "dit/dit_transformer.py:" in change
    assert "Written in `porter.rules." in told(capsys, "attention-layer", "-v")
    file = MODELS / "dit" / "dit_transformer.py"
    line = int(change.split("dit/dit_transformer.py:")[1].split(",")[0])
    assert "With dit/dit_transformer.py, lines" in told(capsys, f"{file}:{line}", "-v")


def test_lines_written_by_hand_are_told_apart_and_do_not_shift_the_others(capsys, tmp_path):
    shutil.copy(MODELS / "registry.py", tmp_path)
    shutil.copytree(MODELS / "flux", tmp_path / "flux")
    file = tmp_path / "flux" / "flux_transformer.py"
    lines = file.read_text("utf-8").split("\n")
    place = next(n for n, line in enumerate(lines) if line.startswith("class FluxAttention"))
    lines[place:place] = ["MINE = 1", "", ""]
    file.write_text("\n".join(lines))
    assert "Written by hand" in told(capsys, f"{file}:{place + 1}")
    changed = 1 + next(n for n, line in enumerate(lines) if "OmniAdaLayerNormZero(" in line)
    assert changed > place and "engine-ada-layer-norm" in told(capsys, f"{file}:{changed}")


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("engine-rms-nrm", "engine-rms-norm"),
        ("FluxPipelin", "FluxPipeline"),
        ("nowhere.py:3", "no file"),
        (f"{MODELS / 'registry.py'}:100000", "lines 1 to"),
        (f"{MODELS / 'registry.py'}:1", "no pipeline"),
    ],
)
def test_what_nobody_knows_is_an_error_with_what_is_near(subject, words, capsys):
    assert main(["explain", subject]) == 2
    assert words in capsys.readouterr().err
