"""Pictures of a request: given as PIL objects, file names or bytes, decoded before anything is computed."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import PIL.Image

from porter.runtime.errors import RequestError

# Arguments whose text is a file name.
_PICTURE = re.compile(r"(^|_)(image|img|mask|frame)s?(_|\[|$)")
# What PIL raises for files that are missing, cut off, no pictures at all, or far too large.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError)


def decode_media(media: Any) -> dict[str, Any]:
    """The multi-modal data of a prompt with every picture decoded; what is no picture stays as it is.

    Args:
        media: argument name to a PIL image, a file name, the bytes of a file, or (nested) lists of those; tensors and
            arrays pass.

    Raises:
        RequestError: this is no dict, or a picture cannot be read; the message names the argument.
    """
    if not isinstance(media, dict):
        raise RequestError(f"multi_modal_data is a dict of argument names and pictures, not {type(media).__name__}")
    return {name: _decode(str(name), value) for name, value in media.items()}


def _decode(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_decode(f"{name}[{index}]", item) for index, item in enumerate(value))
    named = isinstance(value, (str, os.PathLike)) and _PICTURE.search(name) is not None
    try:
        if named or (isinstance(value, (bytes, bytearray)) and _PICTURE.search(name)):
            with PIL.Image.open(Path(value) if named else io.BytesIO(value)) as picture:
                picture.load()
                return picture.copy()
        if isinstance(value, PIL.Image.Image):
            value.load()  # PIL decodes late: a file that was cut off opens without complaint
    except _UNREADABLE as error:
        shown = repr(os.fspath(value)) if named else "this"
        reason = " ".join(str(error).split())
        raise RequestError(f"{name}: {shown} is not a picture that can be read ({reason})") from error
    return value
