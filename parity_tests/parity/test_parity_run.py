"""The harness on diffusers itself: one side is a second copy of the reference, doctored where a test says so."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from rich.console import Console

from porter.parity import capture, html, run
from porter.parity.areas import small_areas
from porter.parity.other_checkpoints import OTHER
from porter.parity.pictures import pictures
from porter.parity.report import describe_difference, print_report
from porter.parity.sides import Reference, final_leaves
from porter.parity.spec import SpecError
from porter.parity.tables import TABLES

NAME = "FluxPipeline"


@pytest.fixture
def run_against(monkeypatch):
    """Run parity with a copy of the reference in the port's place, after ``doctor`` changed it."""

    def start(doctor=lambda pipeline: None, **options):
        class Copy(Reference):
            def __init__(self, folder, models_dir, device, dtype):
                super().__init__(folder, device, getattr(torch, dtype))
                doctor(self.pipeline)

            def close(self):
                pass

        monkeypatch.setattr(run, "port_side", lambda engine, *place: Copy(*place))
        return run.run_parity(NAME, **{"cases": ["plain"], **options})

    return start


def test_diffusers_is_at_parity_with_itself(run_against):
    report = run_against(cases=["plain", "two prompts, a generator each", "output latent"])
    assert report.passed and report.exit_code == 0 and report.largest_difference == 0
    stages = [stage.stage for stage in report.cases[0].stages]
    order = ["encode_prompt[0]", "prepare_latents[0]", "scheduler.timesteps[0]", "transformer[0]", "scheduler.step[0]"]
    assert [stage for stage in stages if stage in order] == order
    assert stages[-2:] == ["output[0]", "generator state[0]"]


def test_a_changed_weight_is_seen_as_a_weight_and_as_a_layer(run_against):
    def doctor(pipeline):
        pipeline.transformer.transformer_blocks[0].attn.to_q.weight.data[0, 0] += 1e-3

    report = run_against(doctor)
    assert report.verdict == "differs" and report.exit_code == 1
    assert report.weights.differing == ["transformer.transformer_blocks.0.attn.to_q.weight"]
    [case] = report.cases
    assert case.first_difference.stage == "transformer[0]"
    assert case.location.path == "transformer_blocks.0.attn.to_q" and not case.location.arguments_differ
    assert "transformer_blocks.0.attn.to_q" in describe_difference(case)


def test_a_missing_sigma_shift_is_seen_at_the_timesteps(run_against):
    report = run_against(lambda pipeline: pipeline.scheduler.register_to_config(shift_terminal=0.1))
    assert report.cases[0].first_difference.stage == "scheduler.timesteps[0]"


def test_a_run_can_stop_before_its_first_prediction(run_against):
    [plain, case] = run_against(cases=["plain", "all defaults"]).cases
    assert plain.verdict == "parity"
    assert case.verdict == "begun" and case.passed and case.stages[-1].stage == "transformer[0]"
    assert not any(stage.stage.startswith(("vae", "output")) for stage in case.stages)

    def doctor(pipeline):
        original = pipeline.prepare_latents
        pipeline.prepare_latents = lambda *args: tuple(item + 1 for item in original(*args))

    assert run_against(doctor, cases=["all defaults"]).cases[0].first_difference.stage == "prepare_latents[0]"


def test_an_ignored_prompt_is_seen_at_the_embeddings(run_against):
    def doctor(pipeline):
        original = pipeline.encode_prompt
        pipeline.encode_prompt = lambda prompt, prompt_2, **kwargs: original("", "", **kwargs)

    report = run_against(doctor)
    assert report.cases[0].first_difference.stage.startswith(("_get_clip_prompt_embeds", "text_encoder"))


def test_random_numbers_drawn_in_excess_are_seen(run_against):
    def doctor(pipeline):
        original = pipeline._unpack_latents
        generator = []

        def prepare(*args, **kwargs):
            generator.append(args[-2])
            return type(pipeline).prepare_latents(pipeline, *args, **kwargs)

        def unpack(*args):
            torch.rand(1, generator=generator[0])
            return original(*args)

        pipeline.prepare_latents, pipeline._unpack_latents = prepare, unpack

    report = run_against(doctor)
    assert report.cases[0].first_difference.stage == "generator state[0]"


def test_a_port_that_raises_is_no_parity_and_its_words_are_shown(run_against):
    def doctor(pipeline):
        pipeline.vae.decode = None

    report = run_against(doctor)
    assert not report.passed
    assert "the port raised" in describe_difference(report.cases[0])


