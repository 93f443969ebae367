"""The endpoints, through the official client and without it."""

from __future__ import annotations

import base64
import time
import wave
import zipfile
from io import BytesIO

import numpy as np
import openai
import pytest
from serving import picture, png

from porter.runtime import Omni, OmniDiffusionSamplingParams

SMALL = {"size": "64x64", "extra_body": {"num_inference_steps": 2, "seed": 7}}


def diffusers_backend(folder, calls) -> Omni:
    return Omni(model=folder, device="cpu", diffusion_load_format="diffusers", diffusers_call_kwargs=calls)


def offline(omni, prompt="a cat", **params):
    """The pictures of the offline engine."""
    defaults = {"seed": 7, "num_inference_steps": 2, "height": 64, "width": 64}
    return omni.generate(prompt, OmniDiffusionSamplingParams(**{**defaults, **params}))[0].images


def same(found, expected, most=0) -> bool:
    found, expected = np.asarray(found, dtype=int), np.asarray(expected, dtype=int)
    return found.shape == expected.shape and abs(found - expected).max() <= most


def test_pictures_from_texts(server, toy):
    client = server.client()
    answer = client.images.generate(model="toy", prompt="a cat", n=2, **SMALL)
    assert len(answer.data) == 2 and answer.size == "64x64" and answer.created > 0
    for found, expected in zip(answer.data, offline(toy(), num_outputs_per_prompt=2), strict=True):
        assert same(picture(found.b64_json), expected)
    body = {"prompt": "a cat", "size": "64x64", "num_inference_steps": 2, "seed": 7, "output_format": "webp"}
    # Fields of OpenAI's that ask for nothing.
    assert client.images.generate(prompt="x", user="me", background="auto", quality="auto", moderation="low").data
    webp = server.ask("POST", "/v1/images/generations", {**body, "return_stage_metrics": True}).json
    assert webp["output_format"] == picture(webp["data"][0]["b64_json"]).format.lower() == "webp"
    assert webp["metrics"]["steps"] == 2


def test_what_is_left_out_is_the_pipelines_default(server, toy):
    body = {"prompt": "a cat", "seed": 7}
    found = server.ask("POST", "/v1/images/generations", body).json["data"][0]["b64_json"]
    assert same(picture(found), toy().generate("a cat", OmniDiffusionSamplingParams(seed=7))[0].images[0])
    scaled = server.ask("POST", "/v1/images/generations", {**body, "guidance_scale": 1.0}).json["data"][0]["b64_json"]
    params = OmniDiffusionSamplingParams(seed=7, guidance_scale=1.0)
    assert same(picture(scaled), toy().generate("a cat", params)[0].images[0]) and scaled != found
    # Without a seed each answer is another.
    answers = {server.ask("POST", "/v1/images/generations", {"prompt": "x"}).data for _ in range(2)}
    assert len(answers) == 2


def test_diffusers_call_kwargs_are_what_a_request_leaves_open(tiny, start):
    calls = {"num_inference_steps": 1, "height": 64, "width": 64, "num_images_per_prompt": 2, "guidance_scale": 2.0}
    server = start(diffusers_backend(tiny("StableDiffusionPipeline"), calls))
    assert len(server.ask("POST", "/v1/images/generations", {"prompt": "x"}).json["data"]) == 2
    assert len(server.ask("POST", "/v1/images/generations", {"prompt": "x", "n": 1}).json["data"]) == 1
    found = server.client().images.generate(prompt="x", n=1, extra_body={"seed": 3, "guidance_scale": 7.5})
    params = OmniDiffusionSamplingParams(seed=3, guidance_scale=7.5, extra_args={"num_images_per_prompt": 1})
    [expected] = server.app.state.context.omni.generate("x", params)[0].images
    assert same(picture(found.data[0].b64_json), expected)
    card = server.ask("GET", "/v1/models").json["data"][0]
    assert (card["backend"], card["step_execution"]) == ("diffusers", False)


def test_pictures_as_files(server):
    body = {"prompt": "x", "size": "64x64", "num_inference_steps": 1, "response_format": "file"}
    one = server.ask("POST", "/v1/images/generations", {**body, "output_format": "jpeg", "output_compression": 50})
    assert one.headers["content-type"] == "image/jpeg" and picture(one.data).size == (64, 64)
    assert one.headers["content-disposition"].endswith('.jpeg"')
    two = server.ask("POST", "/v1/images/generations", {**body, "n": 2})
    with zipfile.ZipFile(BytesIO(two.data)) as archive:
        assert archive.namelist() == ["image_0.png", "image_1.png"]


def test_pictures_from_pictures(server, toy):
    data = png()
    expected = offline(toy(), {"prompt": "a cat", "multi_modal_data": {"image": picture(data)}})[0]
    client = server.client()
    found = client.images.edit(model="toy", image=("in.png", data), prompt="a cat", **SMALL)
    assert same(picture(found.data[0].b64_json), expected)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    body = {"prompt": "a cat", "size": "64x64", "num_inference_steps": 2, "seed": 7, "url": url}
    assert same(picture(server.ask("POST", "/v1/images/edits", body).json["data"][0]["b64_json"]), expected)
    two = client.images.edit(image=[("a.png", data), ("b.png", png(mode="L"))], prompt="a cat", **SMALL)
    assert not same(picture(two.data[0].b64_json), expected)


