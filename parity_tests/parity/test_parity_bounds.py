"""Numbers that a pipeline compares its arguments with are tried, and those beside them."""

import pytest

from porter.parity.bounds import bound_cases

INPUTS = {"prompt": "a cat", "height": 32, "guidance_scale": 3.0}


class Pipeline:
    """As diffusers writes one."""

    vae_scale_factor = 8

    @property
    def guided(self):
        return self._guidance_scale > 1

    def check_inputs(self, height, max_sequence_length, strength):
        if height % (self.vae_scale_factor * 2) != 0:
            raise ValueError("height")
        if max_sequence_length is not None and max_sequence_length > 512:
            raise ValueError("length")
        if strength < 0 or strength > 1:
            raise ValueError("strength")
        if max_sequence_length == 7 or height < len(str(height)) or height > 9000:
            raise ValueError("neither is a bound that could be tried")

    def __call__(self, prompt, height=None, max_sequence_length=256, strength=0.6, guidance_scale=5.0):
        self._guidance_scale = guidance_scale
        local = guidance_scale
        if local > 3 or max_sequence_length > 100:
            return prompt


@pytest.fixture
def cases():
    return {case.name: case for case in bound_cases(Pipeline(), INPUTS)}


def test_a_bound_and_what_lies_beyond_it_are_tried(cases):
    tried = {}
    for case in cases.values():
        [(name, value)] = case.changes.items()
        tried.setdefault(name, []).append(value)
    assert tried == {
        "guidance_scale": [1.0, 1.005],
        "height": [40],
        "max_sequence_length": [512, 513],
        "strength": [-1, 0, 1, 2],
    }


def test_a_call_that_may_be_refused_goes_no_further_than_the_first_prediction(cases):
    assert cases["max_sequence_length of 513"].first_call_only
    assert not cases["guidance_scale of 1.005"].first_call_only


def test_what_has_no_source_has_no_bounds():
    made = type("Made", (), {"__call__": Pipeline.__call__})
    assert bound_cases(made(), INPUTS) == []
