"""``porter run`` on tiny checkpoints: prompts, batches, pictures in, files out."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from porter.cli.save import save
from porter.cli.schema import RunOutput
from porter.runtime import Omni, OmniDiffusionSamplingParams, OmniRequestOutput

DIFFUSERS = ("--diffusion-load-format", "diffusers", "--device", "cpu")
SMALL = ("--height", 64, "--width", 64, "--steps", 2)


def pixels(path) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture)


def parameters(path) -> dict:
    with PIL.Image.open(path) as picture:
        return json.loads(picture.text["parameters"])


def test_every_prompt_is_a_request(porter, tiny):
    folder = tiny("StableDiffusionPipeline")
    result = porter(
        "run", folder, "--prompt", "a cat", "--prompt", "a dog", "--seed", 3, *SMALL, *DIFFUSERS, "-o", "p.png"
    )
    assert (result.code, result.out.split()) == (0, ["p_1.png", "p_2.png"])
    assert [parameters(path)["prompt"] for path in result.out.split()] == ["a cat", "a dog"]
    params = OmniDiffusionSamplingParams(height=64, width=64, num_inference_steps=2, seed=3)
    omni = Omni(model=folder, device="cpu", diffusion_load_format="diffusers")
    for path, made in zip(result.out.split(), omni.generate(["a cat", "a dog"], params), strict=True):
        assert np.array_equal(pixels(path), np.asarray(made.images[0]))


def test_json_says_what_each_request_wrote(porter, tiny):
    Path("batch.jsonl").write_text('{"prompt": "a cat", "seed": 1}\n{"prompt": "a hat", "height": 63}\n')
    arguments = ("--batch", "batch.jsonl", *SMALL, *DIFFUSERS, "-o", "p.png", "--json")
    result = porter("run", tiny("StableDiffusionPipeline"), *arguments)
    found = RunOutput.model_validate_json(result.out, strict=True)
    assert (result.code, found.pipeline) == (2, "StableDiffusionPipeline")
    written, failed = found.requests
    assert (written.files, written.seed, written.arguments["prompt"]) == (["p_1.png"], 1, "a cat")
    assert failed.files == [] and "63" in failed.error


def test_a_batch_file_has_a_request_a_line(porter, tiny):
    lines = [
        {"prompt": "a cat", "seed": 1, "output": "cat.webp"},
        {"prompt": "a dog", "num_images_per_prompt": 2, "num_inference_steps": 1},
        {"prompt": "a hat", "height": 63},
    ]
    Path("batch.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    arguments = ("--batch", "batch.jsonl", "--seed", 9, *SMALL, *DIFFUSERS)
    result = porter("run", tiny("StableDiffusionPipeline"), *arguments)
    assert result.out.split() == ["cat.webp", "output_2_1.png", "output_2_2.png"]
    found = parameters("output_2_1.png")
    assert (found["seed"], found["num_inference_steps"], found["height"]) == (9, 1, 64)
    # The third is refused by diffusers; the others were written all the same.
    assert result.code == 2 and "batch.jsonl:5: `height` and `width`" in result.err
    assert result.err.splitlines()[-1] == "porter: error: 1 of 3 requests failed"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "b.jsonl:1: not JSON"),
        ("[]", "b.jsonl:1: write a JSON object"),
        ('{"seed": "x"}', "b.jsonl:1: seed"),
        ('{"output": "a.gif"}', "b.jsonl:1: output a.gif"),
        ("", "b.jsonl: there is no request"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_loaded(porter, line, words):
    Path("b.jsonl").write_text(line)
    result = porter("run", "nowhere", "--batch", "b.jsonl")
    assert result.code == 2 and words in result.err
    for arguments, words in (
        (("--batch", "none.jsonl"), "--batch none.jsonl: cannot be read"),
        (("--batch", "b.jsonl", "--prompt", "x"), "--prompt: the prompts are in the file"),
        (("--diffusers-call-kwargs", "{}"), "--diffusers-call-kwargs needs --diffusion-load-format diffusers"),
        (("--diffusers-load-kwargs", "[]", *DIFFUSERS), "--diffusers-load-kwargs: write a JSON object"),
        (("--diffusers-load-kwargs", "{", *DIFFUSERS), "--diffusers-load-kwargs: '{' is not JSON"),
        (("--diffusion-load-format", "moon"), "--diffusion-load-format moon"),
    ):
        result = porter("run", "nowhere", *arguments)
        assert result.code == 2 and words in result.err


def test_pictures_go_in_by_option_and_by_line(porter, tiny):
    folder = tiny("StableDiffusionImg2ImgPipeline")
    PIL.Image.effect_noise((64, 64), 50).convert("RGB").save("in.png")
    same = ("--prompt", "a cat", "--seed", 0, "--steps", 4, "--set", "strength=0.5", *DIFFUSERS)
    assert porter("run", folder, *same, "--image", "in.png", "-o", "a.png").code == 0
    Path("b.jsonl").write_text(json.dumps({"prompt": "a cat", "image": "in.png"}))
    assert porter("run", folder, *same[2:], "--batch", "b.jsonl", "-o", "b.png").code == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    result = porter("run", folder, "--prompt", "x", "--frames", 3, *DIFFUSERS)
    assert result.code == 2 and "--frames: StableDiffusionImg2ImgPipeline takes no num_frames" in result.err
    Path("b.jsonl").write_text(json.dumps({"prompt": "a cat", "image": "none.png"}))
    result = porter("run", folder, "--batch", "b.jsonl", *DIFFUSERS)
    assert result.code == 2 and "'none.png' is not a picture" in result.err


def test_sound_comes_out_with_its_parameters(porter, tiny):
    arguments = ("--prompt", "waves", "--seed", 1, "--steps", 1, *DIFFUSERS)
    result = porter("run", tiny("StableAudioPipeline"), *arguments, "--set", "audio_end_in_s=3")
    assert (result.code, result.out.split()) == (0, ["output.wav"])
    data = Path("output.wav").read_bytes()
    text = data[data.index(b"ICMT") + 8 :].rstrip(b"\0")
    assert json.loads(text)["prompt"] == "waves" and int.from_bytes(data[4:8], "little") == len(data) - 8


def test_a_wav_file_with_a_comment_is_still_one(tmp_path):
    sound = OmniRequestOutput(audios=np.zeros((1, 2, 100)), audio_sample_rate=8000)
    [path] = save(sound, tmp_path / "a.wav", {"prompt": "grün"})
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 100)
