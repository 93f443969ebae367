"""``porter run`` and ``porter parity``: arguments, errors and files."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from porter.cli.save import save
from porter.runtime import OmniRequestOutput


def refused(result, *words: str) -> None:
    assert result.code == 2
    [line] = result.err.splitlines()
    assert line.startswith("porter: error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--image", "nowhere.png"], "--image nowhere.png: no such file"),
        (["--image", "broken.png"], "--image broken.png: not a picture"),
        (["--set", "steps"], "--set steps: write it as NAME=JSON"),
        (["--set", "mode=fast"], "--set mode: 'fast' is not JSON"),
        (["--set", "a=1", "--set", "a=2"], "--set a: given twice"),
        (["--output", "a.gif"], "--output a.gif"),
        (["--output", "nowhere/a.png"], "--output nowhere/a.png"),
        (["--dtype", "float8"], "--dtype float8"),
        (["--steps", "0"], "--steps"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_a_bad_argument_of_run_is_named_before_anything_is_loaded(porter, arguments, word):
    Path("broken.png").write_text("no picture")
    refused(porter("run", "nowhere", "--prompt", "x", *arguments), word)


def test_a_model_that_is_not_there_is_named(porter):
    refused(porter("run", "./nowhere", "--prompt", "x"), "nowhere")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "name a pipeline, or say --all"),
        (["QwenImageEditPipeline", "--all"], "--all"),
        (["QwenImagEditPipeline"], "QwenImageEditPipeline"),
        (["QwenImageTransformer2DModel"], "not a pipeline"),
        (["QwenImageEditPipeline", "--checkpoint", "./nowhere"], "--checkpoint ./nowhere"),
        (["QwenImageEditPipeline", "--checkpoint", "."], "model_index.json"),
        (["QwenImageEditPipeline", "--engine", "moon"], "--engine moon"),
        (["QwenImageEditPipeline", "--dtype", "int8"], "--dtype int8"),
        (["QwenImageEditPipeline", "--device", "moon"], "--device moon"),
        (["QwenImageEditPipeline", "--stream", "--draw", "3"], "--stream goes with"),
        (["QwenImageEditPipeline", "--html", "nowhere/a.html"], "--html nowhere/a.html"),
    ],
)
def test_a_bad_argument_of_parity_is_named(porter, arguments, word):
    refused(porter("parity", *arguments), word)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


def test_pictures_carry_their_parameters(tmp_path):
    pictures = [PIL.Image.fromarray((noise(8, 12, 3) * 255).astype(np.uint8)) for _ in range(2)]
    written = save(OmniRequestOutput(images=pictures), tmp_path / "a.png", {"prompt": "grün", "seed": 3})
    assert [path.name for path in written] == ["a_1.png", "a_2.png"]
    with PIL.Image.open(written[0]) as image:
        assert json.loads(image.text["parameters"]) == {"prompt": "grün", "seed": 3}
        assert np.array_equal(np.asarray(image), np.asarray(pictures[0]))
    [webp] = save(OmniRequestOutput(images=pictures[:1]), tmp_path / "a.webp", {"seed": 3})
    with PIL.Image.open(webp) as image:
        assert json.loads(image.getexif()[0x010E]) == {"seed": 3}
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(pictures[0]))


@pytest.mark.parametrize("shape", [(1, 3, 8, 12), (1, 8, 12, 3), (8, 12, 3)])
def test_pictures_as_arrays(tmp_path, shape):
    [path] = save(OmniRequestOutput(images=noise(*shape)), tmp_path / "a.png", {})
    with PIL.Image.open(path) as image:
        assert image.size == (12, 8)


def test_a_video_with_sound(tmp_path):
    import av

    result = OmniRequestOutput(
        frames=noise(1, 5, 16, 24, 3), audios=noise(1, 2, 4000) - 0.5, audio_sample_rate=16000, fps=8
    )
    [path] = save(result, tmp_path / "a.mp4", {"prompt": "waves"})
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["comment"]) == {"prompt": "waves"}
        video = container.streams.video[0]
        assert (video.width, video.height, video.average_rate) == (24, 16, 8)
        assert sum(1 for _ in container.decode(video)) == 5
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == 16000


def test_sound(tmp_path):
    [path] = save(OmniRequestOutput(audios=noise(1, 2, 100), audio_sample_rate=8000), tmp_path / "a.wav", {})
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 100)


def test_a_file_of_the_wrong_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"makes images.*\.png"):
        save(OmniRequestOutput(images=noise(1, 8, 8, 3)), tmp_path / "a.mp4", {})
    assert list(tmp_path.iterdir()) == []
