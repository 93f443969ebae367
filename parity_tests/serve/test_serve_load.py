"""Queue, cancelling and stopping, as clients see them; and a load of all sorts."""

from __future__ import annotations

import gc
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import psutil
import pytest
from mix import CANCELLED, MALFORMED, make_mix
from serving import picture

from porter.runtime import OmniDiffusionSamplingParams

GENERATE = "/v1/images/generations"
LONG = {"prompt": "x", "size": "256x256", "num_inference_steps": 200}


def hang_up(server, body, until) -> None:
    """Ask, and go away without waiting for the answer, when ``until`` holds."""
    data = json.dumps(body).encode()
    head = ["Host: x", "Content-Type: application/json", f"Content-Length: {len(data)}", "\r\n"]
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall("\r\n".join([f"POST {GENERATE} HTTP/1.1", *head]).encode() + data)
        wait_for(until)


def wait_for(condition, seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["ToyPipeline", "ToyWholePipeline"])
def test_who_goes_away_is_not_computed_for(toy, start, name):
    server = start(toy(name), max_num_seqs=2)
    for _ in range(4):
        hang_up(server, LONG, lambda: server.engine.running)
        assert server.idle(30)
    text = server.ask("GET", "/metrics").data.decode()
    assert "porter_cancelled_total 4.0" in text
    assert f'porter_requests_total{{endpoint="{GENERATE}",status="499"}} 4.0' in text
    assert server.ask("POST", GENERATE, {"prompt": "x"}).status == 200


def test_a_full_queue_says_when_to_come_back(toy, start):
    server, enough = start(toy("ToyWholePipeline"), max_queue=1), threading.Event()
    threads = [threading.Thread(target=hang_up, args=(server, LONG, enough.is_set)) for _ in range(2)]
    threads[0].start()
    wait_for(lambda: server.engine.running)
    threads[1].start()
    wait_for(lambda: server.engine.waiting)
    answer = server.ask("POST", GENERATE, {"prompt": "x"})
    assert answer.error == (429, None) and int(answer.headers["retry-after"]) >= 1
    with pytest.raises(openai.RateLimitError):
        server.client().images.generate(prompt="x")
    enough.set()
    for thread in threads:
        thread.join()
    # The official client comes back by itself.
    assert server.client().with_options(max_retries=5).images.generate(prompt="x").data


def test_stopping_finishes_what_runs(toy, start):
    server = start(toy("ToyWholePipeline"), shutdown_seconds=60.0)
    body = {"prompt": "x", "size": "128x128", "num_inference_steps": 100}
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(server.ask, "POST", GENERATE, body) for _ in range(2)]
        while not server.engine.running:
            time.sleep(0.01)
        time.sleep(0.2)
        server.stop()
        assert [answer.result(30).status for answer in running] == [200, 200]
    assert not server.thread.is_alive() and not server.engine.is_alive


def test_stopping_gives_up_what_takes_too_long(toy, start):
    server = start(toy(), shutdown_seconds=1.0)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.ask, "POST", GENERATE, {**LONG, "n": 4})
        while not server.engine.running:
            time.sleep(0.01)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 30 and not server.thread.is_alive()
        assert running.result(30).error == (503, None)


def test_a_load_of_all_sorts(toy, start):
    """Every valid request is answered, and with what the offline engine computes; the others hurt nobody."""
    server, offline = start(toy(), max_queue=100), toy()
    mix = make_mix(60)
    assert {item.kind for item in mix} == {"valid", CANCELLED, MALFORMED}

    def ask(item):
        if item.kind == CANCELLED:
            return hang_up(server, item.body, lambda: time.sleep(0.05) or True)
        return server.ask("POST", GENERATE, item.body)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, mix))
        for item, answer in zip(mix, answers, strict=True):
            if item.kind == MALFORMED:
                assert answer.error[0] == 400
            elif item.kind == "valid":
                assert answer.status == 200
                width, height = map(int, item.body["size"].split("x"))
                steps, seed = item.body["num_inference_steps"], item.body["seed"]
                params = OmniDiffusionSamplingParams(width=width, height=height, num_inference_steps=steps, seed=seed)
                expected = np.asarray(offline.generate(item.body["prompt"], params)[0].images[0], dtype=int)
                found = np.asarray(picture(answer.json["data"][0]["b64_json"]), dtype=int)
                # Steps taken together round another way in the last bit of a float: one grey level at most.
                assert found.shape == expected.shape and abs(found - expected).max() <= 1
        assert server.idle()
        assert max(len(call) for call in server.app.state.context.omni.pipeline.calls) > 1
        process, sizes = psutil.Process(), []
        for _ in range(3):
            list(pool.map(ask, mix[:30]))
            gc.collect()
            sizes.append(process.memory_info().rss / 2**20)
        assert server.idle() and sizes[-1] - sizes[0] < 20, sizes
