"""Scheduling: what runs together, in which order, and that it computes what it computes alone."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from porter.runtime import OmniDiffusionSamplingParams, RequestError
from porter.serve.engine import Closing, Engine, QueueFull
from porter.serve.job import Cancelled

KINDS = ("ToyPipeline", "ToyAlonePipeline", "ToyMixingPipeline", "ToyWholePipeline")
# A matrix product over more rows may round another way; what runs alone is equal bit by bit.
ROUNDED = ("ToyPipeline", "ToyAlonePipeline")


def params(seed: int = 0, steps: int = 4, size: int = 64, **more) -> OmniDiffusionSamplingParams:
    return OmniDiffusionSamplingParams(
        seed=seed, num_inference_steps=steps, height=size, width=size, output_type="latent", **more
    )


@pytest.fixture
def engine(toy):
    """Makes engines, and ends them."""
    made: list[Engine] = []

    def make(name: str = "ToyPipeline", **settings) -> Engine:
        made.append(Engine(toy(name), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close(finish=False)


def held(engine: Engine) -> threading.Condition:
    """Within, requests are put into the queue and none is taken up: all that fit are admitted in one turn."""
    return engine._changed


def idle(engine: Engine) -> bool:
    """Whether nothing runs, after a while at most."""
    deadline = time.monotonic() + 30
    while (engine.running or engine.waiting) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not (engine.running or engine.waiting)


@pytest.mark.parametrize("name", KINDS)
def test_results_are_those_of_the_offline_engine(engine, toy, name):
    calls = [(f"prompt {n % 3}", params(seed=n, steps=2 + n % 3, size=(64, 48)[n % 2])) for n in range(9)]
    expected = [toy(name).generate(prompt, sampling)[0].output for prompt, sampling in calls]
    one = engine(name)
    jobs = [one.submit(*call) for call in calls]
    for job, latents in zip(jobs, expected, strict=True):
        found = job.future.result(30).output
        assert torch.allclose(found, latents, atol=1e-5) if name in ROUNDED else torch.equal(found, latents)


def test_equal_shapes_take_their_steps_together(engine):
    one = engine(max_num_seqs=4)
    sizes = [64, 64, 48, 64]
    with held(one):
        jobs = [one.submit("x", params(seed=n, size=size, steps=3)) for n, size in enumerate(sizes)]
        late = one.submit("x", params(seed=9, steps=2))
    for job in (*jobs, late):
        job.future.result(30)
    calls = one.omni.pipeline.calls
    ids = [job.id for job in jobs]
    first = calls.index(next(call for call in calls if ids[0] in call))
    together = [set(call) for call in calls[first:]]
    assert {ids[0], ids[1], ids[3]} in together and {ids[2]} in together
    assert all(len(call) == 1 for call in together if late.id in call or ids[2] in call)


def test_a_batch_holds_no_more_than_it_may(engine):
    sizes: list[int] = []
    one = engine(max_num_seqs=2, on_tick=sizes.extend)
    with held(one):
        jobs = [one.submit("x", params(seed=n, steps=2)) for n in range(5)]
    for job in jobs:
        job.future.result(30)
    assert idle(one) and max(sizes) == 2 and sum(sizes) == 10


def test_steps_of_one_request_share_calls_of_the_transformer(engine, toy):
    sizes: list[int] = []
    one = engine("ToyAlonePipeline", max_num_seqs=4, on_tick=sizes.extend)
    transformer, rows = one.omni.pipeline.transformer, []
    handle = transformer.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    calls = [("x", params(seed=n, size=size, num_outputs_per_prompt=2)) for n, size in enumerate((64, 64, 48, 64))]
    with held(one):
        jobs = [one.submit(*call) for call in calls]
    found = [job.future.result(30).output for job in jobs]
    handle.remove()
    for latents, call in zip(found, calls, strict=True):
        assert torch.allclose(latents, toy("ToyAlonePipeline").generate(*call)[0].output, atol=1e-5)
    assert idle(one)
    # The first time both ways, then together: three requests of two samples each, two when one of them is done.
    assert max(sizes) == 3 and rows.count(6) > 1 and set(rows) <= {2, 4, 6}
    assert vars(one.omni.pipeline)["_modules"]["transformer"] is transformer


def test_what_mixes_samples_is_not_put_together(engine, caplog):
    sizes: list[int] = []
    one = engine("ToyMixingPipeline", on_tick=sizes.extend)
    with held(one):
        jobs = [one.submit("x", params(seed=n)) for n in range(3)]
    for job in jobs:
        job.future.result(30)
    assert (
        idle(one) and set(sizes) == {1} and "calls of transformer are not put together: they differ by" in caplog.text
    )


@pytest.mark.parametrize("name", ["ToyAlonePipeline", "ToyMixingPipeline"])
def test_requests_take_turns(engine, name):
    one = engine(name)
    with held(one):
        first = one.submit("x", params(seed=1, steps=3))
        second = one.submit("x", params(seed=2, steps=3))
    first.future.result(30), second.future.result(30)
    calls = [name for [name] in one.omni.pipeline.calls if name in (first.id, second.id)]
    assert calls.index(second.id) < len(calls) - calls[::-1].index(first.id)
    assert (first.steps_done, first.total_steps, first.progress) == (3, 3, 100)


@pytest.mark.parametrize("name", KINDS)
def test_a_failing_request_hurts_nobody_else(engine, toy, name):
    one = engine(name)
    good, bad = one.submit("x", params(seed=1)), one.submit("boom", params(seed=1))
    refused = one.submit("x", params(seed=1, size=63))
    assert torch.allclose(good.future.result(30).output, toy(name).generate("x", params(seed=1))[0].output, atol=1e-5)
    with pytest.raises(RuntimeError, match="boom"):
        bad.future.result(30)
    with pytest.raises(RequestError, match="divisible by 8"):
        refused.future.result(30)
    assert one.submit("x", params()).future.result(30) is not None


def test_one_that_spoils_a_batch_is_found(engine, monkeypatch):
    one = engine()
    jobs, denoise = [], one.omni.pipeline._denoise

    def spoiled(states):
        if any(state.request_id == jobs[1].id for state in states):
            raise RuntimeError("spoiled")
        return denoise(states)

    monkeypatch.setattr(one.omni.pipeline, "_denoise", spoiled)
    with held(one):
        jobs += [one.submit("x", params(seed=n, steps=2)) for n in range(3)]
    assert jobs[0].future.result(30) and jobs[2].future.result(30)
    with pytest.raises(RuntimeError, match="spoiled"):
        jobs[1].future.result(30)


@pytest.mark.parametrize("name", KINDS)
def test_a_cancelled_request_ends_after_its_step(engine, name):
    one = engine(name)
    long = one.submit("x", params(steps=100_000))
    while long.steps_done == 0:
        time.sleep(0.005)
    waiting = [one.submit("x", params(seed=n, steps=50_000)) for n in range(2)]
    for job in (*waiting, long):
        one.cancel(job)
    for job in (*waiting, long):
        with pytest.raises(Cancelled):
            job.future.result(30)
    assert long.steps_done < 100_000
    assert one.submit("x", params(steps=1)).future.result(30)
    assert idle(one)


def test_the_queue_is_bounded(engine):
    one = engine(max_num_seqs=1, max_queue=2)
    running = one.submit("x", params(steps=100_000))
    while one.running == 0:
        time.sleep(0.005)
    one.submit("x", params()), one.submit("x", params())
    with pytest.raises(QueueFull) as refusal:
        one.submit("x", params())
    assert refusal.value.retry_after >= 1
    one.cancel(running)
    with pytest.raises(Cancelled):
        running.future.result(30)


def test_closing_finishes_or_cancels(engine):
    one = engine("ToyWholePipeline")
    jobs = [one.submit("x", params(seed=n)) for n in range(3)]
    one.close(finish=True, timeout=30)
    assert all(job.future.result(0) for job in jobs) and not one.is_alive
    with pytest.raises(Closing):
        one.submit("x", params())
    other = engine()
    jobs = [other.submit("x", params(seed=n, steps=100_000)) for n in range(12)]
    other.close(finish=True, timeout=0.2)
    for job in jobs:
        with pytest.raises(Cancelled):
            job.future.result(0)
