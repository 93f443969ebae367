"""A port is tried with checkpoints that differ from its own in what its code asks for."""

import json

import pytest
import torch

from porter.parity import checkpoint, spec
from porter.parity.other_checkpoints import OTHER, check_other, other_checkpoints
from porter.parity.other_specs import other_specs
from porter.parity.run import run_parity
from porter.parity.sides import Port, Reference
from porter.parity.spec import SpecError

NAME = "WanPipeline"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = checkpoint.build(NAME, tmp_path_factory.mktemp("own") / NAME)
    return folder, Reference(folder, "cpu", torch.float32).pipeline


def test_settings_of_the_pipeline_and_of_its_components_are_changed(made):
    labels = {label for label, _ in other_specs(spec.read(NAME), made[1])}
    assert {"expand_timesteps=True", "a transformer_2, boundary_ratio=0.5", "vae.scale_factor_spatial=16"} <= labels
    assert "no transformer" in labels  # that diffusers cannot run so is found out by running it
    assert not any(label.startswith("transformer.num_layers") for label in labels)  # the pipeline does not ask for it


def test_only_what_differs_is_written_anew(made, tmp_path):
    own, pipeline = made
    [other] = other_checkpoints(
        spec.read(NAME), pipeline, {}, own, tmp_path, set(), wanted=[OTHER + "vae.scale_factor_spatial=16"]
    )
    links = {path.name for path in other.folder.iterdir() if path.is_symlink()}
    assert links == {"scheduler", "text_encoder", "tokenizer", "transformer"}
    assert json.loads((other.folder / "vae" / "config.json").read_text())["scale_factor_spatial"] == 16
    assert other.case.changes == {"height": 32, "width": 48}  # 16 are too few for patches of 32


def test_a_second_denoiser_is_used_and_a_port_that_forgets_it_is_seen(made, tmp_path):
    own, pipeline = made
    name = OTHER + "a transformer_2, boundary_ratio=0.5"
    [other] = other_checkpoints(spec.read(NAME), pipeline, {}, own, tmp_path, set(), wanted=[name])
    assert {event.name for event in other.capture.events} >= {"transformer", "transformer_2"}
    passed = check_other(other, {}, lambda folder: Port(folder, None, "cpu", "float32"))
    assert passed.name == name and passed.verdict == "parity" and passed.largest_difference == 0

    def forgetful(folder):
        port = Port(folder, None, "cpu", "float32")
        port.pipeline.transformer_2 = port.pipeline.transformer
        return port

    assert check_other(other, {}, forgetful).verdict == "differs"


def test_a_port_that_does_not_load_says_so(made, tmp_path):
    own, pipeline = made
    [other] = other_checkpoints(
        spec.read(NAME), pipeline, {}, own, tmp_path, set(), wanted=[OTHER + "expand_timesteps=True"]
    )

    def refusing(folder):
        raise KeyError("expand_timesteps")

    assert check_other(other, {}, refusing).port_error == "the port does not load: KeyError: 'expand_timesteps'"


def test_a_switch_may_want_another_size_besides(tmp_path):
    name = "CogVideoXPipeline"
    own = checkpoint.build(name, tmp_path / "own")
    pipeline = Reference(own, "cpu", torch.float32).pipeline
    label = OTHER + "transformer.use_rotary_positional_embeddings=True"
    [other] = other_checkpoints(spec.read(name), pipeline, {}, own, tmp_path, set(), wanted=[label])
    config = json.loads((other.folder / "transformer" / "config.json").read_text())
    assert config["use_rotary_positional_embeddings"] and config["attention_head_dim"] == 16


def test_they_are_cases_that_can_be_asked_for():
    wanted = OTHER + "expand_timesteps=True"
    report = run_parity(NAME, cases=[wanted])
    assert report.passed and [case.name for case in report.cases] == [wanted]
    with pytest.raises(SpecError, match="no such case: another checkpoint: x=1; there are .*expand_timesteps=True"):
        run_parity(NAME, cases=[OTHER + "x=1"])
