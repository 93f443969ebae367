"""The whole way, on a port that was made here: parity as it is, and errors planted in it found and placed."""

import json
import shutil
import sys

import pytest

from porter.parity import run_parity
from porter.parity import spec as specs
from porter.parity.models import check_model

NAME = "QwenImageEditPipeline"
FOLDER = "qwen_image"
TRANSFORMER = f"{FOLDER}/qwen_image_transformer.py"
PIPELINE = f"{FOLDER}/pipeline_qwen_image_edit.py"
GUIDED = "guidance on"


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    import porter

    folder = tmp_path_factory.mktemp("ports")
    porter.convert(f"diffusers.{NAME}", output_dir=str(folder), target="porter")
    return folder


@pytest.fixture
def planted(ports, tmp_path):
    """A copy of the ports with one text replaced, everywhere in one file."""

    def plant(file, before, after):
        folder = tmp_path / "ports"
        shutil.copytree(ports, folder)
        text = (folder / file).read_text()
        assert before in text
        (folder / file).write_text(text.replace(before, after))
        return folder

    return plant


@pytest.mark.slow
def test_the_port_equals_diffusers(ports):
    report = run_parity(NAME, models_dir=ports, cases=["plain", GUIDED, "two prompts, two inputs", "output pil"])
    assert report.passed and report.largest_difference == 0, report.to_json()
    assert not any(case.unobserved for case in report.cases)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "before", "after", "stage"),
    [
        (PIPELINE, "(cond_norm / noise_norm)", "1.0", "scheduler.step[0]"),
        (PIPELINE, "timestep / 1000", "timestep / 1001", "transformer[0]"),
        (PIPELINE, "mu=mu", "mu=mu * 1.01", "scheduler.timesteps[0]"),
        (TRANSFORMER, "img_gate1 * img_attn_output", "img_attn_output", "transformer[0]"),
    ],
    ids=["norm rescale left out", "timestep scale", "schedule shift", "gate dropped"],
)
def test_a_planted_error_is_found_at_its_stage(planted, file, before, after, stage):
    report = run_parity(NAME, models_dir=planted(file, before, after), cases=[GUIDED])
    assert report.verdict == "differs"
    [case] = report.cases
    assert case.first_difference.stage == stage
    if file == TRANSFORMER:
        assert case.location is not None and case.location.path.startswith("transformer_blocks.0")


@pytest.mark.slow
def test_the_transformer_alone_equals_the_original(ports, tmp_path):
    from diffusers import DiffusionPipeline, QwenImageTransformer2DModel

    from porter.parity.checkpoint import build, load_inputs
    from porter.parity.models import record_calls
    from porter.runtime import OmniDiffusionConfig
    from porter.runtime.diffusion.registry import ModelRegistry

    config = json.loads(specs.read(NAME).files["transformer/config.json"])
    checkpoint = build(NAME, tmp_path)
    calls = record_calls(DiffusionPipeline.from_pretrained(checkpoint), load_inputs(NAME))
    pipeline_class = ModelRegistry(ports).load(NAME).pipeline_cls
    model_class = vars(sys.modules[pipeline_class.__module__])["QwenImageTransformer2DModel"]
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}

    def build_port():
        return model_class(
            od_config=OmniDiffusionConfig.from_kwargs(model=str(checkpoint), dtype="float32"), **arguments
        )

    report = check_model(QwenImageTransformer2DModel, config, build_port, calls)
    assert report.passed and len(report.calls) == 3, report
