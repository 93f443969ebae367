"""Committed ports behind the engine: requests side by side make what each makes alone."""

from __future__ import annotations

import numpy as np
import pytest

from porter.parity import checkpoint
from porter.parity.request import to_request
from porter.runtime import Omni
from porter.serve.engine import Engine


def request(name: str, seed: int):
    """The small call of a pipeline, with a seed instead of a generator."""
    inputs = checkpoint.load_inputs(name)
    inputs.pop("generator", None)
    prompt, params = to_request(inputs)
    params.seed = seed
    return prompt, params


# Of the last one, the transformer takes its samples as a list.
@pytest.mark.parametrize("name", ["FluxPipeline", "WanPipeline", "ZImagePipeline"])
def test_ports_run_side_by_side(tiny, name):
    omni = Omni(model=tiny(name), device="cpu")
    expected = [omni.generate(*request(name, seed))[0].media()[0] for seed in range(4)]
    sizes: list[int] = []
    engine = Engine(omni, max_num_seqs=4, on_tick=sizes.extend)
    try:
        assert engine.is_stepwise
        jobs = [engine.submit(*request(name, seed)) for seed in range(4)]
        found = [job.future.result(60).media()[0] for job in jobs]
    finally:
        engine.close()
    assert max(sizes) > 1
    for made, wanted in zip(found, expected, strict=True):
        assert np.allclose(np.asarray(made), np.asarray(wanted), atol=1e-5)
