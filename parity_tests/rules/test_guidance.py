"""Forms of guidance, beside the examples of the rule: batches that are doubled where the model is called."""

from __future__ import annotations

import pytest
from harness import plain, rewritten

from porter.rules.pipeline.guidance import GuidedPrediction

PIPELINE = """
class ExamplePipeline(DiffusionPipeline):
    def __init__(self, transformer: ExampleTransformer2DModel):
        super().__init__()
        self.register_modules(transformer=transformer)

    def forward(self, req):
        if guided:
            found = self.transformer(hidden_states={doubled}, text=torch.cat([text, none]), return_dict=False)
            {apart}
        else:
            prediction = self.transformer(hidden_states=latents, text=text, return_dict=False)[0]
        return prediction
"""
APART = "first, second = found[0].chunk(2, dim=0)"


def guided(tmp_path, doubled: str, apart: str = APART) -> tuple[str, str]:
    """The text of the pipeline, and what became of its guidance."""
    text, ctx = rewritten(GuidedPrediction, plain(PIPELINE.format(doubled=doubled, apart=apart)), tmp_path)
    return text, ctx.features["cfg_parallel"]


@pytest.mark.parametrize("doubled", ["torch.cat([latents, latents], dim=0)", "torch.cat([latents] * 2)"])
def test_a_batch_may_be_doubled_where_the_model_is_called(tmp_path, doubled):
    text, state = guided(tmp_path, doubled)
    assert state == "derived" and "found = predict_halves(self, True," in "".join(text.split("\n")).replace("  ", "")
    assert "return self.transformer(**kwargs)\n" in text  # the whole tuple: the source takes its first part
    assert text.count("self.transformer(hidden_states=latents, text=text") == 1


@pytest.mark.parametrize(
    ("doubled", "apart"),
    [
        ("torch.cat([latents, others], dim=0)", APART),  # two things, which may be anything
        ("torch.cat([latents, latents], dim=1)", APART),  # channels
        ("torch.cat([latents, latents], dim=0)", "prediction = found[0]"),  # a batch of two
    ],
)
def test_a_batch_that_is_not_both_branches_is_left(tmp_path, doubled, apart):
    text, state = guided(tmp_path, doubled, apart)
    assert "predict_halves" not in text and not state.startswith("derived")


TWO_CALLS = """
class ExamplePipeline(DiffusionPipeline):
    def __init__(self, transformer: ExampleTransformer2DModel):
        super().__init__()
        self.register_modules(transformer=transformer)

    def forward(self, req):
        found = self.transformer(hidden_states=latents, text=text, return_dict=False)
        found = {first}
        if guided:
            none = self.transformer(hidden_states=latents, text=negative, return_dict=False)
            none = {second}
            found = none + self.guidance_scale * (found - none)
        return found
"""


def test_what_is_done_to_both_branches_alike_is_part_of_predicting(tmp_path):
    text, _ = rewritten(GuidedPrediction, plain(TWO_CALLS.format(first="found[0]", second="none[0]")), tmp_path)
    assert "found = self.transformer(**kwargs)\n        found = found[0]\n        return found" in text
    assert "found = single(positive_noise_pred)" in text  # a tensor, which the engine holds in a tuple


def test_what_is_done_to_each_in_its_own_way_stays_where_it_is(tmp_path):
    text, _ = rewritten(GuidedPrediction, plain(TWO_CALLS.format(first="found[0]", second="none[1]")), tmp_path)
    assert "return self.transformer(**kwargs)\n" in text and "none = none[1]" in text and "predict_branches(" in text
