"""Committed ports behind the engine: requests side by side make what each makes alone."""

from __future__ import annotations

import gc
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from mix import CANCELLED, MALFORMED, make_mix
from serving import picture

from porter.parity import checkpoint
from porter.parity.request import to_request
from porter.runtime import Omni, OmniDiffusionSamplingParams
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


def test_a_load_of_all_sorts_on_a_port(tiny, start):
    """As with the toy of test_serve_load, and as ``benchmarks/serve.py --pipeline`` does at length."""
    omni = Omni(model=tiny("FluxPipeline"), device="cpu")
    mix = make_mix(40, sizes=("8x8", "16x8", "8x16"), steps=(1, 2, 3))
    expected = {}
    for item in (item for item in mix if item.kind == "valid"):
        width, height = map(int, item.body["size"].split("x"))
        steps, seed = item.body["num_inference_steps"], item.body["seed"]
        params = OmniDiffusionSamplingParams(width=width, height=height, num_inference_steps=steps, seed=seed)
        expected[seed] = np.asarray(omni.generate(item.body["prompt"], params)[0].images[0], dtype=int)
    server = start(omni, max_num_seqs=8, max_queue=100)

    def ask(item):
        if item.kind == CANCELLED:
            with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
                sock.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
            return None
        return server.ask("POST", "/v1/images/generations", item.body)

    sizes = []
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            for item, answer in zip(mix, list(pool.map(ask, mix)), strict=True):
                if item.kind == MALFORMED:
                    assert answer.error[0] == 400
                elif item.kind == "valid":
                    found = np.asarray(picture(answer.json["data"][0]["b64_json"]), dtype=int)
                    assert answer.status == 200 and abs(found - expected[item.body["seed"]]).max() <= 1
        assert server.idle()
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss / 2**20)
    assert sizes[-1] - sizes[0] < 30, sizes