def test_conversations(server, toy):
    client, data = server.client(), png()
    extra = {"num_inference_steps": 2, "seed": 7, "height": 64, "width": 64}
    answer = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "a cat"}], extra_body=extra, temperature=0.5, max_tokens=5
    )
    [part] = answer.choices[0].message.content
    assert part["type"] == "image_url" and answer.choices[0].finish_reason == "stop"
    assert same(picture(part["image_url"]["url"].partition(",")[2]), offline(toy())[0])
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    content = [{"type": "text", "text": "a cat"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "system", "content": "ignored"}, {"role": "user", "content": content}]
    # The older form of vLLM-Omni's clients, an object in the body.
    body = {"messages": messages, "extra_body": {"size": "64x64", "num_inference_steps": 2, "seed": 7}}
    part = server.ask("POST", "/v1/chat/completions", body).json["choices"][0]["message"]["content"][0]
    expected = offline(toy(), {"prompt": "a cat", "multi_modal_data": {"image": picture(data)}})[0]
    assert same(picture(part["image_url"]["url"].partition(",")[2]), expected)


def test_the_model_and_its_health(server):
    cards = server.client().models.list().data
    assert [card.id for card in cards] == ["toy", "other-name"] and cards[0].owned_by == "porter"
    assert server.client().models.retrieve("other-name").id == "other-name"
    card = server.ask("GET", "/v1/models/toy").json
    assert (card["pipeline"], card["kind"], card["step_execution"]) == ("ToyPipeline", "image", True)
    assert server.ask("GET", "/v1/models/moon").error == (404, "model")
    assert server.ask("GET", "/health").json == {"status": "healthy"}
    text = server.ask("GET", "/metrics").data.decode()
    assert 'porter_requests_total{endpoint="/health",status="200"}' in text and "porter_steps_total" in text
    assert "porter_requests_running 0.0" in text and "porter_step_batch_size_bucket" in text


@pytest.fixture(scope="module")
def film(tiny, start, tmp_path_factory):
    """A server of diffusers' own image-to-video pipeline."""
    calls = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 16}
    omni = Omni(
        model=tiny("WanImageToVideoPipeline"),
        device="cpu",
        diffusion_load_format="diffusers",
        diffusers_call_kwargs=calls,
    )
    folder = tmp_path_factory.mktemp("videos")
    return start(omni, model_names=("wan",), video_dir=folder, max_generated_image_size=2**16, max_num_frames=100)


def frames(data: bytes) -> np.ndarray:
    import av

    with av.open(BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_videos_as_jobs(film):
    client = film.client()
    job = client.videos.create(
        model="wan",
        prompt="a cat",
        size="16x16",
        input_reference=("in.png", png((16, 16))),
        extra_body={"num_frames": 5, "seed": 1, "fps": 8},
    )
    assert job.object == "video" and job.status in ("queued", "in_progress") and job.size == "16x16"
    while (job := client.videos.retrieve(job.id)).status not in ("completed", "failed"):
        time.sleep(0.05)
    assert (job.status, job.progress) == ("completed", 100)
    record = film.ask("GET", f"/v1/videos/{job.id}").json
    assert (record["fps"], record["num_frames"], record["duration_s"]) == (8.0, 5, 0.625)
    data = client.videos.download_content(job.id).read()
    assert frames(data).shape == (5, 16, 16, 3) and b"isom" in data[:64]
    assert [item.id for item in client.videos.list()] == [job.id]
    assert list(film.settings.video_dir.iterdir())
    assert client.videos.delete(job.id).deleted and list(film.settings.video_dir.iterdir()) == []
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(job.id)
    assert film.ask("GET", f"/v1/videos/{job.id}/content").error == (404, "video_id")


def test_a_job_that_fails_says_why(film):
    fields = [("prompt", "a cat"), ("input_reference", png((16, 16))), ("size", "20x20"), ("num_frames", 5)]
    job = film.form("/v1/videos", fields).json
    while (answer := film.ask("GET", f"/v1/videos/{job['id']}")).json["status"] in ("queued", "in_progress"):
        time.sleep(0.05)
    assert answer.status == 400 and answer.json["status"] == "failed" and "16" in answer.json["error"]["message"]
    assert film.ask("GET", f"/v1/videos/{job['id']}/content").error == (422, "video_id")
    assert film.ask("DELETE", f"/v1/videos/{job['id']}").json["deleted"]


def test_a_running_job_is_cancelled_by_deleting_it(film):
    fields = [("prompt", "x"), ("input_reference", png((16, 16))), ("num_inference_steps", 200), ("num_frames", 97)]
    jobs = [film.form("/v1/videos", fields).json["id"] for _ in range(2)]
    for job in jobs:
        assert film.ask("DELETE", f"/v1/videos/{job}").json["deleted"]
    assert film.idle(30) and film.ask("GET", "/v1/videos").json["data"] == []


def test_old_jobs_make_room(tiny, start, tmp_path):
    calls = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 1, "max_sequence_length": 16}
    backend = diffusers_backend(tiny("WanPipeline"), calls)
    server = start(backend, video_dir=tmp_path / "videos", max_stored_videos=2)
    ids = []
    for _ in range(4):
        ids.append(server.form("/v1/videos", [("prompt", "x")]).json["id"])
        while server.ask("GET", f"/v1/videos/{ids[-1]}").json["status"] != "completed":
            time.sleep(0.05)
    assert [job["id"] for job in server.ask("GET", "/v1/videos?order=asc").json["data"]] == ids[2:]
    assert len(list((tmp_path / "videos").iterdir())) == 2
    page = server.ask("GET", f"/v1/videos?limit=1&after={ids[3]}").json
    assert [job["id"] for job in page["data"]] == [ids[2]] and page["has_more"] is False


