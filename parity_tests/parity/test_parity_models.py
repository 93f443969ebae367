import json

import pytest
import torch
from diffusers import FluxTransformer2DModel

from porter.parity import spec as specs
from porter.parity.models import check_model, record_calls

FILES = specs.read("FluxPipeline").files
CONFIG = json.loads(FILES["transformer/config.json"])


class Port(FluxTransformer2DModel):
    """A faithful port: the original with a loader of its own."""

    def load_weights(self, weights):
        own = self.state_dict()
        loaded = set()
        for name, tensor in weights:
            own[name].copy_(tensor)
            loaded.add(name)
        return loaded


class Forgetful(Port):
    def load_weights(self, weights):
        return super().load_weights((name, tensor) for name, tensor in weights if name != "proj_out.bias")


class Scaled(Port):
    def forward(self, hidden_states, **kwargs):
        kwargs["timestep"] = kwargs["timestep"] * 1.01
        return super().forward(hidden_states, **kwargs)


def call():
    torch.manual_seed(0)
    return (
        (),
        {
            "hidden_states": torch.randn(1, 4, CONFIG["in_channels"]),
            "encoder_hidden_states": torch.randn(1, 3, CONFIG["joint_attention_dim"]),
            "pooled_projections": torch.randn(1, CONFIG["pooled_projection_dim"]),
            "timestep": torch.tensor([0.5]),
            "img_ids": torch.randint(0, 4, (4, 3)).float(),
            "txt_ids": torch.zeros(3, 3),
            "guidance": torch.tensor([3.5]) if CONFIG.get("guidance_embeds") else None,
            "return_dict": False,
        },
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_faithful_port_is_equal(dtype):
    report = check_model(FluxTransformer2DModel, CONFIG, lambda: Port.from_config(CONFIG), [call()], dtype=dtype)
    assert report.passed and report.weights.compared > 50
    assert [stage.verdict for stage in report.calls] == ["equal"]


def test_a_weight_that_is_not_loaded_is_named_in_both_ways():
    report = check_model(FluxTransformer2DModel, CONFIG, lambda: Forgetful.from_config(CONFIG), [call()])
    assert not report.passed
    assert report.weights.differing == ["proj_out.bias"] == report.unreported
    assert report.location is not None and report.location.path == "proj_out"


def test_a_tensor_that_the_port_has_beside_is_named():
    def build():
        port = Port.from_config(CONFIG)
        port.register_buffer("extra", torch.ones(1))
        return port

    report = check_model(FluxTransformer2DModel, CONFIG, build, [])
    assert report.weights.extra == ["extra"] and not report.passed


def test_other_arithmetic_is_located():
    report = check_model(FluxTransformer2DModel, CONFIG, lambda: Scaled.from_config(CONFIG), [call()])
    assert not report.passed and report.weights.passed
    assert report.location is not None and report.location.path.startswith("time_text_embed")


def test_calls_are_recorded_from_a_pipeline(tmp_path):
    from diffusers import DiffusionPipeline

    from porter.parity.checkpoint import build, load_inputs

    pipeline = DiffusionPipeline.from_pretrained(build("FluxPipeline", tmp_path))
    calls = record_calls(pipeline, load_inputs("FluxPipeline"))
    assert len(calls) == 2
    report = check_model(FluxTransformer2DModel, CONFIG, lambda: Port.from_config(CONFIG), calls)
    assert report.passed


def test_a_port_must_refuse_what_the_original_refuses():
    def build():
        return Port.from_config(CONFIG)

    broken = {**CONFIG, "axes_dims_rope": None}
    report = check_model(FluxTransformer2DModel, broken, build, [call()])
    assert not report.passed and "TypeError" in report.refused and "nothing raised" in report.error
    report = check_model(FluxTransformer2DModel, broken, lambda: Port.from_config(broken), [call()])
    assert report.passed and not report.compared
