"""Omni end to end on the toy port."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from porter.runtime import ConfigError, ModelNotFoundError, Omni, OmniDiffusionSamplingParams, RequestError


@pytest.fixture
def omni(checkpoint, models_dir):
    return Omni(model=checkpoint, models_dir=models_dir, device="cpu")


def latents(omni, prompts="a cat", **params):
    results = omni.generate(prompts, OmniDiffusionSamplingParams(output_type="latent", **params))
    return [result.output for result in results]


def test_importing_the_package_does_not_import_torch():
    code = "import sys, porter, porter.runtime; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_request_runs_and_is_post_processed(omni):
    [result] = omni.generate("a cat", OmniDiffusionSamplingParams(seed=0, num_outputs_per_prompt=2))
    assert result.output.shape == (2, 4, 16) and result.output.dtype == torch.float32
    assert len(result.images) == 2 and (result.images[0] == result.output[0].numpy()).all()
    assert result.prompt == "a cat" and result.peak_memory_mb > 0 and result.stage_durations == {}


def test_envelopes_are_sorted_into_frames_and_audio(omni):
    [result] = omni.generate("a cat", OmniDiffusionSamplingParams(output_type="video"))
    assert result.images == [] and result.video is result.frames is result.output
    assert result.audio is not None and result.fps == 8 and result.audio_sample_rate == 16000


def test_the_callers_generator_itself_is_drawn_from(omni):
    generator = torch.Generator().manual_seed(3)
    [first], [second] = latents(omni, generator=generator), latents(omni, generator=generator)
    assert not torch.equal(first, second)
    generator.manual_seed(3)
    [again] = latents(omni, generator=generator)
    assert torch.equal(first, again)
    [from_seed] = latents(omni, seed=3)
    assert torch.equal(first, from_seed)


def test_a_list_is_many_requests_and_a_list_in_a_dict_is_one(omni):
    assert [t.shape[0] for t in latents(omni, ["a", {"prompt": "b"}])] == [1, 1]
    assert [t.shape[0] for t in latents(omni, {"prompt": ["a", "b"]})] == [2]
    each = [OmniDiffusionSamplingParams(seed=seed) for seed in (1, 2)]
    first, second = omni.generate(["a", "a"], each)
    assert not torch.equal(first.output, second.output)


def test_nothing_of_the_caller_is_changed(omni):
    prompt = {"prompt": "a", "multi_modal_data": {"image": object()}}
    params = OmniDiffusionSamplingParams(extra_args={"knob": 1})
    omni.generate(prompt, params)
    assert set(prompt) == {"prompt", "multi_modal_data"} and "image" in prompt["multi_modal_data"]
    assert params == OmniDiffusionSamplingParams(extra_args={"knob": 1})


def test_without_seed_and_generator_requests_differ(omni):
    assert not torch.equal(*latents(omni, ["a", "a"]))


def test_dtype_and_attention_backend_reach_the_port(checkpoint, models_dir):
    omni = Omni(checkpoint, models_dir, "cpu", "bfloat16", attention_backend="torch_sdpa")
    assert {p.dtype for p in omni.pipeline.parameters()} == {torch.bfloat16}
    assert omni.pipeline.transformer.attn.backend_explicit
    assert not omni.pipeline.training and torch.get_default_dtype() == torch.float32


def test_the_profiler_times_stages(checkpoint, models_dir):
    omni = Omni(checkpoint, models_dir, "cpu", enable_diffusion_pipeline_profiler=True)
    [result] = omni.generate("a")
    assert set(result.stage_durations) == {"ToyPipeline.forward", "ToyPipeline.diffuse"}
    assert 0 < result.stage_durations["ToyPipeline.diffuse"] <= result.stage_durations["ToyPipeline.forward"]


def test_a_models_dir_converted_anew_is_imported_anew_and_stays_clean(checkpoint, models_dir):
    [before] = latents(Omni(checkpoint, models_dir, "cpu"), seed=0)
    file = models_dir / "toy" / "pipeline_toy.py"
    file.write_text(file.read_text().replace("x - 0.1 *", "x - 0.2 *"))
    [after] = latents(Omni(checkpoint, models_dir, "cpu"), seed=0)
    assert not torch.equal(before, after)
    assert not list(models_dir.rglob("__pycache__"))


@pytest.mark.parametrize("prompts", [[], 3, ["a", None]])
def test_bad_prompts(omni, prompts):
    with pytest.raises(RequestError):
        omni.generate(prompts)


@pytest.mark.parametrize(
    "params",
    [{"seed": 1}, OmniDiffusionSamplingParams(num_outputs_per_prompt=0), [OmniDiffusionSamplingParams()] * 2],
)
def test_bad_sampling_params(omni, params):
    with pytest.raises(RequestError):
        omni.generate("a", params)


def test_an_error_of_the_pipeline_is_raised(omni):
    with pytest.raises(RuntimeError, match="boom"):
        omni.generate("boom")


def test_model_folder_missing(models_dir, tmp_path):
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        Omni(tmp_path / "nowhere", models_dir, "cpu")


def test_unreachable_hub_id(models_dir):
    with pytest.raises(ModelNotFoundError, match="porter-tests/none.*cannot be had"):
        Omni("porter-tests/none", models_dir, "cpu")


def test_no_model_index(checkpoint, models_dir):
    (checkpoint / "model_index.json").unlink()
    with pytest.raises(ModelNotFoundError, match="no model_index.json"):
        Omni(checkpoint, models_dir, "cpu")
    Omni(checkpoint, models_dir, "cpu", model_class_name="ToyPipeline")


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_broken_model_index(checkpoint, models_dir, text):
    (checkpoint / "model_index.json").write_text(text)
    with pytest.raises(ModelNotFoundError, match="model_index.json"):
        Omni(checkpoint, models_dir, "cpu")


def test_a_class_without_a_port_names_the_nearest(checkpoint, models_dir):
    (checkpoint / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipelin"}))
    with pytest.raises(ModelNotFoundError, match="ToyPipeline.*porter convert ToyPipelin "):
        Omni(checkpoint, models_dir, "cpu")


def test_models_dir_without_a_registry(checkpoint, tmp_path):
    with pytest.raises(ModelNotFoundError, match="has no registry.py"):
        Omni(checkpoint, tmp_path, "cpu")


def test_a_registry_that_leads_out_of_its_folder(checkpoint, models_dir):
    (models_dir / "registry.py").write_text('_DIFFUSION_MODELS = {"ToyPipeline": ("toy", "/etc/passwd", "X")}')
    with pytest.raises(ImportError):
        Omni(checkpoint, models_dir, "cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallel_config": {"tensor_parallel_size": 2}}, "tensor_parallel_size=2 needs more than one process"),
        ({"parallel_config": {"use_hsdp": True}}, "use_hsdp=True"),
        ({"enforce_eagre": True}, "did you mean 'enforce_eager'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"device": "nonsense"}, "device 'nonsense'"),
        ({"quantization_config": "fp8"}, "quantization"),
        ({"diffusion_load_format": "custom_pipeline"}, "there is no diffusion_load_format 'custom_pipeline'"),
        ({"attention_backend": "FLASH_ATTN"}, "FLASH_ATTN cannot run: it needs a CUDA device"),
        ({"attention_backend": "MAGIC"}, "unknown attention backend 'MAGIC'"),
    ],
)
def test_settings_that_cannot_be_honoured(checkpoint, models_dir, settings, message):
    with pytest.raises(ConfigError, match=message):
        Omni(checkpoint, models_dir, **({"device": "cpu"} | settings))
