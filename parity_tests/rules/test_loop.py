"""Where one step of a denoising loop is cut in two."""

from __future__ import annotations

import textwrap

import libcst as cst
import pytest

from porter.rules.engine import body_statements, code, statements
from porter.rules.pipeline.loop import NoSplit, find_loop
from porter.rules.pipeline.steps import Split

LOOP = """
latents = self.prepare_latents(prompt)
for i, t in enumerate(timesteps):
    noise_pred = self.transformer(latents, t)
    {conversion}
    noise_pred = noise_pred * 2
    latents = self.scheduler.step(noise_pred, t, latents, return_dict=False)[0]
"""


def cut(conversion: str) -> tuple[list[str], list[str]]:
    """The part of a step that predicts, and the part that applies the prediction."""
    loop = find_loop(statements(LOOP.format(conversion=conversion)), ["self.transformer"])
    return [code(item).strip() for item in loop.denoise], [code(item).strip() for item in loop.step]


def test_a_step_is_cut_where_the_scheduler_applies_the_prediction():
    predicts, applies = cut("noise_pred = noise_pred.float()")
    assert len(predicts) == 3 and len(applies) == 1 and applies[0].startswith("latents = ")


def test_a_scheduler_that_is_asked_what_a_prediction_means_applies_nothing():
    asks = "noise_pred = self.scheduler.step(noise_pred, t, latents, return_dict=False)[1]"
    predicts, applies = cut(asks)
    assert predicts[1] == asks and len(applies) == 1 and applies[0].startswith("latents = ")


def test_a_call_that_changes_a_model_for_its_own_time_is_not_cut():
    lines = (LOOP.format(conversion="pass") + "self.transformer.set_attn_processor(original)\n").strip().splitlines()
    source = "def forward(self, prompt, timesteps, original):\n" + textwrap.indent("\n".join(lines), "    ")
    forward = cst.ensure_type(cst.parse_statement(source), cst.FunctionDef)
    with pytest.raises(NoSplit, match="a model that requests share"):
        Split(forward, find_loop(body_statements(forward), ["self.transformer"]))
