import copy
import inspect

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor

from porter.parity.capture import capture, components, stage_methods
from porter.parity.locate import locate


class Attention(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.to_q, self.to_out = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.scale = scale

    def forward(self, hidden_states, mask=None):
        return self.to_out(torch.softmax(self.to_q(hidden_states) * self.scale, dim=-1))


class Denoiser(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Attention(), Attention(scale), Attention()])

    def forward(self, sample, timestep, return_dict=True):
        for block in self.blocks:
            sample = sample + block(sample)
        return (sample,)


class ToyPipeline:
    """The least that has every kind of stage."""

    def __init__(self, scale=1.0):
        torch.manual_seed(0)
        self.transformer = Denoiser(scale)
        self.denoiser_again = self.transformer
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self._private = torch.nn.Linear(1, 1)

    def encode_prompt(self, prompt):
        return torch.full((1, 4), float(len(prompt))), None

    @torch.no_grad()
    def __call__(self, prompt, fail=False):
        latents = self.encode_prompt(prompt)[0]
        scheduler = copy.deepcopy(self.scheduler)  # as ports do: one a request
        scheduler.set_timesteps(2)
        for t in scheduler.timesteps:
            noise = self.transformer(latents, t, return_dict=False)[0]
            latents = scheduler.step(noise, t, latents, return_dict=False)[0]
            latents.mul_(1.0)
        if fail:
            raise ValueError("no")
        return VaeImageProcessor(vae_scale_factor=1).postprocess(latents.reshape(1, 1, 2, 2), output_type="np")


def names(record):
    return [event.stage for event in record.events]


def test_stages_come_in_order_copies_and_fresh_processors_included():
    pipeline = ToyPipeline()
    with capture(pipeline) as record:
        pipeline("dog")
    assert names(record) == [
        "encode_prompt[0]",
        "scheduler.timesteps[0]",
        "transformer[0]",
        "scheduler.step[0]",
        "transformer[1]",
        "scheduler.step[1]",
        "VaeImageProcessor.postprocess[0]",
    ]
    step = record.events[3].values
    assert {"args.model_output", "args.timestep", "args.sample", "result.0"} <= step.keys()
    assert record.events[2].values.keys() == {"args.sample", "args.timestep", "args.return_dict", "result.0"}


def test_watching_changes_nothing_and_leaves_nothing_behind():
    pipeline = ToyPipeline()
    before = pipeline("dog")
    signature = inspect.signature(FlowMatchEulerDiscreteScheduler.step)
    untouched = dict(vars(pipeline)), FlowMatchEulerDiscreteScheduler.step, VaeImageProcessor.postprocess
    with capture(pipeline):
        assert inspect.signature(pipeline.scheduler.step).parameters.keys() == signature.parameters.keys() - {"self"}
        during = pipeline("dog")
    assert (before == during).all()
    assert untouched == (dict(vars(pipeline)), FlowMatchEulerDiscreteScheduler.step, VaeImageProcessor.postprocess)
    assert not pipeline.transformer._forward_hooks and not pipeline.transformer._forward_pre_hooks


def test_everything_is_restored_after_an_exception():
    pipeline = ToyPipeline()
    original = FlowMatchEulerDiscreteScheduler.step
    with pytest.raises(ValueError, match="no"), capture(pipeline):
        pipeline("dog", fail=True)
    assert FlowMatchEulerDiscreteScheduler.step is original and "encode_prompt" not in vars(pipeline)


def test_values_are_copies():
    pipeline = ToyPipeline()
    with capture(pipeline) as record:
        pipeline("dog")
    first = record.events[2].values["args.sample"]
    assert torch.equal(first, torch.full((1, 4), 3.0))


def test_parts_have_one_name_and_methods_can_be_limited():
    pipeline = ToyPipeline()
    assert set(components(pipeline)) == {"transformer", "scheduler", "image_processor"}
    assert stage_methods(pipeline) == {"encode_prompt"}
    with capture(pipeline, set()) as record:
        pipeline("dog")
    assert "encode_prompt[0]" not in names(record)


def test_the_layer_where_a_difference_starts_is_found():
    mine, its = ToyPipeline().transformer, ToyPipeline(scale=1.01).transformer
    call = ((torch.ones(1, 4), torch.tensor(1.0)), {})
    assert locate(mine, mine, call) is None
    found = locate(mine, its, call)
    assert found is not None
    # The scale is applied between two layers: the second gets other arguments, so its caller is at fault.
    assert (found.path, found.arguments_differ) == ("blocks.1.to_out", True)
    assert found.port_source.rpartition(":")[0].endswith("test_parity_capture.py")
    line = inspect.getsourcelines(Attention.forward)[1]
    assert found.reference_source.endswith(f":{line}")


def test_a_layer_with_other_weights_is_found():
    mine, its = ToyPipeline().transformer, ToyPipeline().transformer
    its.blocks[2].to_q.bias.data += 1e-3
    found = locate(mine, its, ((torch.ones(1, 4), torch.tensor(1.0)), {}))
    assert found is not None and (found.path, found.arguments_differ) == ("blocks.2.to_q", False)
