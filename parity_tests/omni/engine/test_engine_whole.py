"""The whole engine: `Omni` with its start-up request, scheduler and output formatting."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.omni, pytest.mark.slow]


def generate(folder: Any, prompt: Any, **params: Any) -> Any:
    import torch
    from vllm_omni.entrypoints.omni import Omni
    from vllm_omni.inputs.data import OmniDiffusionSamplingParams

    omni = Omni(model=str(folder), dtype="float32", enforce_eager=True)
    try:
        generator = torch.Generator().manual_seed(0)
        [result] = omni.generate(prompt, OmniDiffusionSamplingParams(generator=generator, **params))
        return result
    finally:
        omni.close()


def test_a_picture(checkpoint) -> None:
    folder = checkpoint("SanaPipeline")
    result = generate(folder, {"prompt": "a cat"}, height=32, width=32, num_inference_steps=2)
    assert result.final_output_type == "image"
    [picture] = result.images
    assert picture.size == (32, 32)


def test_a_video_comes_out_as_a_video(checkpoint) -> None:
    folder = checkpoint("LTXPipeline")
    result = generate(
        folder, {"prompt": "a cat"}, height=32, width=32, num_frames=9, num_inference_steps=2, max_sequence_length=16
    )
    assert result.final_output_type == "video"


def test_an_argument_that_a_pipeline_does_not_have_is_an_error(checkpoint) -> None:
    with pytest.raises(Exception, match="Unknown argument 'no_such_argument'"):
        generate(checkpoint("SanaPipeline"), "a cat", num_inference_steps=2, extra_args={"no_such_argument": 1})
