"""The diffusers backend: equal to diffusers, and nothing set that a request did not set."""

from __future__ import annotations

import json
import logging

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

from porter.parity import checkpoint
from porter.parity.request import to_request
from porter.runtime import ConfigError, ModelNotFoundError, Omni, OmniDiffusionSamplingParams, RequestError
from porter.runtime.diffusion.models.diffusers_adapter import attention_backends
from porter.runtime.diffusion.models.diffusers_adapter.pipeline_diffusers_adapter import dtype_argument

# Text to image with a transformer (two kinds of guidance), with a UNet, image to video, text to audio.
PIPELINES = {
    "QwenImagePipeline": "image",
    "ZImagePipeline": "image",
    "StableDiffusionPipeline": "image",
    "StableDiffusionXLPipeline": "image",
    "WanImageToVideoPipeline": "video",
    "StableAudioPipeline": "audio",
}


def backend(folder, **settings) -> Omni:
    return Omni(model=folder, device="cpu", diffusion_load_format="diffusers", **settings)


def plain(folder):
    return diffusers.DiffusionPipeline.from_pretrained(str(folder), **dtype_argument(torch.float32))


def same(found, expected) -> bool:
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.fixture(scope="module")
def diffusion(tiny):
    """A small Stable Diffusion behind the backend, and what diffusers was called with."""
    omni = backend(tiny("StableDiffusionPipeline"))
    pipeline, calls = omni.pipeline.pipeline, []
    call = type(pipeline).__call__

    def recorded(*args, **kwargs):
        calls.append(kwargs)
        return call(pipeline, *args, **kwargs)

    class Recorder:
        def __getattr__(self, name):
            return getattr(pipeline, name)

        def __call__(self, **kwargs):
            return recorded(**kwargs)

    omni.pipeline.pipeline = Recorder()
    return omni, calls


@pytest.mark.parametrize("name", PIPELINES)
def test_outputs_are_those_of_diffusers(tiny, name):
    folder = tiny(name)
    expected = next(iter(plain(folder)(**checkpoint.load_inputs(name)).values()))
    omni, steps = backend(folder), []
    prompt, params = to_request(checkpoint.load_inputs(name))
    [result] = omni.generate(prompt, params, on_step=lambda *step: steps.append(step))
    assert same(result.media()[0], expected) and same(result.output, expected)
    assert (omni.kind, omni.name) == (PIPELINES[name], name)
    assert [done for _, done, _ in steps] == list(range(1, params.num_inference_steps + 1))


def test_a_seed_is_a_generator_of_the_device(tiny):
    folder = tiny("StableDiffusionPipeline")
    call = dict(prompt="a cat", height=64, width=64, num_inference_steps=2, output_type="np")
    expected = plain(folder)(**call, generator=torch.Generator("cpu").manual_seed(7)).images
    params = OmniDiffusionSamplingParams(seed=7, height=64, width=64, num_inference_steps=2, output_type="np")
    [result] = backend(folder).generate("a cat", params)
    assert same(result.images, expected)


def test_only_what_a_request_sets_reaches_diffusers(diffusion):
    omni, calls = diffusion
    omni.generate("a cat", OmniDiffusionSamplingParams(num_inference_steps=1, height=64, width=64))
    assert set(calls[-1]) == {"prompt", "num_inference_steps", "height", "width", "generator"}
    prompt = {"prompt": "a cat", "negative_prompt": None}
    params = OmniDiffusionSamplingParams(
        num_inference_steps=1, height=64, width=64, guidance_scale=1.0, num_outputs_per_prompt=2, eta=0.0
    )
    omni.generate(prompt, params)
    sent = calls[-1]
    assert (sent["guidance_scale"], sent["num_images_per_prompt"], sent["eta"]) == (1.0, 2, 0.0)
    assert sent["negative_prompt"] is None and "guidance_rescale" not in sent


def test_call_kwargs_lose_to_a_request_and_win_over_defaults(tiny):
    folder = tiny("StableDiffusionPipeline")
    omni = backend(
        folder, diffusers_call_kwargs={"guidance_scale": 2.5, "num_inference_steps": 3, "height": 64, "width": 64}
    )
    steps: list[int] = []
    omni.generate("x", OmniDiffusionSamplingParams(seed=0), on_step=lambda _, done, total: steps.append(total))
    assert steps == [3, 3, 3]
    arguments = dict(output_type="np", generator=torch.Generator().manual_seed(0))
    expected = plain(folder)("x", num_inference_steps=2, guidance_scale=2.5, height=64, width=64, **arguments).images
    params = OmniDiffusionSamplingParams(seed=0, num_inference_steps=2, output_type="np")
    assert same(omni.generate("x", params)[0].images, expected)


