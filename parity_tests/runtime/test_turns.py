"""Requests take turns: what is a request's own is on the pipeline while that is worked on, and only then."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def pipeline_class(stepwise: Any) -> type:
    """A pipeline that counts the steps of a request in a scheduler and in a setting of its own."""

    class Pipeline:
        supports_request_batch = False
        request_components = ("scheduler",)
        request_attributes = ("_count", "_kept")
        request_constants = ()

        def __init__(self) -> None:
            self.scheduler, self._count = [], -1

        @contextlib.contextmanager
        def progress_bar(self, total: int) -> Any:
            yield SimpleNamespace(update=lambda: None)

        @stepwise.per_request
        def prepare_encode(self, state: Any) -> Any:
            self._count, self._kept = 0, state.request_id
            return state

        @stepwise.per_request
        def denoise(self, state: Any) -> Any:
            if state.request_id == "fails":
                raise ValueError("no")
            return self._kept

        def denoise_step(self, input_batch: Any, states: Any) -> Any:
            return stepwise.denoise_requests(self, input_batch, states)

        @stepwise.per_request
        def step_scheduler(self, state: Any, prediction: Any) -> None:
            self.scheduler.append(prediction)
            self._count += 1
            state.step_index += 1

        @stepwise.per_request
        def post_decode(self, state: Any) -> Any:
            return self._count, self.scheduler

    return Pipeline


def request(name: str, steps: int = 2) -> Any:
    return SimpleNamespace(
        request_id=name, total_steps=steps, step_index=0, extra={}, latents=None, timesteps=None, scheduler=None
    )


def test_a_whole_run_leaves_no_trace(stepwise, pipeline_class):
    pipeline = pipeline_class()
    before = dict(vars(pipeline))
    for name, steps in (("one", 3), ("two", 1)):
        found = stepwise.run_request(pipeline, SimpleNamespace(requests=[request(name, steps)]))
        assert found == (steps, [name] * steps)
        assert vars(pipeline) == before and pipeline.scheduler == []


def test_a_run_that_fails_leaves_no_trace(stepwise, pipeline_class):
    pipeline = pipeline_class()
    before = dict(vars(pipeline))
    with pytest.raises(ValueError, match="no"):
        stepwise.run_request(pipeline, SimpleNamespace(requests=[request("fails")]))
    assert vars(pipeline) == before


def test_requests_step_by_step_do_not_see_each_other(stepwise, pipeline_class):
    pipeline = pipeline_class()
    first, second = (pipeline.prepare_encode(request(name)) for name in ("one", "two"))
    for state in (first, second, second, first, second):
        pipeline.step_scheduler(state, pipeline.denoise_step(None, states=[state]))
    assert pipeline.post_decode(first) == (2, ["one"] * 2)
    assert pipeline.post_decode(second) == (3, ["two"] * 3)


def test_a_request_inside_of_another_has_its_own_turn(stepwise, pipeline_class):
    pipeline = pipeline_class()
    outer, inner = request("outer"), request("inner")
    pipeline.prepare_encode(outer)
    with stepwise._turn(pipeline, outer):
        pipeline.prepare_encode(inner)
        assert pipeline._kept == "outer"
        assert pipeline.denoise(inner) == "inner"
        assert pipeline.denoise(outer) == "outer"


@pytest.mark.parametrize("enabled", [True, False])
def test_work_on_a_request_makes_no_gradients(stepwise, enabled):
    class Pipeline:
        request_components = request_attributes = ()

        @stepwise.per_request
        def denoise(self, state: Any) -> Any:
            return torch.is_grad_enabled()

    with torch.set_grad_enabled(enabled):
        assert Pipeline().denoise(request("one")) is False
        assert torch.is_grad_enabled() is enabled
