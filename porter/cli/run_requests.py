"""The requests that ``porter run`` is asked for, by its options or by a file with one a line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porter.cli.common import Failure

if TYPE_CHECKING:
    from PIL.Image import Image

    from porter.runtime import Omni

OUTPUT_SUFFIXES = (".png", ".webp", ".mp4", ".wav")
DEFAULT_NAMES = {"image": "output.png", "video": "output.mp4", "audio": "output.wav"}
# How pipelines call the number of frames.
FRAME_COUNTS = ("num_frames", "frames", "video_length")
# Options that stand for one parameter each.
OPTIONS = {
    "prompt": "--prompt",
    "negative_prompt": "--negative-prompt",
    "height": "--height",
    "width": "--width",
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance-scale",
}


@dataclass
class Wanted:
    """One request.

    Attributes:
        where: what to call it in an error: an option's request has no name, a file's is its line.
        arguments: what the options and the line say, by parameter.
        pictures: parameter (empty: the pipeline's first) and picture of each ``--image``.
        output: the file to write, if the line names one.
    """

    where: str
    arguments: dict[str, Any]
    pictures: list[tuple[str, Image]]
    seed: int | None = None
    output: Path | None = None
    own: dict[str, str] = field(default_factory=dict)
    """Parameter to the option or key that set it, for errors."""


def from_options(
    prompts: list[str], arguments: dict[str, Any], extra: dict[str, Any], images: list[str], seed: int | None
) -> list[Wanted]:
    """One request a prompt; one without a prompt if there is none."""
    pictures = read_pictures(images)
    own = {**{name: OPTIONS[name] for name in arguments}, **{name: f"--set {name}" for name in extra}}
    own |= {"prompt": OPTIONS["prompt"]}
    texts: list[dict[str, Any]] = [{"prompt": text} for text in prompts] or [{}]
    return [Wanted("", {**text, **arguments, **extra}, pictures, seed, own=own) for text in texts]


def from_file(path: Path, defaults: Wanted) -> list[Wanted]:
    """The requests of a JSONL file: an object a line, with ``prompt`` and any other parameter of the pipeline, pictures
    by file name, ``seed`` and ``output``. What a line leaves out is as the options say."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"--batch {path}: cannot be read ({error})") from error
    found = [_from_line(f"{path}:{n}", line, defaults) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise Failure(f"--batch {path}: there is no request in it")
    return found


def _from_line(where: str, line: str, defaults: Wanted) -> Wanted:
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise Failure(f"{where}: not JSON ({error.msg})") from error
    if not isinstance(given, dict):
        raise Failure(f"{where}: write a JSON object a line")
    seed = given.pop("seed", defaults.seed)
    if seed is not None and (type(seed) is not int or seed < 0):
        raise Failure(f"{where}: seed is a number from 0 on, not {seed!r}")
    output = given.pop("output", None)
    if output is not None and not isinstance(output, str):
        raise Failure(f"{where}: output is a file name, not {output!r}")
    own = {**defaults.own, **{name: f"{where}: {name}" for name in given}}
    place = Path(output) if output is not None else None
    return Wanted(where, {**defaults.arguments, **given}, defaults.pictures, seed, place, own)


def read_pictures(images: Iterable[str]) -> list[tuple[str, Image]]:
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


def to_request(wanted: Wanted, omni: Omni) -> tuple[Any, Any]:
    """The prompt dict and the sampling parameters of a request.

    Raises:
        Failure: the pipeline does not take what is asked for, or works on a picture and there is none.
    """
    from porter.parity.request import to_request as split

    takes = [name for name, item in omni.parameters.items() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    is_open = len(takes) < len(omni.parameters)
    arguments = dict(wanted.arguments)
    if "num_frames" in arguments and "num_frames" not in takes:
        arguments.update({name: arguments.pop("num_frames") for name in FRAME_COUNTS if name in takes})
    for name in [*arguments, *(["generator"] if wanted.seed is not None else [])]:
        if name not in takes and not is_open:
            option = "--seed" if name == "generator" else wanted.own.get(name, name)
            raise Failure(f"{option}: {omni.name} takes no {name}; it takes {', '.join(takes)}")
    media = {**_media(wanted.pictures, takes), **_files(arguments)}
    needs = getattr(omni.pipeline, "support_image_input", False) or _required(omni, "image")
    if needs and "image" in takes and not media and not arguments.keys() - OPTIONS.keys():
        raise Failure(f"{wanted.where or '--image'}: {omni.name} works on a picture")
    prompt, params = split({**arguments, **media})
    params.seed = wanted.seed
    return prompt, params


def _required(omni: Omni, name: str) -> bool:
    return name in omni.parameters and omni.parameters[name].default is inspect.Parameter.empty


def _media(pictures: list[tuple[str, Image]], takes: list[str]) -> dict[str, Any]:
    first = next((name for name in takes if name in ("image", "images")), None)
    first = first or next((name for name in takes if name.endswith(("_image", "_images"))), None)
    found: dict[str, list[Image]] = {}
    for name, picture in pictures:
        if (name or first) not in takes:
            raise Failure(f"--image: the pipeline takes no {name or 'picture'}; it takes {', '.join(takes)}")
        found.setdefault(name or str(first), []).append(picture)
    return {name: items[0] if len(items) == 1 else items for name, items in found.items()}


def _files(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the pictures that are named as files out of the arguments, opened."""
    from porter.runtime import RequestError
    from porter.runtime.inputs.media import decode_media

    named = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, str | list) and "prompt" not in name and name.endswith(("image", "images", "mask"))
    }
    for name in named:
        del arguments[name]
    try:
        return decode_media(named)
    except RequestError as error:
        raise Failure(str(error)) from error