def test_a_refused_call_must_be_refused_in_the_same_words(monkeypatch, run_against):
    monkeypatch.setattr(
        run, "all_calls", lambda *_: [run.Case(name="odd", changes={"prompt_embeds": 1}), run.Case(name="plain")]
    )
    report = run_against(cases=["odd", "plain"])
    assert [case.verdict for case in report.cases] == ["rejected alike", "parity"] and report.passed

    def doctor(pipeline):
        pipeline.check_inputs = lambda *_, **__: None

    report = run_against(doctor, cases=["odd"])
    assert report.cases[0].verdict == "differs" and not report.passed


def test_a_pipeline_whose_calls_are_all_refused_has_not_passed(monkeypatch, run_against):
    monkeypatch.setattr(run, "all_calls", lambda *_: [run.Case(name="odd", changes={"prompt_embeds": 1})])
    report = run_against(cases=["odd"])
    assert report.verdict == "reference refuses all calls" and report.exit_code == 1
    assert report.cases[0].reference_error in report.reason


def test_embeddings_replace_prompts(run_against):
    report = run_against(cases=["embeddings instead of prompts"])
    assert report.passed and "without" in report.cases[0].description

    def doctor(pipeline):
        original = pipeline.encode_prompt
        pipeline.encode_prompt = lambda **given: original(**{**given, "prompt_embeds": 2 * given["prompt_embeds"]})

    assert not run_against(doctor, cases=["embeddings instead of prompts"]).passed


def test_a_call_that_would_be_long_is_compared_up_to_its_first_large_tensor(monkeypatch, run_against):
    monkeypatch.setattr(capture, "_LARGE", 100)
    report = run_against()
    assert report.cases[0].stopped and report.cases[0].stages[-1].stage == "transformer[0]"
    assert report.cases[0].verdict == "begun"
    # Nothing was compared to its end, and that is no parity.
    assert report.verdict == "begun" and report.exit_code == 1 and "no call was compared to its end" in report.reason
    assert '<span class="dim">begun</span>' in html.render(report)


def test_half_precision_is_tried_by_default_and_shows_what_single_precision_hides(monkeypatch, run_against):
    monkeypatch.setattr(run, "all_calls", lambda *_: [run.Case(name="plain")])
    calls = [case.name for case in run_against(cases=None).cases]
    assert calls[:3] == ["plain", "half precision", "half precision, float16"] and calls[-1] == TABLES
    assert any(name.startswith(OTHER) for name in calls)

    def doctor(pipeline):
        up = pipeline.transformer.transformer_blocks[0].ff.net[0]
        proj = up.proj

        def forward(x):  # what is rounded to half between projection and activation is not
            wide = torch.nn.functional.linear(x.float(), proj.weight.float(), proj.bias.float())
            return torch.nn.functional.gelu(wide, approximate=up.approximate).to(x.dtype)

        up.forward = forward

    report = run_against(doctor, cases=None)
    assert [case.passed for case in report.cases][:3] == [True, False, False] and report.verdict == "differs"


def test_a_component_in_training_mode_is_seen_whatever_its_rate_of_dropout(run_against):
    def doctor(pipeline):
        pipeline.transformer.norm_out.register_module("dropout", torch.nn.Dropout(0.0))
        pipeline.transformer.train()

    report = run_against(doctor)
    assert report.verdict == "differs" and "1 in training mode: transformer" in report.reason


def test_a_case_in_another_dtype_has_sides_of_its_own(run_against):
    case = run.Case(name="narrow", dtype="bfloat16")
    report = run_against(cases=["plain", "narrow"], extra_cases=[case])
    assert [case.verdict for case in report.cases] == ["parity", "parity"]
    assert "bfloat16" in report.cases[1].description

    def doctor(pipeline):
        if pipeline.transformer.dtype == torch.bfloat16:
            pipeline.vae.config.scaling_factor = 2.0

    report = run_against(doctor, cases=["plain", "narrow"], extra_cases=[case])
    assert [case.passed for case in report.cases] == [True, False]


def test_a_dtype_that_only_the_port_does_not_load_is_no_parity(run_against):
    def doctor(pipeline):
        if pipeline.transformer.dtype == torch.bfloat16:
            raise TypeError("no kernel")

    case = run.Case(name="narrow", dtype="bfloat16")
    report = run_against(doctor, cases=["plain", "narrow"], extra_cases=[case])
    assert report.verdict == "differs" and report.cases[1].port_error == "no kernel"


