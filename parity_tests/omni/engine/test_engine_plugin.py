"""What the engine knows about ports, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.omni


@pytest.mark.parametrize(
    ("name", "kind"), [("SanaPipeline", "image"), ("LTXPipeline", "video"), ("StableAudio3Pipeline", "audio")]
)
def test_the_output_type_is_known_before_a_model_is_loaded(name: str, kind: str) -> None:
    from vllm_omni.diffusion.io_support import get_diffusion_output_type

    assert get_diffusion_output_type(name) == kind


def test_picture_inputs_and_request_arguments_are_known() -> None:
    from vllm_omni.diffusion.model_metadata import get_diffusion_model_metadata
    from vllm_omni.model_extras import get_extra_body_params

    assert get_diffusion_model_metadata("FluxImg2ImgPipeline").supports_multimodal_inputs
    assert not get_diffusion_model_metadata("SanaPipeline").supports_multimodal_inputs
    assert "complex_human_instruction" in get_extra_body_params("SanaPipeline")
    assert "guidance_scale" not in get_extra_body_params("SanaPipeline")


def test_ports_are_models_of_the_engine_and_its_own_stay() -> None:
    from vllm_omni.diffusion.registry import _DIFFUSION_MODELS, DiffusionModelRegistry

    assert _DIFFUSION_MODELS["SanaPipeline"] == ("porter.omni.models", "", "SanaPipeline")
    assert _DIFFUSION_MODELS["QwenImagePipeline"][0] == "qwen_image"
    model = DiffusionModelRegistry._try_load_model_cls("SanaPipeline")
    assert model is not None and model.__name__ == "SanaPipeline"
    assert "vllm_omni" not in model.__module__


@pytest.mark.usefixtures("own_tables")
def test_a_choice_puts_a_port_in_the_place_of_the_engines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_omni.diffusion.registry import _DIFFUSION_MODELS, _DIFFUSION_PRE_PROCESS_FUNCS

    from porter.omni.plugin import register_ports, use_native

    before = _DIFFUSION_MODELS["QwenImageEditPipeline"], _DIFFUSION_PRE_PROCESS_FUNCS["QwenImageEditPipeline"]
    monkeypatch.setenv("PORTER_OMNI_REPLACE", "QwenImageEditPipeline")
    register_ports()
    assert _DIFFUSION_MODELS["QwenImageEditPipeline"][0] == "porter.omni.models"
    use_native("QwenImageEditPipeline")
    after = _DIFFUSION_MODELS["QwenImageEditPipeline"], _DIFFUSION_PRE_PROCESS_FUNCS["QwenImageEditPipeline"]
    assert after == before


def test_converting_on_demand_says_where_the_code_lies(monkeypatch, tmp_path) -> None:
    from porter.omni import ports

    lines: list[str] = []
    monkeypatch.setenv("PORTER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ports.logger, "info", lambda text, *arguments: lines.append(text % arguments))
    for function in (ports._cache, ports.port_folder):
        function.cache_clear()
    try:
        folder = ports.port_folder("DiTPipeline")
        ports.port_folder.cache_clear()
        assert ports.port_folder("DiTPipeline") == folder
    finally:
        for function in (ports._cache, ports.port_folder):
            function.cache_clear()
    assert folder.is_relative_to(tmp_path)
    assert lines == [
        f"porter: DiTPipeline was converted from diffusers {ports._tree().version}; the code is in {folder}"
    ]


def test_residue_that_touches_results_is_refused_in_words(monkeypatch) -> None:
    from porter import on_demand
    from porter.batch import Outcome
    from porter.omni import models, ports

    entry = {"file": "pipeline_dit.py", "line": 7, "reason": "no rule knows this", "affects_results": True}
    outcome = Outcome("DiTPipeline", family="dit", residue=[entry])

    def refuse(name: str) -> Path:
        on_demand.check(outcome, ports.TARGET, "set it")
        raise AssertionError

    monkeypatch.setattr(models, "port_folder", refuse)
    models._load.cache_clear()
    models.pipeline_class.cache_clear()
    try:
        with pytest.raises(
            on_demand.ConversionRefused, match=r"DiTPipeline was not converted.*pipeline_dit.py:7: no rule"
        ):
            models.DiTPipeline(od_config=None)
    finally:
        models._load.cache_clear()
        models.pipeline_class.cache_clear()


def test_an_unknown_pipeline_is_refused_in_words() -> None:
    from porter.omni.ports import port_folder
    from porter.on_demand import ConversionRefused

    with pytest.raises(ConversionRefused, match="has no pipeline NoSuchPipeline, and porter has no port of it"):
        port_folder("NoSuchPipeline")


def test_an_attention_backend_for_gpus_is_refused_on_a_cpu() -> None:
    from porter.omni.platform import CpuOmniPlatform

    assert CpuOmniPlatform.get_diffusion_attn_backend_cls("torch_sdpa", 64).startswith("porter.omni.")
    with pytest.raises(ValueError, match="FLASH_ATTN does not run on a CPU: select TORCH_SDPA"):
        CpuOmniPlatform.get_diffusion_attn_backend_cls("FLASH_ATTN", 64)


def test_another_platform_goes_first() -> None:
    from porter.omni.shims import claimed

    def broken() -> str | None:
        raise OSError("no driver")

    group = "vllm_omni.platform_plugins"
    assert not claimed({"cuda": lambda: None, "xpu": broken, "cpu": lambda: "a.Cpu"}, group)
    assert claimed({"cuda": lambda: "a.Cuda"}, group)
    assert claimed({}, "console_scripts")  # entry points of other packages
