"""The page, in a Chromium without a window."""

from __future__ import annotations

import pytest
from serving import png

from porter.runtime import Omni


@pytest.fixture
def open_page(visitor):
    """Opens the page of a server; in the end nothing was loaded from elsewhere, and no script failed."""
    servers = []

    def begin(server):
        servers.append(server.url)
        return visitor.open(server.url)

    yield begin
    assert visitor.exceptions == []
    assert all(url.startswith((*servers, "data:", "blob:")) for url in visitor.requests)


def test_a_picture_is_made(server, open_page):
    page = open_page(server)
    page.wait_for_selector("text=Ready.")
    assert page.title() == "toy" and "ToyPipeline, native port, step by step" in page.inner_text("#about")
    assert page.is_hidden("#num_frames") and page.is_hidden("#audio_length") and page.is_visible("#image")
    page.fill("#prompt", "a cat <script>alert(1)</script>")
    page.fill("#width", "64")
    page.fill("#height", "96")
    page.fill("#num_inference_steps", "2")
    page.fill("#seed", "7")
    page.click("#go")
    page.wait_for_selector("text=Done in")
    assert page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight])") == [[64, 96]]
    first = page.get_attribute("#results img", "src")
    page.set_input_files("#image", {"name": "in.png", "mimeType": "image/png", "buffer": png()})
    page.click("#go")
    page.wait_for_function("first => document.querySelector('#results img').src !== first", arg=first)


def test_errors_are_shown_and_work_goes_on(server, open_page):
    page = open_page(server)
    page.wait_for_selector("text=Ready.")
    page.fill("#prompt", "x")
    page.fill("#width", "64")
    page.click("#go")
    page.wait_for_selector("text=Give width and height, or neither.")
    page.fill("#height", "63")
    page.click("#go")
    page.wait_for_selector("text=divisible by 8")
    page.fill("#height", "64")
    page.click("#go")
    page.wait_for_selector("text=Done in")
    assert page.is_hidden("#error")


def test_cancelling_stops_the_work(server, open_page):
    page = open_page(server)
    page.wait_for_selector("text=Ready.")
    page.fill("#prompt", "x")
    page.fill("#width", "256")
    page.fill("#height", "256")
    page.fill("#num_inference_steps", "200")
    page.click("#go")
    page.wait_for_function("!document.getElementById('stop').disabled")
    while not server.engine.running:
        page.wait_for_timeout(20)
    page.click("#stop")
    page.wait_for_selector("text=Cancelled.")
    assert server.idle(30)


def test_a_key_is_asked_for(toy, start, open_page):
    page = open_page(start(toy("ToyWholePipeline"), api_keys=("secret",)))
    page.wait_for_selector("text=a valid API key is needed")
    page.fill("#key", "secret")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=Ready.")
    page.fill("#prompt", "x")
    page.keyboard.press("Tab")
    page.click("#go")
    page.wait_for_selector("text=Done in")


def test_a_video_and_a_sound_are_made(tiny, start, open_page):
    calls = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 16}
    film = Omni(model=tiny("WanPipeline"), device="cpu", diffusion_load_format="diffusers", diffusers_call_kwargs=calls)
    page = open_page(start(film))
    page.wait_for_selector("text=Ready.")
    assert page.is_visible("#num_frames") and page.is_hidden("#image")
    page.fill("#prompt", "a cat")
    page.click("#go")
    page.wait_for_selector("#results video")
    calls = {"num_inference_steps": 2, "audio_end_in_s": 3.0}
    sound = Omni(
        model=tiny("StableAudioPipeline"), device="cpu", diffusion_load_format="diffusers", diffusers_call_kwargs=calls
    )
    page = open_page(start(sound))
    page.wait_for_selector("text=Ready.")
    page.fill("#prompt", "waves")
    page.click("#go")
    page.wait_for_selector("#results audio")
