"""The import tables of the targets."""

import pytest

from porter.targets import get_target, target_names


def test_the_default_target_comes_first():
    assert target_names() == ("porter", "vllm-omni")


@pytest.mark.parametrize(
    ("module", "porter", "vllm_omni"),
    [
        ("vllm_omni", "porter.runtime", "vllm_omni"),
        ("vllm", "porter.runtime", "vllm"),
        (
            "vllm_omni.diffusion.attention.layer",
            "porter.runtime.diffusion.attention.layer",
            "vllm_omni.diffusion.attention.layer",
        ),
        (
            "vllm.model_executor.layers.linear",
            "porter.runtime.model_executor.layers.linear",
            "vllm.model_executor.layers.linear",
        ),
        ("torch.nn.functional", "torch.nn.functional", "torch.nn.functional"),
        ("vllm_omnibus.diffusion", "vllm_omnibus.diffusion", "vllm_omnibus.diffusion"),
        ("diffusers.vllm", "diffusers.vllm", "diffusers.vllm"),
        ("", "", ""),
    ],
)
def test_modules_are_mapped_by_whole_components(module, porter, vllm_omni):
    assert get_target("porter").module(module) == porter
    assert get_target("vllm-omni").module(module) == vllm_omni


def test_both_targets_look_names_up_in_one_table():
    assert get_target("porter").symbols is get_target("vllm-omni").symbols


def test_an_unknown_target_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown target 'vllm'; the targets are porter, vllm-omni"):
        get_target("vllm")


def test_a_target_cannot_be_changed():
    target = get_target("porter")
    with pytest.raises(AttributeError):
        target.name = "other"
    with pytest.raises(TypeError):
        target.imports["vllm"] = "other"
