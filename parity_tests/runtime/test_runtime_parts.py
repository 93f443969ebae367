"""Layers, requests and mixins."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models import normalization
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from diffusers.models.normalization import FP32LayerNorm
from torch import nn

from porter.runtime import CheckpointError, ConfigError, ModelNotFoundError, OmniDiffusionSamplingParams, RequestError
from porter.runtime.diffusion import registry
from porter.runtime.diffusion.data import DiffusionOutput, OmniDiffusionConfig, TransformerConfig
from porter.runtime.diffusion.distributed.cfg_parallel import CFGParallelMixin
from porter.runtime.diffusion.layers import adalayernorm
from porter.runtime.diffusion.layers.norm import LayerNorm, RMSNorm
from porter.runtime.diffusion.layers.rope import RotaryEmbedding
from porter.runtime.diffusion.models.interface import SupportsComponentDiscovery, supports_step_execution
from porter.runtime.diffusion.models.progress_bar import ProgressBarMixin
from porter.runtime.diffusion.registry import ModelRegistry, register_diffusion_model
from porter.runtime.diffusion.request import OmniDiffusionRequest, resolve_video_num_frames
from porter.runtime.diffusion.utils.tf_utils import get_transformer_config_kwargs
from porter.runtime.diffusion.worker.request_batch import DiffusionRequestBatch, split_diffusion_output_by_request
from porter.runtime.model_executor.layers.layernorm import RMSNorm as VllmRMSNorm
from porter.runtime.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    missing_shards,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomise(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


# --- linear layers


@pytest.mark.parametrize("cls", [ReplicatedLinear, ColumnParallelLinear, RowParallelLinear])
def test_linear_equals_torch(cls):
    reference = nn.Linear(6, 5)
    layer = cls(6, 5)
    layer.weight.weight_loader(layer.weight, reference.weight)
    layer.bias.weight_loader(layer.bias, reference.bias)
    x = torch.randn(2, 3, 6)
    output, bias = layer(x)
    assert bias is None and torch.equal(output, reference(x))
    layer.return_bias = False
    assert torch.equal(layer(x), reference(x))


def test_linear_hands_the_bias_back_when_told_to_skip_it():
    layer = randomise(RowParallelLinear(4, 4, skip_bias_add=True))
    output, bias = layer(torch.zeros(1, 4))
    assert bias is layer.bias and (output == 0).all()


def test_linear_dtype_and_no_bias():
    layer = ColumnParallelLinear(4, 4, bias=False, params_dtype=torch.bfloat16, return_bias=False)
    assert layer.bias is None and layer.weight.dtype == torch.bfloat16


def test_quantisation_is_refused():
    with pytest.raises(ConfigError, match="blocks.0.to_q.*quantization"):
        ReplicatedLinear(4, 4, quant_config=object(), prefix="blocks.0.to_q")


def test_qkv_shards_with_grouped_heads():
    layer = QKVParallelLinear(8, 4, total_num_heads=4, total_num_kv_heads=2, return_bias=False)
    weights = {"q": torch.randn(16, 8), "k": torch.randn(8, 8), "v": torch.randn(8, 8)}
    assert (layer.num_heads, layer.num_kv_heads, layer.output_sizes) == (4, 2, [16, 8, 8])
    for shard in ("v", "q"):
        layer.weight_loader(layer.weight, weights[shard], shard)
    assert missing_shards(layer.weight) == ["k"]
    layer.weight_loader(layer.weight, weights["k"], "k")
    assert missing_shards(layer.weight) == [] and missing_shards(layer.bias) == ["q", "k", "v"]
    assert torch.equal(layer.weight, torch.cat(list(weights.values())))
    with pytest.raises(CheckpointError, match=r"shard 'k'.*\[16, 8\].*\[8, 8\]"):
        layer.weight_loader(layer.weight, weights["q"], "k")
    with pytest.raises(ValueError, match="no shard 'x'"):
        layer.weight_loader(layer.weight, weights["q"], "x")


def test_merged_column_takes_shards_or_the_whole():
    layer = MergedColumnParallelLinear(3, [2, 4], bias=False)
    whole = torch.randn(6, 3)
    layer.weight_loader(layer.weight, whole)
    assert torch.equal(layer.weight, whole) and missing_shards(layer.weight) == []
    layer.weight_loader(layer.weight, whole[:4], 1)
    assert torch.equal(layer.weight[2:], whole[:4])


PARTS = [
    lambda bias: QKVParallelLinear(30, 10, total_num_heads=2, total_num_kv_heads=1, bias=bias, return_bias=False),
    lambda bias: QKVParallelLinear(8, 4, total_num_heads=2, bias=bias, return_bias=False),
    lambda bias: MergedColumnParallelLinear(48, [96, 24], bias=bias, return_bias=False),
    lambda bias: MergedColumnParallelLinear(12, [7, 5], bias=bias, return_bias=False),
]


@pytest.mark.parametrize("make", PARTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 2), (2, 7), (2, 33)])
def test_parts_are_bit_for_bit_those_of_separate_layers(make, bias, dtype, shape):
    layer = randomise(make(bias)).to(dtype)
    x = torch.randn(*shape, layer.input_size).to(dtype)
    with torch.no_grad():
        compare_parts(layer, x, dtype)
        if x.dim() == 3:
            compare_parts(layer, torch.cat([x, x], dim=1)[:, : x.shape[1]], dtype)  # with gaps


def compare_parts(layer: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> None:
    bias = layer.bias is not None
    separate = []
    for rows in torch.arange(layer.output_size).split(layer.output_partition_sizes):
        single = nn.Linear(layer.input_size, len(rows), bias=bias).to(dtype)
        single.load_state_dict({name: tensor[rows] for name, tensor in layer.state_dict().items()})
        separate.append(single(x))
    parts = layer.forward_parts(x)
    assert all(torch.equal(mine, its) and mine.is_contiguous() for mine, its in zip(parts, separate, strict=True))
    if dtype == torch.float32:  # one product for all: the same but for the order of its sums
        whole = layer(x).split(layer.output_partition_sizes, dim=-1)
        scale = max(part.abs().max() for part in separate)
        assert all((mine - its).abs().max() <= 1e-5 * scale for mine, its in zip(whole, separate, strict=True))


def test_parts_follow_a_weight_that_moves():
    layer, x = MergedColumnParallelLinear(8, [4, 6]), torch.randn(3, 8)
    randomise(layer)

    def same() -> bool:
        whole = torch.nn.functional.linear(x, layer.weight, layer.bias)
        return torch.allclose(torch.cat(layer.forward_parts(x), -1), whole)

    with torch.no_grad():
        assert same()
        layer.weight.copy_(torch.randn(10, 8))  # in its place
        assert same()
        layer.weight.data = torch.randn(10, 8)
        layer.bias = nn.Parameter(torch.randn(10))
        assert same()
        assert layer._views is not None and layer.double()._views is None
        x = x.double()
        assert same()
        twin = copy.deepcopy(layer)
        twin.weight.zero_()
        assert same() and not torch.equal(twin.forward_parts(x)[0], layer.forward_parts(x)[0])


# --- norms and rotary embedding, against diffusers in float32


def same_state(ours: nn.Module, theirs: nn.Module) -> None:
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())


def test_norms_equal_diffusers():
    x = torch.randn(2, 5, 16)
    ours, theirs = LayerNorm(16), FP32LayerNorm(16, eps=1e-6)
    same_state(ours, theirs)
    assert torch.equal(ours(x), theirs(x))
    theirs = normalization.RMSNorm(16, eps=1e-6)
    for cls in (RMSNorm, VllmRMSNorm):
        ours = cls(16)
        same_state(ours, theirs)
        assert torch.equal(ours(x), theirs(x))
        normed, total = ours(x, residual=2 * x)
        assert torch.equal(total, 2 * x + x) and torch.equal(normed, theirs(2 * x + x))


def test_adaptive_norms_equal_diffusers():
    x, emb = torch.randn(2, 5, 16), torch.randn(2, 16)
    for name, arguments in [
        ("AdaLayerNormZero", (16,)),
        ("AdaLayerNormZeroSingle", (16,)),
        ("AdaLayerNormContinuous", (16, 16)),
    ]:
        extra = {"elementwise_affine": False, "eps": 1e-6} if name == "AdaLayerNormContinuous" else {}
        theirs = getattr(normalization, name)(*arguments, **extra)
        ours = getattr(adalayernorm, name)(*arguments)
        same_state(ours, theirs)
        expected = theirs(x, emb) if extra else theirs(x, emb=emb)
        actual = ours(x, emb)
        for a, e in zip(actual, expected, strict=True) if isinstance(actual, tuple) else [(actual, expected)]:
            assert torch.equal(a, e), name


def test_ada_layer_norm_takes_scale_and_shift():
    x, scale, shift = torch.randn(2, 5, 16), torch.randn(2, 1, 16), torch.randn(2, 1, 16)
    expected = nn.LayerNorm(16, eps=1e-6, elementwise_affine=False)(x) * (1 + scale) + shift
    assert torch.equal(adalayernorm.AdaLayerNorm(16)(x, scale, shift), expected)


@pytest.mark.parametrize("half", [True, False])
def test_rotary_embedding_equals_diffusers(half):
    cos, sin = get_1d_rotary_pos_embed(16, 7, use_real=True)
    x = torch.randn(2, 7, 3, 16)
    expected = apply_rotary_emb(x, (cos, sin), sequence_dim=1)
    tables = (cos[:, ::2], sin[:, ::2]) if half else (cos, sin)
    assert torch.equal(RotaryEmbedding(half_head_dim=half)(x, *tables), expected)


def test_rotary_embedding_neox_partial_and_batched_tables():
    x, angle = torch.randn(2, 5, 3, 10), torch.randn(5, 4)
    cos, sin = angle.cos(), angle.sin()
    a, b, rest = x[..., :4], x[..., 4:8], x[..., 8:]
    c, s = cos[:, None], sin[:, None]
    expected = torch.cat([a * c - b * s, b * c + a * s, rest], dim=-1)
    rope = RotaryEmbedding(is_neox_style=True)
    torch.testing.assert_close(rope(x, cos, sin), expected)
    assert torch.equal(rope(x, cos.expand(2, -1, -1), sin.expand(2, -1, -1)), rope(x, cos, sin))


# --- requests


def request(prompt="a", request_id="r", **params):
    return OmniDiffusionRequest(prompt, OmniDiffusionSamplingParams(**params), request_id)


def test_guidance_that_was_not_given_is_marked():
    params = request().sampling_params
    assert (params.guidance_scale, params.guidance_scale_provided) == (1.0, False)
    assert (params.guidance_scale_2, params.guidance_scale_2_provided) == (1.0, False)
    params = request(guidance_scale=0.0).sampling_params
    assert (params.guidance_scale, params.guidance_scale_provided) == (0.0, True)
    assert (params.guidance_scale_2, params.guidance_scale_2_provided) == (0.0, False)
    assert request(guidance_scale_2=2.0).sampling_params.guidance_scale_2_provided


def test_guidance_with_a_negative_prompt_turns_it_on():
    assert request(
        {"prompt": "a", "negative_prompt": "b"}, guidance_scale=2.0
    ).sampling_params.do_classifier_free_guidance
    assert not request({"prompt": "a"}, guidance_scale=2.0).sampling_params.do_classifier_free_guidance


def test_seeds():
    assert request().sampling_params.seed is not None
    assert request(seed=0).sampling_params.seed == 0
    generator = torch.Generator()
    params = request(generator=generator).sampling_params
    assert params.seed is None and params.generator is generator


def test_what_was_not_given_is_none():
    params = OmniDiffusionSamplingParams()
    for name in ("num_frames", "guidance_rescale", "eta", "layers", "resolution", "num_inference_steps"):
        assert getattr(params, name) is None
    assert params.num_outputs_per_prompt == 1 and params.batch_size == 1
    assert resolve_video_num_frames(None, default_num_frames=81, is_dummy_run=False) == 81
    assert resolve_video_num_frames(1, default_num_frames=81, is_dummy_run=False) == 1


def test_a_clone_owns_its_containers_and_shares_the_rest():
    generators, latents = [torch.Generator(), torch.Generator()], torch.zeros(1)
    params = OmniDiffusionSamplingParams(generator=generators, latents=latents, extra_args={"a": {"b": [1]}})
    clone = params.clone()
    assert clone.generator is not generators and clone.generator[0] is generators[0] and clone.latents is latents
    clone.extra_args["a"]["b"].append(2)
    assert params.extra_args == {"a": {"b": [1]}}


def test_frame_rates_and_quality():
    assert OmniDiffusionSamplingParams().resolved_frame_rate is None
    assert OmniDiffusionSamplingParams(fps=8, frame_rate=24).resolved_frame_rate == 24.0
    with pytest.raises(RequestError, match="quality"):
        OmniDiffusionSamplingParams(quality="superb")


def test_request_ids():
    with pytest.raises(ValueError, match="request_id"):
        request(request_id="")
    assert request(request_id="dummy_req_id/1").is_dummy_run() and not request().is_dummy_run()


def test_batches():
    generators = [torch.Generator(), torch.Generator()]
    one, two = request("a", "r1", generator=generators[0]), request({"prompt": "b"}, "r2", generator=generators[1])
    batch = DiffusionRequestBatch([one, two])
    assert batch.prompts == ["a", {"prompt": "b"}] and batch.request_ids == ["r1", "r2"] and batch.num_reqs == 2
    assert batch.get("r2") is two and batch.get("r3") is None and not batch.is_dummy_run()
    assert batch.collate_request_generators(2, None) == [generators[0]] * 2 + [generators[1]] * 2
    assert batch.collate_request_tensors("latents", None) is None
    with pytest.raises(ValueError, match="2 requests"):
        _ = batch.sampling_params
    two.sampling_params.latents = torch.zeros(1)
    with pytest.raises(ValueError, match="latents"):
        batch.collate_request_tensors("latents", None)
    one.sampling_params.latents = torch.ones(1)
    assert torch.equal(batch.collate_request_tensors("latents", None), torch.tensor([1.0, 0.0]))


def test_prompt_fields_are_collated():
    prompts = [{"prompt_embeds": torch.zeros(3)}, {"additional_information": {"embeds": [torch.ones(3)]}}]
    collated = DiffusionRequestBatch.collate_prompt_field_map(
        prompts, {"prompt_embeds": None}, {"prompt_embeds": ("prompt_embeds", "embeds")}
    )
    assert torch.equal(collated["prompt_embeds"], torch.stack([torch.zeros(3), torch.ones(3)]))


def test_a_batched_output_is_split():
    batch = DiffusionRequestBatch([request(request_id="1"), request(request_id="2")])
    whole = DiffusionOutput(output=(torch.arange(4), ["a", "b", "c", "d"], "meta"))
    parts = split_diffusion_output_by_request(whole, batch, num_outputs_per_prompt=2)
    assert [part.output[1] for part in parts] == [["a", "b"], ["c", "d"]] and parts[1].output[2] == "meta"


# --- guidance


class Guided(CFGParallelMixin):
    def transformer(self, value):
        return (value,)


def test_guidance():
    pos, neg = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    guided = Guided()
    arguments = {"positive_kwargs": {"value": pos}, "negative_kwargs": {"value": neg}}
    plain = neg + 3.0 * (pos - neg)
    run = guided.predict_noise_maybe_with_cfg
    assert torch.equal(run(True, 3.0, **arguments, cfg_normalize=False), plain)
    rescaled = plain * (pos.norm(dim=-1, keepdim=True) / plain.norm(dim=-1, keepdim=True))
    assert torch.equal(run(True, 3.0, **arguments), rescaled)
    assert torch.equal(run(True, 3.0, **arguments, cfg_normalize=False, output_slice=2), plain[:, :2])
    assert run(False, 3.0, **arguments) is pos
    branches = [{"value": pos}, {"value": neg}]
    assert torch.equal(guided.predict_noise_with_multi_branch_cfg(True, 3.0, branches), plain)
    with pytest.raises(NotImplementedError):
        guided.predict_noise_with_multi_branch_cfg(True, 3.0, [*branches, {"value": neg}])


def test_scheduler_step():
    class Scheduler:
        def step(self, noise, t, latents, return_dict=True, generator=None):
            assert not return_dict
            return (latents - noise * t, generator)

    guided = Guided()
    with pytest.raises(ValueError, match="no scheduler"):
        guided.scheduler_step(1.0, 2.0, 3.0)
    assert guided.scheduler_step_maybe_with_cfg(1.0, 2.0, 3.0, True, per_request_scheduler=Scheduler()) == 1.0


# --- configuration and the rest


def test_transformer_config():
    class Model:
        def __init__(self, dim, od_config=None, **kwargs):
            pass

    config = TransformerConfig.from_dict({"_class_name": "M", "dim": 3, "other": 4})
    assert config.dim == 3 and config.get("none", 5) == 5
    assert get_transformer_config_kwargs(config, Model) == {"dim": 3}
    assert get_transformer_config_kwargs(config) == {"dim": 3, "other": 4}
    with pytest.raises(AttributeError):
        _ = config.none


def test_the_unet_config_is_the_fallback(checkpoint):
    (checkpoint / "transformer").rename(checkpoint / "unet")
    config = OmniDiffusionConfig(model=str(checkpoint))
    config.enrich_config()
    assert config.model_class_name == "ToyPipeline" and config.tf_model_config.dim == 16


def test_output_can_be_moved_to_the_cpu():
    output = DiffusionOutput(output=({"a": torch.zeros(1, requires_grad=True)}, [torch.ones(1)]), to_cpu=True).output
    assert not output[0]["a"].requires_grad


def test_progress_bar_is_silent_off_a_terminal(capsys):
    class Bar(ProgressBarMixin):
        pass

    bar = Bar()
    assert list(bar.progress_bar([1, 2])) == [1, 2] and capsys.readouterr().err == ""
    bar.set_progress_bar_config(disable=False)
    with bar.progress_bar(total=2) as shown:
        shown.update()
    assert "1/2" in capsys.readouterr().err
    with pytest.raises(ValueError, match="iterable or a total"):
        bar.progress_bar()


def test_marker_interfaces():
    class Pipeline(SupportsComponentDiscovery):
        _dit_modules = ["transformer"]
        _encoder_modules = ["text_encoder"]
        _vae_modules = ["vae"]

    assert isinstance(Pipeline(), SupportsComponentDiscovery) and not supports_step_execution(Pipeline())


def test_a_registered_model_wins(models_dir, tmp_path, monkeypatch):
    (tmp_path / "my_plugin.py").write_text(
        "class Mine: ...\ndef get_post(od_config): ...\ndef get_toy_pre_process_func(od_config): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("_DIFFUSION_MODELS", "_DIFFUSION_POST_PROCESS_FUNCS"):
        monkeypatch.setattr(registry, name, {})
    register_diffusion_model("ToyPipeline", "my_plugin", "Mine", post_process_func_name="get_post")
    loaded = ModelRegistry(models_dir).load("ToyPipeline")
    assert loaded.pipeline_cls.__name__ == "Mine" and loaded.post_process_factory.__name__ == "get_post"


@pytest.mark.parametrize("place", ["generated_models", "porter/generated_models"])
def test_the_committed_ports_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch, place):
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "porter" / "runtime" / "diffusion" / "registry.py"))
    assert registry.find_models_dir() is None
    with pytest.raises(ModelNotFoundError, match="no models_dir was found"):
        ModelRegistry().load("ToyPipeline")
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "registry.py").write_text("")
    assert registry.find_models_dir() == tmp_path / place
