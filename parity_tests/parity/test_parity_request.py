import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from porter.parity.request import to_request
from porter.runtime import OmniDiffusionSamplingParams

FIELDS = {item.name for item in dataclasses.fields(OmniDiffusionSamplingParams)} - {"extra_args", "quality"}
NAMES = st.one_of(
    st.sampled_from(["prompt", "prompt_2", "negative_prompt", "prompt_embeds", "guidance_scale", "true_cfg_scale"]),
    st.sampled_from(["height", "num_inference_steps", "eta", "layers", "strength", "attention_kwargs", "zero_steps"]),
    st.sampled_from(["num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt"]),
    st.from_regex(r"[a-z][a-z_]{0,12}", fullmatch=True).filter(lambda name: name not in {"quality", "extra_args"}),
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(-2, 2), st.text(max_size=3), st.just({"a": 1})
)


def found(kwargs, name):
    """Where an argument arrived, and as what."""
    prompt, params = to_request(kwargs)
    places = []
    target = "num_outputs_per_prompt" if name.startswith("num_") and name.endswith("_per_prompt") else name
    if name in prompt:
        places.append(("prompt", prompt[name]))
    if name in prompt.get("multi_modal_data", {}):
        places.append(("media", prompt["multi_modal_data"][name]))
    if name in params.extra_args:
        places.append(("extra", params.extra_args[name]))
    elif target in FIELDS:
        places.append(("field", getattr(params, target)))
    return places


# A loaded machine is slow now and then; how fast this is does not matter.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@PATIENT
@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_every_argument_arrives_once_with_its_value(kwargs):
    per_prompt = [name for name in kwargs if name.startswith("num_") and name.endswith("_per_prompt")]
    for name in per_prompt[1:]:  # diffusers calls have one of them
        del kwargs[name]
    for name, value in kwargs.items():
        [(place, arrived)] = found(kwargs, name)
        assert arrived is value or arrived == value
        assert value is not None or place in ("prompt", "extra"), "None in a sampling parameter means not given"


@PATIENT
@given(st.sampled_from(sorted(FIELDS)))
def test_what_is_not_given_is_not_sent(name):
    _, params = to_request({})
    assert getattr(params, name) == getattr(OmniDiffusionSamplingParams(), name)
    assert params.extra_args == {}


def test_the_kinds_of_arguments():
    picture, mask = PIL.Image.new("RGB", (2, 2)), np.zeros((2, 2))
    generator = torch.Generator()
    prompt, params = to_request(
        {
            "prompt": ["a", "b"],
            "negative_prompt_embeds": torch.zeros(1),
            "image": [picture, picture],
            "mask_image": mask,
            "image_embeds": torch.zeros(1),
            "image_guidance_scale": 1.5,
            "num_images_per_prompt": 2,
            "height": 32,
            "generator": generator,
            "controlnet_conditioning_scale": 0.5,
        }
    )
    assert prompt.keys() == {"prompt", "negative_prompt_embeds", "multi_modal_data"}
    assert prompt["multi_modal_data"].keys() == {"image", "mask_image"}
    assert params.num_outputs_per_prompt == 2 and params.height == 32 and params.generator is generator
    assert params.extra_args.keys() == {"image_embeds", "image_guidance_scale", "controlnet_conditioning_scale"}


@pytest.mark.parametrize("name", ["guidance_scale", "height", "sigmas", "num_inference_steps"])
def test_an_explicit_none_is_not_an_omission(name):
    _, params = to_request({name: None})
    assert params.extra_args == {name: None}


def test_a_value_that_equals_the_fields_default_still_counts_as_given():
    _, params = to_request({"num_images_per_prompt": 1})
    assert params.extra_args == {"num_images_per_prompt": 1}