def test_videos_while_waiting(film, tiny):
    uri = "data:image/png;base64," + base64.b64encode(png((16, 16))).decode()
    body = {"prompt": "a cat", "image_reference": {"image_url": uri}, "seed": 3, "seconds": "1", "fps": 5}
    answer = film.ask("POST", "/v1/videos/sync", body)
    assert answer.headers["content-type"] == "video/mp4" and answer.headers["x-model"] == "wan"
    assert frames(answer.data).shape == (5, 16, 16, 3)
    for path, param in (("/v1/videos?limit=x", "limit"), ("/v1/videos?order=up", "order")):
        assert film.ask("GET", path).error == (400, param)
    assert film.ask("POST", "/v1/images/generations", {"prompt": "x"}).error == (404, None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "16"}, "size"),
        ({"size": "4096x4096"}, "width"),
        ({"num_frames": 1000}, "num_frames"),
        ({"num_inference_steps": 1000}, "num_inference_steps"),
        ({"flow_shift": 2.0}, "flow_shift"),
        ({"enable_frame_interpolation": True}, "enable_frame_interpolation"),
        ({"guidance_scale": "nan"}, "guidance_scale"),
        ({"video_params": "{"}, "video_params"),
        ({"strength": 1}, "strength"),
        ({"extra_params": '{"moon": 1}'}, "extra_params.moon"),
        ({"image_reference": '{"image_url": "data:image/png;base64,AAAA"}'}, "image_reference"),
        ({}, "image"),
    ],
)
def test_bad_fields_of_a_video_are_named(film, fields, param):
    answer = film.form("/v1/videos/sync", [("prompt", "x"), *fields.items()])
    assert answer.error == (400, param)


@pytest.fixture(scope="module")
def sound(tiny, start):
    """A server of diffusers' own text-to-audio pipeline."""
    calls = {"num_inference_steps": 2, "audio_end_in_s": 3.0}
    return start(diffusers_backend(tiny("StableAudioPipeline"), calls), model_names=("audio",))


def test_sound(sound):
    body = {"input": "waves", "seed": 2, "audio_length": 2.0, "negative_prompt": "noise"}
    answer = sound.ask("POST", "/v1/audio/generate", body)
    assert answer.headers["content-type"] == "audio/wav"
    with wave.open(BytesIO(answer.data)) as file:
        channels, rate, count = file.getnchannels(), file.getframerate(), file.getnframes()
    omni = sound.app.state.context.omni
    params = OmniDiffusionSamplingParams(seed=2, extra_args={"audio_start_in_s": 0.0, "audio_end_in_s": 2.0})
    [result] = omni.generate({"prompt": "waves", "negative_prompt": "noise"}, params)
    assert (channels, count) == tuple(result.audios.shape[1:]) and rate > 0
    assert len(sound.ask("POST", "/v1/audio/generate", {**body, "response_format": "pcm"}).data) == 2 * channels * count
    for body, param in (
        ({"input": " "}, "input"),
        ({"input": "x", "speed": 9}, "speed"),
        ({"input": "x", "stream_format": "sse"}, "stream_format"),
        ({"input": "x", "voice": "y"}, "voice"),
    ):
        assert sound.ask("POST", "/v1/audio/generate", body).error == (400, param)
    assert sound.ask("POST", "/v1/audio/generate", {"input": "x", "model": "moon"}).error == (404, "model")
    message = sound.client().chat.completions.create(model="audio", messages=[{"role": "user", "content": "x"}])
    assert base64.b64decode(message.choices[0].message.audio.data)[:4] == b"RIFF"


def test_other_formats_of_sound(tmp_path):
    import av

    from porter.runtime import OmniRequestOutput
    from porter.serve.media_out import encode_sound

    tone = np.sin(np.linspace(0, 2000, 16000))[None, None].repeat(2, 1)
    result = OmniRequestOutput(audios=tone, audio_sample_rate=16000)
    for form, codec in (("flac", "flac"), ("mp3", "mp3float"), ("opus", "opus")):
        with av.open(BytesIO(encode_sound(result, form, speed=2.0))) as container:
            stream = container.streams.audio[0]
            seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(stream))
        assert stream.codec_context.name.startswith(codec[:3]) and abs(seconds - 0.5) < 0.1
