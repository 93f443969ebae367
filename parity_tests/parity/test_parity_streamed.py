"""One side after the other: what the reference did is on disk, and the port is held against it as it runs."""

import numpy as np
import pytest
import torch

from porter.parity import run, streamed
from porter.parity.capture import Capture
from porter.parity.compare import compare, first_difference
from porter.parity.sides import Reference, record
from porter.parity.stored import Comparing, store

NAME = "FluxPipeline"


def recorded(value=1.0, into=None):
    made = Capture() if into is None else into
    made.add("transformer", "component", {"args.x": torch.ones(2), "result": torch.full((2,), value)}, raw=((), {}))
    made.add("processor", "processor", {"result": np.arange(3)})
    made.add("output", "final", {"result": torch.ones(1, dtype=torch.bfloat16), "flag": True, "none": None})
    return made


def test_what_is_stored_is_read_as_it_was(tmp_path):
    kept = store(recorded(), tmp_path / "case")
    first, second, last = kept.events
    assert first.raw is None and set(first.values) == {"args.x", "result"} and len(last.values) == 3
    assert isinstance(second.values["result"], np.ndarray) and last.values["result"].dtype == torch.bfloat16
    assert last.values["flag"] is True and last.values["none"] is None
    assert not any(result.failed for result in compare(kept, recorded()))


def test_events_are_compared_as_they_come_and_let_go(tmp_path):
    kept = store(recorded(), tmp_path / "case")
    its = recorded(2.0, Comparing(kept, "cpu"))
    assert [len(event.values) for event in its.events] == [0, 1, 0]
    found = first_difference(compare(kept, its, done=its.done))
    assert (found.stage, found.part) == ("transformer[0]", "result")
    same = recorded(into=Comparing(kept, "cpu"))
    assert first_difference(compare(kept, same, done=same.done)) is None


@pytest.fixture
def stream(monkeypatch):
    """A streamed run with a copy of the reference in the port's place, doctored."""

    def start(doctor=lambda pipeline: None, **options):
        class Copy(Reference):
            def __init__(self, folder, models_dir, device, dtype):
                super().__init__(folder, device, getattr(torch, dtype))
                doctor(self.pipeline)

            def run(self, kwargs, methods=None, stop=False, into=None):
                def call():
                    return list(self.pipeline(**kwargs, return_dict=False))

                return record(self.pipeline, kwargs, call, methods, stop, into)

        monkeypatch.setattr(streamed, "Port", Copy)
        return run.run_parity(NAME, stream=True, **{"cases": ["plain", "sequence too long"], **options})

    return start


def test_a_streamed_run_passes_and_fails_as_one_side_by_side(stream):
    report = stream()
    assert report.passed and report.weights.passed and report.weights.compared > 100
    assert [case.verdict for case in report.cases] == ["parity", "rejected alike"]
    assert report.cases[0].stages[-1].stage == "generator state[0]"

    def doctor(pipeline):
        pipeline.transformer.proj_out.weight.data[0, 0] += 1e-3
        pipeline.vae.config.scaling_factor = 2.0

    report = stream(doctor, cases=["plain"])
    assert not report.passed and report.weights.differing == ["transformer.proj_out.weight"]
    assert report.cases[0].first_difference.stage == "transformer[0]"


def test_a_port_that_does_not_load_is_said_to(stream):
    def doctor(pipeline):
        raise RuntimeError("no such layer")

    report = stream(doctor)
    assert report.verdict == "port does not load" and "no such layer" in report.reason