def test_what_a_call_leaves_behind_shows_when_the_first_is_made_again(run_against):
    def doctor(pipeline):
        original, calls = pipeline.prepare_latents, []

        def prepare(*args, **kwargs):
            calls.append(1)
            latents, ids = original(*args, **kwargs)
            return latents * (1 if len(calls) < 2 else 2), ids

        pipeline.prepare_latents = prepare

    report = run_against(doctor, cases=["plain", "plain again"])
    assert [(case.name, case.passed) for case in report.cases] == [("plain", True), ("plain again", False)]


def test_a_reference_that_wavers_is_no_pass(monkeypatch, run_against):
    original = Reference.run
    drift = iter(range(10))

    def wavering(self, kwargs, *options):
        self.pipeline.transformer.proj_out.bias.data += next(drift)
        return original(self, kwargs, *options)

    monkeypatch.setattr(Reference, "run", wavering)
    report = run_against()
    assert report.verdict == "reference not repeatable" and report.exit_code == 1
    assert report.cases[0].first_difference.stage == "transformer[0]"


def test_what_a_pipeline_keeps_between_calls_is_kept_alike(run_against, monkeypatch):
    original = FluxPipeline.encode_prompt

    def remembering(self, **kwargs):
        self.kept = getattr(self, "kept", None) or original(self, **kwargs)
        return self.kept

    monkeypatch.setattr(FluxPipeline, "encode_prompt", remembering)
    assert run_against(cases=["plain", "output latent"]).passed


def test_no_checkpoint_is_not_tested():
    report = run.run_parity("diffusers.NoSuchPipeline")
    assert report.verdict == "not tested (no checkpoint)" and report.exit_code == 1


def test_an_unknown_case_is_a_bad_question(run_against):
    with pytest.raises(SpecError, match="no such case: nonsense; there are 'plain'"):
        run_against(cases=["nonsense"])


def test_reports(run_against, tmp_path):
    report = run_against(cases=["plain", "output pil"])
    data = json.loads(report.to_json())
    assert data["verdict"] == "parity" and "pictures" not in data["cases"][0]
    assert run.ParityReport.model_validate(data).passed
    html.write(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3 and "<script" not in page and "http" not in page
    console = Console(record=True, width=200)
    print_report(report, console, verbose=True)
    assert "scheduler.step[1]" in console.export_text()


def test_output_leaves_are_arrays_in_order_without_flags():
    leaves = final_leaves([[np.ones(2), np.zeros(2)], None, [True, False], torch.tensor([True])])
    assert [leaf.tolist() for leaf in leaves.values()] == [[1, 1], [0, 0]]


def test_tables_of_sizes_are_made_smaller_on_both_sides_and_put_back():
    module = types.ModuleType("sizes_of_a_pipeline")
    module.BUCKETS = {1024: [(672, 1568), (1568, 672), (1024, 1024)]}
    module.LAYERS = [(64, 128), (128, 256)]
    sys.modules[module.__name__] = module
    cls = type("Pipeline", (), {"__module__": module.__name__})
    reference, port = cls(), cls()
    reference.resolutions = [(1024, 1024), (640, 1408)]
    # What the checkpoint brings is as small as that: diffusers keeps components as attributes, a port as modules.
    transformer = types.SimpleNamespace(config={"tile_sizes": [[256, 256], [256, 512]]})
    reference.transformer, port._modules = transformer, {"transformer": transformer}
    reference.tiles = port.tiles = ((256, 256), (256, 512))
    with small_areas(reference, port):
        # An eighth, in multiples of what all sides of a table are multiples of.
        assert module.BUCKETS == {1024: [(64, 192), (192, 64), (128, 128)]}
        assert module.LAYERS == [(64, 128), (128, 256)]
        # As an eighth both would be the same.
        assert reference.resolutions == [(256, 256), (128, 256)]
        assert reference.tiles == port.tiles == ((256, 256), (256, 512))
    assert module.BUCKETS == {1024: [(672, 1568), (1568, 672), (1024, 1024)]}
    assert reference.resolutions[0] == (1024, 1024)
    del sys.modules[module.__name__]


def test_a_picture_of_no_width_is_not_shown():
    record = capture.Capture()
    record.add("output", "final", {"result.0": np.zeros((1, 8, 0, 3))})
    assert pictures(record, record) is None
