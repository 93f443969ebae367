import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from porter.parity import spec as specs
from porter.parity.checkpoint import SpecError, available, build, check, load_inputs
from porter.parity.weights import is_constant, refill

SMALL = ["FluxPipeline", "LTXLatentUpsamplePipeline", "KandinskyV22PriorPipeline", "Flux2KleinPipeline"]


def test_every_spec_reads_and_names_its_own_pipeline():
    names = available()
    assert len(names) >= 107
    for name in names:
        spec = specs.read(name)
        assert spec.model_index["_class_name"] == name
        folders = {path.partition("/")[0] for path in spec.files}
        assert set(spec.components()) <= folders
        assert spec.inputs and spec.tensors is None


@pytest.mark.parametrize("name", SMALL)
def test_no_weight_is_constant(name, tmp_path):
    files = list(build(name, tmp_path).rglob("*.safetensors"))
    assert files
    for file in files:
        for key, tensor in load_file(file).items():
            assert not tensor.is_floating_point() or tensor.numel() == 1 or not is_constant(tensor), key


def test_same_seed_same_weights_and_another_seed_others(tmp_path):
    folders = [build("LTXLatentUpsamplePipeline", tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1))]
    one, two, other = [load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in folders]
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one if one[key].is_floating_point())


def test_the_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    build("LTXLatentUpsamplePipeline", tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_inputs_are_fresh_and_equal():
    name = "StableDiffusionXLControlNetInpaintPipeline"
    one, two = load_inputs(name), load_inputs(name)
    assert one["image"] is not two["image"] and one["image"].tobytes() == two["image"].tobytes()
    assert torch.equal(one["generator"].get_state(), two["generator"].get_state())
    assert set(one["mask_image"].tobytes()) == {0, 255}


def test_refill_leaves_weights_that_vary_and_buffers_of_integers():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.BatchNorm1d(3))
    with torch.no_grad():
        module[0].weight[0, 0] = 5
        module[0].bias.fill_(float("nan"))
    before = module[0].weight.clone()
    refilled = refill(module, 0)
    assert torch.equal(before, module[0].weight)
    assert refilled == ["0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "2.running_mean", "2.running_var"]
    assert abs(module[1].weight.mean().item() - 1) < 0.3 and float(module[2].running_var.min()) > 0
    assert int(module[2].num_batches_tracked) == 0


def test_a_spec_in_a_folder_outside_the_project(tmp_path):
    source = specs.read("LTXLatentUpsamplePipeline")
    for path, data in source.files.items():
        target = tmp_path / "specs" / source.name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (tmp_path / "specs" / source.name / "inputs.json").write_text(json.dumps(source.inputs))
    assert available(tmp_path / "specs") == [source.name]
    out = build(source.name, tmp_path / "out", root=tmp_path / "specs")
    assert (out / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    assert not (out / "inputs.json").exists()
    assert load_inputs(source.name, tmp_path / "specs").keys() == source.inputs.keys()


def test_bad_specs_are_named(tmp_path):
    with pytest.raises(SpecError, match="no tiny checkpoint for NoSuchPipeline"):
        build("NoSuchPipeline", tmp_path / "out")
    (tmp_path / "Broken.json").write_text("{")
    with pytest.raises(SpecError, match="Broken is not valid JSON"):
        build("Broken", tmp_path / "out", root=tmp_path)
    with pytest.raises(SpecError, match="no such folder"):
        available(tmp_path / "absent")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def folder(tmp_path):
    return build("LTXLatentUpsamplePipeline", tmp_path / "checkpoint")


def test_a_whole_checkpoint_is_taken(folder):
    check(folder, "LTXLatentUpsamplePipeline")


def test_a_checkpoint_of_another_class_is_refused(folder):
    with pytest.raises(SpecError, match="is a checkpoint of LTXLatentUpsamplePipeline, not of FluxPipeline"):
        check(folder, "FluxPipeline")


def test_pickled_weights_are_refused(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(SpecError, match=r"pickled weights only .*convert them to safetensors"):
        check(folder, "LTXLatentUpsamplePipeline")


@pytest.mark.parametrize("what", ["vae/diffusion_pytorch_model.safetensors", "vae", "model_index.json"])
def test_a_checkpoint_that_is_not_whole_is_refused(folder, what):
    place = folder / what
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(SpecError, match="has no weights|lacks the folder vae|no model_index.json"):
        check(folder, "LTXLatentUpsamplePipeline")


def test_a_missing_shard_is_named(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "vae" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SpecError, match="lacks model-00001-of-00002.safetensors"):
        check(folder, "LTXLatentUpsamplePipeline")
