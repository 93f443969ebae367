"""What ``porter explain`` tells."""

from __future__ import annotations

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
