"""``porter serve --engine vllm-omni``: the real server, with a port, asked by the official client."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import numpy as np
import openai
import pytest
from PIL import Image

pytestmark = [pytest.mark.omni, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]


@contextlib.contextmanager
def served(folder: Path, logs: Path) -> Iterator[openai.OpenAI]:
    """The real server with a checkpoint, and a client for it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = logs / "log"
    options = ["--dtype", "float32", "--enforce-eager", "--served-model-name", "tiny", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PORTER_OMNI_ENV": sys.prefix, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "porter", "serve", str(folder), "--engine", "vllm-omni", *options]
    with log.open("w") as out:
        # A session of its own, so that what the server starts ends with it.
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    asking = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120, max_retries=0)
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                asking.models.list()
                break
            except openai.APIConnectionError:
                time.sleep(1)
        yield asking
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(checkpoint) -> Path:
    return checkpoint("SanaPipeline")


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with served(folder, tmp_path_factory.mktemp("server")) as asking:
        yield asking


def test_the_server_makes_what_diffusers_makes(client: openai.OpenAI, folder: Path) -> None:
    import torch
    from diffusers import DiffusionPipeline

    from porter.parity.sides import align

    [model] = client.models.list().data
    assert model.id == "tiny"
    answer = client.images.generate(
        model="tiny", prompt="a cat", size="32x32", extra_body={"num_inference_steps": 2, "seed": 3}
    )
    found = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    align(pipeline)
    generator = torch.Generator().manual_seed(3)
    [wanted] = pipeline("a cat", height=32, width=32, num_inference_steps=2, generator=generator).images
    assert np.array_equal(np.asarray(found), np.asarray(wanted))


def test_a_bad_request_is_an_error_and_the_server_goes_on(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError):
        client.images.generate(model="tiny", prompt="a cat", size="big")
    made = client.images.generate(model="tiny", prompt="a hat", size="32x32", extra_body={"num_inference_steps": 1})
    assert made.data


def test_a_video_port_answers_with_a_film(checkpoint, tmp_path: Path) -> None:
    wanted = {"size": "32x32", "num_frames": 9, "num_inference_steps": 2, "seed": 3}
    with served(checkpoint("LTXPipeline"), tmp_path) as asking:
        extra = {"extra_params": '{"max_sequence_length": 16}'}
        answer = httpx.post(f"{asking.base_url}videos/sync", data={"prompt": "a cat", **wanted, **extra}, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as film:
        frames = list(film.decode(video=0))
    assert [(frame.width, frame.height) for frame in frames] == [(32, 32)] * 9


def test_an_audio_port_answers_with_the_sound_of_diffusers(checkpoint, tmp_path: Path) -> None:
    import torch
    from diffusers import DiffusionPipeline

    folder = checkpoint("StableAudio3Pipeline")
    asked = {"model": "tiny", "input": "rain", "num_inference_steps": 2, "seed": 3}
    with served(folder, tmp_path) as asking:
        answer = httpx.post(f"{asking.base_url}audio/generate", json=asked, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(answer.content)) as sound:
        channels = sound.getnchannels()
        found = np.frombuffer(sound.readframes(sound.getnframes()), np.int16).reshape(-1, channels).T / 32767
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    [wanted] = pipeline("rain", num_inference_steps=2, generator=generator).audios
    wanted = np.clip(np.asarray(wanted, np.float32), -1, 1)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 2 / 32767  # sixteen bits a sample
