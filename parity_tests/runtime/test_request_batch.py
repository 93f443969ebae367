"""Requests that a port takes together: which ones, when they are one call, and what each gets."""

from __future__ import annotations

import ast
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from porter.facts.batching import batch_refusal
from porter.runtime.diffusion.data import DiffusionOutput
from porter.runtime.diffusion.request import OmniDiffusionRequest
from porter.runtime.diffusion.worker.request_batch import DiffusionRequestBatch
from porter.runtime.inputs.data import OmniDiffusionSamplingParams


def request(prompt: Any, seed: int | None = 0, **settings: Any) -> OmniDiffusionRequest:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    params = OmniDiffusionSamplingParams(generator=generator, **settings)
    return OmniDiffusionRequest(prompt=prompt, sampling_params=params, request_id=f"{prompt}-{seed}")


class Pipeline:
    """Says what it was asked for, a row a prompt."""

    supports_request_batch = True
    request_components = request_attributes = ()

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def prepare_encode(self, made: OmniDiffusionRequest) -> Any:
        prompt = made.prompt if isinstance(made.prompt, str) else made.prompt["prompt"]
        self.calls.append(prompt)
        rows = [prompt] if isinstance(prompt, str) else prompt
        return SimpleNamespace(total_steps=0, extra={}, rows=torch.tensor([len(row) for row in rows]))

    def progress_bar(self, total: int) -> Any:
        return torch.no_grad()

    def post_decode(self, state: Any) -> DiffusionOutput:
        return DiffusionOutput(output=state.rows)


def test_texts_and_noise_are_one_call_and_each_gets_its_row(stepwise):
    pipeline = Pipeline()
    batch = DiffusionRequestBatch([request("a"), request("abc", 1)])
    assert [output.output.tolist() for output in stepwise.run_request(pipeline, batch)] == [[1], [3]]
    assert pipeline.calls == [["a", "abc"]]


def test_one_request_is_itself(stepwise):
    pipeline = Pipeline()
    [output] = stepwise.run_request(pipeline, DiffusionRequestBatch([request("abc")]))
    assert output.output.tolist() == [3] and pipeline.calls == ["abc"]


@pytest.mark.parametrize(
    "second",
    [
        request("b", 1, num_inference_steps=3),
        request("b", None),
        request("b", 1, num_outputs_per_prompt=2),
        request({"prompt": "b", "negative_prompt": "c"}, 1),
        request({"prompt": "b", "multi_modal_data": {"image": "x"}}, 1),
    ],
)
def test_other_requests_run_one_by_one(stepwise, second):
    pipeline = Pipeline()
    outputs = stepwise.run_request(pipeline, DiffusionRequestBatch([request("a"), second]))
    assert len(outputs) == 2 and pipeline.calls == ["a", "b"]


ENCODE = """
def encode_prompt(self, prompt, batch_size):
    ids = self.tokenizer(prompt, padding="max_length").input_ids
    {rest}
    return self.text_encoder(ids)
"""


def refusal(rest: str, *parameters: str) -> str:
    text = ENCODE.format(rest=textwrap.indent(textwrap.dedent(rest).strip(), "    ").strip() or "pass")
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    return batch_refusal([function], parameters or ("prompt", "generator"))


def test_prompts_of_one_length_can_be_put_together():
    assert refusal("") == ""
    assert refusal("width = torch.sum(ids, dim=1)") == ""


def test_a_longer_encoding_for_the_log_alone_does_no_harm():
    rest = """
    longer = self.tokenizer(prompt, padding="longest").input_ids
    if longer.shape[-1] >= ids.shape[-1]:
        cut = self.tokenizer.batch_decode(longer)
        logger.warning(cut)
    """
    assert refusal(rest) == ""
    assert "padded" in refusal(f"{textwrap.dedent(rest)}\nids = longer")


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("ids = self.tokenizer(prompt, padding=True).input_ids", "padded by 'True'"),
        ("scale = ids.float().std()", "over all samples"),
        ("if batch_size > 1:\n    raise ValueError(batch_size)", "one prompt at a time"),
    ],
)
def test_what_cannot_be_put_together_says_why(rest, reason):
    assert reason in refusal(rest)


def test_a_call_without_generators_cannot():
    assert refusal("", "prompt") == "its call has no generator"