def test_load_kwargs_win_over_settings(tiny):
    omni = backend(tiny("StableDiffusionPipeline"), dtype="float32", diffusers_load_kwargs={"torch_dtype": "float64"})
    assert omni.pipeline.pipeline.unet.dtype is torch.float64
    omni = backend(tiny("WanImageToVideoPipeline"), boundary_ratio=0.5, diffusers_load_kwargs={"boundary_ratio": 0.25})
    assert omni.pipeline.pipeline.config.boundary_ratio == 0.25


@pytest.mark.parametrize(
    ("name", "load_format"), [("WanImageToVideoPipeline", "diffusers"), ("WanPipeline", "default")]
)
def test_wans_boundary_ratio_and_flow_shift_take_effect_while_loading(tiny, name, load_format):
    folder = tiny(name)
    omni = Omni(model=folder, device="cpu", diffusion_load_format=load_format, boundary_ratio=0.875, flow_shift=3.5)
    pipeline = getattr(omni.pipeline, "pipeline", omni.pipeline)
    assert pipeline.config.boundary_ratio == 0.875
    assert 3.5 in (pipeline.scheduler.config.get("flow_shift"), pipeline.scheduler.config.get("shift"))
    fresh = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    fresh.set_timesteps(4), pipeline.scheduler.set_timesteps(4)
    assert torch.equal(fresh.sigmas, pipeline.scheduler.sigmas)
    with pytest.raises(ConfigError, match="boundary_ratio: StableDiffusionPipeline has no boundary"):
        backend(tiny("StableDiffusionPipeline"), boundary_ratio=0.5)


def test_what_is_set_while_loading_is_refused_in_a_request(diffusion):
    omni, _ = diffusion
    for params in (
        OmniDiffusionSamplingParams(extra_args={"flow_shift": 3.0}),
        OmniDiffusionSamplingParams(boundary_ratio=0.5),
    ):
        with pytest.raises(RequestError, match="takes effect when the model is loaded"):
            omni.generate("x", params)


def test_unknown_arguments_are_named(diffusion, tiny):
    omni, _ = diffusion
    with pytest.raises(RequestError, match="unknown argument 'mode'; this pipeline takes prompt, height"):
        omni.generate("x", OmniDiffusionSamplingParams(extra_args={"mode": 1}))
    with pytest.raises(RequestError, match="unknown argument 'image'"):
        omni.generate({"prompt": "x", "multi_modal_data": {"image": PIL.Image.new("RGB", (8, 8))}})
    with pytest.raises(ConfigError, match="diffusers_call_kwargs: StableDiffusionPipeline takes no 'mode'"):
        backend(tiny("StableDiffusionPipeline"), diffusers_call_kwargs={"mode": 1})
    with pytest.raises(ConfigError, match="takes no 'return_dict'"):
        backend(tiny("StableDiffusionPipeline"), diffusers_call_kwargs={"return_dict": False})


def test_arguments_for_diffusers_need_its_load_format(checkpoint, models_dir):
    for name in ("diffusers_load_kwargs", "diffusers_call_kwargs"):
        with pytest.raises(ConfigError, match=f"{name} .*needs diffusion_load_format='diffusers'"):
            Omni(model=checkpoint, models_dir=models_dir, **{name: {}})
    with pytest.raises(ConfigError, match="there is no diffusion_load_format 'moon'"):
        Omni(model=checkpoint, models_dir=models_dir, diffusion_load_format="moon")


@pytest.mark.parametrize(
    ("setting", "feature"),
    [
        ({"parallel_config": {"cfg_parallel_size": 2}}, "CFG parallelism"),
        ({"parallel_config": {"ulysses_degree": 2}}, "sequence parallelism"),
        ({"tensor_parallel_size": 2}, "tensor parallelism"),
        ({"cache_backend": "cache_dit"}, "cache acceleration"),
        ({"step_execution": True}, "step execution"),
    ],
)
def test_what_needs_a_native_port_is_refused_and_the_port_named(tmp_path, setting, feature):
    for name, words in (("QwenImagePipeline", "native port of QwenImagePipeline"), ("DDPMPipeline", "porter convert")):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(ConfigError, match=f"no {feature} .*{words}"):
            backend(tmp_path, **setting)


def test_a_model_without_a_verified_port_says_how_to_get_one(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ModelNotFoundError, match="porter convert .*--diffusion-load-format diffusers"):
        Omni(model=tmp_path)


