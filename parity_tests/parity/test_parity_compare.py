import copy

import torch

from porter.parity.capture import Capture
from porter.parity.compare import compare, first_difference, largest_difference
from porter.parity.gates import EXACT, gate_for
from porter.parity.metrics import Metrics


def recorded() -> Capture:
    """A denoising loop of two steps."""
    record = Capture()
    torch.manual_seed(0)
    record.add("encode_prompt", "method", {"result.0": torch.randn(1, 4, 8)})
    record.add("scheduler.timesteps", "schedule", {"result.timesteps": torch.tensor([1000.0, 500.0])})
    for _ in range(2):
        record.add(
            "transformer",
            "component",
            {"args.hidden_states": torch.randn(1, 4), "args.guidance": None, "result.0": torch.randn(1, 4)},
        )
        record.add("scheduler.step", "step", {"args.model_output": torch.randn(1, 4), "result.0": torch.randn(1, 4)})
    record.add("output", "final", {"result.0": torch.rand(1, 8, 8, 3).numpy()})
    return record


def doctored(stage: str, path: str, change) -> Capture:
    record = copy.deepcopy(recorded())
    event = next(event for event in record.events if event.stage == stage)
    event.values[path] = change(event.values[path])
    return record


def test_a_capture_equals_itself():
    results = compare(recorded(), recorded())
    assert [result.verdict for result in results] == ["equal"] * 7
    assert first_difference(results) is None
    assert largest_difference(results) == 0


def test_the_first_stage_that_differs_is_named():
    port = doctored("transformer[1]", "result.0", lambda value: value + 1e-3)
    last = next(event for event in port.events if event.stage == "output[0]")
    last.values["result.0"] = last.values["result.0"] + 0.5
    found = first_difference(compare(recorded(), port))
    assert found is not None
    assert (found.stage, found.part, found.verdict) == ("transformer[1]", "result.0", "differs")
    assert not found.arguments_differ
    assert found.metrics is not None and abs(found.metrics.max_abs - 1e-3) < 1e-6


def test_arguments_come_before_results():
    port = doctored("transformer[0]", "args.hidden_states", lambda value: value + 1)
    event = next(event for event in port.events if event.stage == "transformer[0]")
    event.values["result.0"] = event.values["result.0"] * 2
    found = first_difference(compare(recorded(), port))
    assert found is not None and found.part == "args.hidden_states" and found.arguments_differ


def test_the_last_bit_counts_on_the_cpu():
    port = doctored("scheduler.step[0]", "result.0", lambda value: torch.nextafter(value, value + 1))
    found = first_difference(compare(recorded(), port))
    assert found is not None and found.stage == "scheduler.step[0]"
    assert first_difference(compare(recorded(), port, "cuda:0")) is None


def test_another_dtype_differs_though_the_values_agree():
    port = doctored("scheduler.timesteps[0]", "result.timesteps", lambda value: value.double())
    found = first_difference(compare(recorded(), port))
    assert found is not None and "torch.float32 became torch.float64" in found.note


def test_another_shape_differs():
    port = doctored("transformer[0]", "result.0", lambda value: value[None])
    found = first_difference(compare(recorded(), port))
    assert found is not None and found.note == "shape (1, 4) became (1, 1, 4)"


def test_a_given_value_is_not_an_absent_one():
    port = doctored("transformer[0]", "args.guidance", lambda _: torch.ones(1))
    found = first_difference(compare(recorded(), port))
    assert found is not None and found.note == "None became Tensor(1,)"


def test_an_argument_that_one_side_alone_has_differs_unless_it_says_nothing():
    port = recorded()
    del port.events[2].values["args.guidance"]
    assert first_difference(compare(recorded(), port)) is None
    port.events[2].values["args.extra"] = torch.ones(1)
    found = first_difference(compare(recorded(), port))
    assert found is not None and found.note == "only in the port"


def test_a_loop_that_is_one_step_short_is_missing_a_stage():
    port = recorded()
    del port.events[4:6]
    found = first_difference(compare(recorded(), port))
    assert found is not None
    assert (found.stage, found.verdict) == ("transformer[1]", "missing")
    found = first_difference(compare(port, recorded()))
    assert found is not None and found.verdict == "extra"


def test_a_helper_that_the_port_lacks_is_unobserved_not_wrong():
    port = recorded()
    del port.events[0]
    results = compare(recorded(), port)
    assert results[0].verdict == "unobserved"
    assert first_difference(results) is None


def test_nan_on_both_sides_is_no_evidence():
    def spoil(value):
        return torch.full_like(value, float("nan"))

    stage = "transformer[0]", "result.0", spoil
    found = first_difference(compare(doctored(*stage), doctored(*stage)))
    assert found is not None and found.verdict == "not a number"


def test_an_output_without_arrays_is_no_evidence():
    mine, its = recorded(), recorded()
    mine.events[-1].values, its.events[-1].values = {}, {}
    found = first_difference(compare(mine, its))
    assert found is not None and found.stage == "output[0]"


def test_gates():
    assert gate_for("component", "cpu") == EXACT
    assert gate_for("schedule", "cuda") == EXACT
    near = Metrics(equal=False, rel_l2=0.01, cosine=0.9999)
    assert gate_for("component", "cuda").passes(near)
    assert not gate_for("component", "cpu").passes(near)
    scaled = Metrics(equal=False, rel_l2=1.0, cosine=1.0)
    assert not gate_for("component", "cuda").passes(scaled)
    assert not gate_for("final", "cuda").passes(Metrics(equal=False, psnr=40.0, ssim=0.9))
