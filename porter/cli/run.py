"""``porter run``"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from porter.cli.common import Failure, ModelsDir, Quiet, bad_input, check_dtype, hush_libraries

if TYPE_CHECKING:
    from PIL.Image import Image

Model = Annotated[str, typer.Argument(metavar="MODEL", help="a checkpoint folder, or a hub id")]
Prompt = Annotated[str | None, typer.Option("--prompt", help="what to make")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="what to keep away from")]
Images = Annotated[
    list[str] | None,
    typer.Option("--image", metavar="[NAME=]FILE", help="a picture; NAME is its parameter, if not the first one"),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=JSON", help="any other parameter of the pipeline")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help=".png, .webp, .mp4 or .wav, as the pipeline makes")
]

# Options that stand for one parameter each: parameter, option.
COMMON = {
    "height": "--height",
    "width": "--width",
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "generator": "--seed",
}
OUTPUT_SUFFIXES = (".png", ".webp", ".mp4", ".wav")
DEFAULT_NAMES = {"image": "output.png", "video": "output.mp4", "audio": "output.wav"}


def run(
    model: Model,
    prompt: Prompt = None,
    negative_prompt: Negative = None,
    image: Images = None,
    height: Annotated[int | None, typer.Option("--height", min=1)] = None,
    width: Annotated[int | None, typer.Option("--width", min=1)] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="of a video")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="denoising steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option("--guidance-scale")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="same seed, same result")] = None,
    settings: Settings = None,
    output: Output = None,
    models_dir: ModelsDir = None,
    device: Annotated[str | None, typer.Option("--device", help="the accelerator if there is one, else cpu")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="bfloat16 on an accelerator, float32 on the CPU")] = None,
    quiet: Quiet = False,
) -> None:
    """Generate with a port and save the result."""
    check_dtype(dtype)
    _check_output(output)
    extra = _settings(settings or [])
    pictures = _pictures(image or [])
    # Importing torch takes seconds; what is wrong with the arguments is said before.
    from porter.runtime import Omni, OmniDiffusionSamplingParams, PorterRuntimeError

    hush_libraries()
    with bad_input(PorterRuntimeError):
        omni = Omni(model=model, models_dir=models_dir, device=device, dtype=dtype)
    takes = list(omni.parameters)
    given: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_frames": frames,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
    }
    given = {name: value for name, value in given.items() if value is not None}
    texts = {"prompt": prompt, "negative_prompt": negative_prompt}
    request: dict[str, Any] = {name: text for name, text in texts.items() if text is not None}
    media = _media(pictures, takes)
    options = {**{name: f"--{name.replace('_', '-')}" for name in texts}, **COMMON}
    for name in [*request, *given, *(["generator"] if seed is not None else [])]:
        if name not in takes:
            raise Failure(f"{options[name]}: {_name(omni)} takes no {name}; it takes {', '.join(takes)}")
    for name in extra:
        if name not in takes:
            raise Failure(f"--set {name}: {_name(omni)} takes no {name}; it takes {', '.join(takes)}")
    _check_images(omni, media, extra, takes)
    if media:
        request["multi_modal_data"] = media
    params = OmniDiffusionSamplingParams(**given, seed=seed, extra_args=extra)
    # What a pipeline refuses, it refuses with a ValueError (or a TypeError) of diffusers' own.
    with bad_input(PorterRuntimeError, ValueError, TypeError):
        [result] = omni.generate(request, params)  # type: ignore[arg-type]
    from porter.cli.save import kind_of, save

    parameters = {"model": model, "pipeline": _name(omni), **texts, **given, "seed": seed, **extra}
    parameters = {name: value for name, value in parameters.items() if value is not None}
    result.fps = result.fps or extra.get("frame_rate") or extra.get("fps") or _default(omni, "frame_rate", "fps")
    result.audio_sample_rate = result.audio_sample_rate or _sample_rate(omni.pipeline)
    place = output or Path(DEFAULT_NAMES[kind_of(result)])
    with bad_input(ValueError, OSError):
        written = save(result, place, parameters)
    if not quiet:
        for path in written:
            print(path)


def _default(omni: Any, *names: str) -> Any:
    """The default of the first of these parameters that has one."""
    defaults = (omni.parameters[name].default for name in names if name in omni.parameters)
    return next((value for value in defaults if isinstance(value, int | float)), None)


def _sample_rate(pipeline: Any) -> int | None:
    """Samples per second of a pipeline's sound, where the pipeline or a component's config states it."""
    owners = [pipeline]
    owners += [getattr(getattr(pipeline, name, None), "config", None) for name in ("vocoder", "audio_vae", "vae")]
    for owner in owners:
        for name in ("output_sampling_rate", "sampling_rate", "sample_rate"):
            if isinstance(rate := getattr(owner, name, None), int):
                return rate
    return None


def _name(omni: Any) -> str:
    return type(omni.pipeline).__name__


def _check_output(output: Path | None) -> None:
    if output is None:
        return
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise Failure(f"--output {output}: name a file in {', '.join(OUTPUT_SUFFIXES)}")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise Failure(f"--output {output}: {folder} is no folder")
    if output.is_dir() or not os.access(folder, os.W_OK):
        raise Failure(f"--output {output}: cannot be written")


def _settings(settings: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in settings:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise Failure(f"--set {item}: write it as NAME=JSON")
        if name in found:
            raise Failure(f"--set {name}: given twice")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError as error:
            raise Failure(f"--set {name}: {text!r} is not JSON ({error.msg}); a string needs its quotes") from error
    return found


def _pictures(images: list[str]) -> list[tuple[str, Image]]:
    """(parameter or "", picture) of each ``--image``."""
    import PIL.Image

    found = []
    for item in images:
        name, equals, file = item.partition("=")
        if not equals or not name.isidentifier() or Path(item).exists():
            name, file = "", item
        try:
            with PIL.Image.open(file) as picture:
                found.append((name, picture.convert(picture.mode if picture.mode in ("L", "RGB", "RGBA") else "RGB")))
        except FileNotFoundError:
            raise Failure(f"--image {item}: no such file") from None
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise Failure(f"--image {item}: not a picture that can be read ({error})") from error
    return found


def _media(pictures: list[tuple[str, Image]], takes: list[str]) -> dict[str, Any]:
    first = next((name for name in takes if name in ("image", "images")), None)
    first = first or next((name for name in takes if name.endswith(("_image", "_images"))), None)
    found: dict[str, list[Image]] = {}
    for name, picture in pictures:
        if (name or first) not in takes:
            raise Failure(f"--image: the pipeline takes no {name or 'picture'}; it takes {', '.join(takes)}")
        found.setdefault(name or str(first), []).append(picture)
    return {name: items[0] if len(items) == 1 else items for name, items in found.items()}


def _check_images(omni: Any, media: dict[str, Any], extra: dict[str, Any], takes: list[str]) -> None:
    """An editing pipeline without a picture fails somewhere deep inside; say it here."""
    if getattr(omni.pipeline, "support_image_input", False) and "image" in takes and not media and not extra:
        raise Failure(f"--image: {_name(omni)} works on a picture")
