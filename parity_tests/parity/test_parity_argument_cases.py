"""Every argument that nothing else varies gets a call of its own."""

import torch

from porter.parity.argument_cases import argument_cases, latents_case
from porter.parity.capture import Capture

INPUTS = {"prompt": "a cat", "eta": 0.5, "height": 32}


def call(
    self,
    prompt: str | None = None,
    prompt_2: str | list[str] | None = None,
    height: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 5.0,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    clip_skip: int | None = None,
    sigmas: list[float] | None = None,
    latents: torch.Tensor | None = None,
    clean_caption: bool = True,
    crops_coords_top_left: tuple[int, int] = (0, 0),
    target_size: tuple[int, int] | None = None,
    frame_rate: int = 25,
    ip_adapter_image: object = None,
    attention_kwargs: dict | None = None,
    return_dict: bool = True,
):
    """As a pipeline's."""


def test_each_kind_of_argument_gets_another_value():
    cases = {case.name.removeprefix("another "): case.changes for case in argument_cases(call, INPUTS)}
    found = {name: changes[name] for name, changes in cases.items()}
    assert "&amp;" in cases["clean_caption"]["prompt"], "there must be something to clean"
    assert found == {
        "prompt_2": "a cat on a mat, in red and blue",
        "guidance_rescale": 0.25,
        "eta": 0.25,
        "clip_skip": 1,
        "sigmas": [1.0, 0.7, 0.3],
        "clean_caption": False,
        "crops_coords_top_left": {"$tuple": [3, 5]},
        "target_size": {"$tuple": [40, 48]},
        "frame_rate": 26,
        "attention_kwargs": {"scale": 0.5},
    }


def test_a_negative_argument_comes_with_guidance():
    def guided(self, prompt=None, negative_prompt=None, negative_prompt_2: str | None = None, true_cfg_scale=1.0):
        """As a pipeline's."""

    [case] = argument_cases(guided, INPUTS)
    assert case.changes["true_cfg_scale"] > 1 and case.changes["negative_prompt"]


def test_guidance_that_leaves_out_layers_leaves_some_out_in_some_steps():
    def skipping(
        self,
        prompt=None,
        num_inference_steps=28,
        guidance_scale=7.0,
        skip_guidance_layers: list[int] = None,  # noqa: RUF013 - as diffusers writes it
        skip_layer_guidance_scale: float = 2.8,
        skip_layer_guidance_stop: float = 0.2,
    ):
        """As a pipeline's."""

    found = {case.name: case.changes for case in argument_cases(skipping, {**INPUTS, "num_inference_steps": 2})}
    layers, scale = found["another skip_guidance_layers"], found["another skip_layer_guidance_scale"]
    assert layers["skip_guidance_layers"] == scale["skip_guidance_layers"] == [0] and layers["guidance_scale"] > 1
    assert layers["skip_layer_guidance_stop"] == 1.0 and layers["num_inference_steps"] == 5
    assert scale["skip_layer_guidance_scale"] == 1.4


def test_what_the_port_drops_is_not_tried():
    names = [case.name for case in argument_cases(call, INPUTS, dropped=("clip_skip",))]
    assert "another clip_skip" not in names and "another sigmas" in names


class Side:
    """Records one call of ``prepare_latents``."""

    def __init__(self, latents):
        self.latents = latents
        self.pipeline = type("Pipeline", (), {"__call__": call})()

    def run(self, kwargs, methods=None, stop=False):
        record = Capture()
        record.add("prepare_latents", "method", {"result": self.latents})
        return record


def test_latents_that_the_caller_brings_are_those_of_the_pipeline_made_smaller():
    tensors = {}
    case = latents_case(Side(torch.ones(1, 2)), INPUTS, tensors)
    assert case.changes == {"latents": {"$tensor": "latents"}} and torch.equal(
        tensors["latents"], torch.full((1, 2), 0.75)
    )
    assert latents_case(Side(torch.ones(1, dtype=torch.int64)), INPUTS, {}) is None