def test_a_folder_that_is_no_pipeline_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="is no checkpoint of a diffusers pipeline"):
        backend(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MoonPipeline"}))
    with pytest.raises(ModelNotFoundError, match="has no pipeline 'MoonPipeline'"):
        backend(tmp_path)


def test_another_class_for_the_same_checkpoint(tiny):
    omni = backend(tiny("StableDiffusionPipeline"), model_class_name="StableDiffusionImg2ImgPipeline")
    assert omni.name == "StableDiffusionImg2ImgPipeline" and "strength" in omni.parameters


class Model:
    """A transformer that knows which backends it was given, and takes those that are installed."""

    dtype = torch.float32
    __module__ = "diffusers.models.transformers.transformer_toy"

    def __init__(self, installed=("native",)):
        self.installed, self.asked = installed, []

    def set_attention_backend(self, name):
        self.asked.append(name)
        if name not in self.installed:
            raise RuntimeError(f"{name} is not installed")


class Pipeline:
    def __init__(self, **components):
        self.components = components


CUDA, CPU = torch.device("cuda"), torch.device("cpu")
FLASH = ["_flash_3_hub", "_flash_3", "flash_hub", "flash"]


@pytest.mark.parametrize(
    ("setting", "device", "installed", "asked", "chosen"),
    [
        (None, CUDA, ("native",), [*FLASH, "native"], "native"),
        (None, CUDA, ("native", "flash_hub"), FLASH[:3], "flash_hub"),
        (None, CPU, ("native", "flash"), ["native"], "native"),
        ("FLASH_ATTN", CUDA, ("native", "_flash_3", "flash"), FLASH[:2], "_flash_3"),
        ("SAGE_ATTN", CUDA, ("sage",), ["sage_hub", "sage"], "sage"),
        ("TORCH_SDPA", CUDA, ("native", "flash"), ["native"], "native"),
    ],
)
def test_attention_backends_are_tried_in_order(monkeypatch, caplog, setting, device, installed, asked, chosen):
    monkeypatch.setattr(attention_backends, "_try", lambda *_: None)
    models = Model(installed), Model(installed)
    pipeline = Pipeline(transformer=models[0], vae=object(), transformer_2=models[1])
    with caplog.at_level(logging.INFO, "porter"):
        assert attention_backends.set_attention_backend(pipeline, setting, device) == chosen
    assert models[0].asked == asked and models[1].asked[-1] == chosen
    assert f"(transformer, transformer_2): {chosen}" in caplog.text
    for name in asked[:-1]:
        assert f"attention backend {name} for Pipeline failed: {name} is not installed" in caplog.text


def test_diffusers_knows_every_backend_that_is_tried():
    """A name that a newer diffusers gave to something else, or took away, would only ever fail on a GPU."""
    from diffusers.models import attention_dispatch

    known = {item.value for item in attention_dispatch.AttentionBackendName}
    hub = {item.value for item in attention_dispatch._HUB_KERNELS_REGISTRY}
    for setting, tried in attention_backends.ATTEMPTS.items():
        assert set(tried) <= known, setting
        assert {name for name in tried if name.endswith("_hub")} == set(tried) & hub
        assert set(tried) <= {item.value for item in attention_dispatch._AttentionBackendRegistry._backends}


def test_a_backend_that_is_asked_for_and_cannot_run_is_an_error(tiny, monkeypatch):
    with pytest.raises(ConfigError, match="FLASH_ATTN cannot run .*" + ": .*; ".join(FLASH)):
        backend(tiny("QwenImagePipeline"), attention_backend="FLASH_ATTN")
    with pytest.raises(ConfigError, match="SAGE_ATTN cannot be set: Pipeline has no transformer"):
        attention_backends.set_attention_backend(Pipeline(unet=object()), "SAGE_ATTN", CPU)
    with pytest.raises(ConfigError, match="'MOON' has no counterpart in diffusers"):
        attention_backends.set_attention_backend(Pipeline(transformer=Model()), "MOON", CPU)
    # It installs, and has no kernel for this machine.
    monkeypatch.setattr(attention_backends, "_try", lambda *_: 1 / 0)
    with pytest.raises(ConfigError, match="division by zero"):
        attention_backends.set_attention_backend(Pipeline(transformer=Model(FLASH + ["native"])), "FLASH_ATTN", CPU)


def test_the_backend_reaches_every_attention(tiny):
    omni = backend(tiny("QwenImagePipeline"), attention_backend="TORCH_SDPA")
    transformer = omni.pipeline.pipeline.transformer
    found = {
        module.processor._attention_backend
        for module in transformer.modules()
        if hasattr(getattr(module, "processor", None), "_attention_backend")
    }
    assert {item.value for item in found} == {"native"} and omni.pipeline.attention_backend == "native"
