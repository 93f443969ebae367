"""A denoiser is compared in configurations that the tiny checkpoint does not have."""

import functools
from types import SimpleNamespace

import pytest
import torch

from porter.parity import checkpoint, spec
from porter.parity.alone import ALONE, check_alone, variations
from porter.parity.areas import small_areas
from porter.parity.recipes import decode
from porter.parity.run import run_parity
from porter.parity.sides import Port, Reference

NAME = "ZImagePipeline"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = checkpoint.build(NAME, tmp_path_factory.mktemp("checkpoint"))
    reference = Reference(folder, "cpu", torch.float32)
    with small_areas(reference.pipeline):
        record = reference.run(decode(spec.read(NAME).inputs, {}))
    return variations(reference, record), Port(folder, None, "cpu", "float32").pipeline


def test_parameters_are_changed_one_at_a_time_and_the_port_agrees(made):
    found, port = made
    labels = {variation.label for variation in found}
    assert {"its own configuration", "rope_theta=384.0", "qk_norm=False"} <= labels
    result = check_alone(found, port)
    assert result.name == ALONE and result.verdict == "parity" and result.largest_difference == 0
    assert [stage.stage for stage in result.stages] == [f"transformer, {each.label}" for each in found]


def with_class(port, **members):
    """A pipeline whose transformer is of a class of its own."""
    held = type(port.transformer)
    changed = object.__new__(type("Changed", (held,), members))
    changed.__dict__.update(port.transformer.__dict__)
    return SimpleNamespace(transformer=changed)


def test_a_parameter_that_is_written_down_as_the_checkpoint_has_it_shows(made):
    found, port = made
    original = type(port.transformer).__init__

    @functools.wraps(original)  # its signature says what the configuration may hold
    def written_down(self, *args, **kwargs):
        original(self, *args, **{**kwargs, "rope_theta": 256.0})

    result = check_alone(found, with_class(port, __init__=written_down))
    assert result.verdict == "differs" and result.first_difference.stage == "transformer, rope_theta=384.0"
    assert sum(stage.failed for stage in result.stages) == 1


def test_a_port_that_cannot_be_built_says_why(made):
    found, port = made

    @functools.wraps(type(port.transformer).__init__)
    def refusing(self, *args, **kwargs):
        raise KeyError("n_layers")

    stage = check_alone(found, with_class(port, __init__=refusing)).first_difference
    assert stage.note == "the port raises KeyError: 'n_layers'"


def test_diffusers_own_models_are_not_compared_with_themselves(made):
    found, _ = made
    own = Reference.__new__(Reference)
    own.pipeline = SimpleNamespace(transformer=torch.nn.Linear(1, 1))
    own.pipeline.transformer.__class__ = type("T", (torch.nn.Linear,), {"__module__": "diffusers.models.t"})
    assert check_alone(found, own.pipeline) is None


def test_it_is_a_case_that_can_be_asked_for():
    report = run_parity(NAME, cases=[ALONE])
    assert report.passed and [case.name for case in report.cases] == [ALONE]
