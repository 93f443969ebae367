"""Pictures that come with a request: uploaded, as base64, or behind a URL."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import PIL.Image

from porter.serve.errors import ApiError, bad_request
from porter.serve.fetch import FetchError, FetchPolicy, fetch
from porter.serve.settings import ServerSettings

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# What PIL raises for files that are cut off, or no pictures at all.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, MemoryError)


def decode_picture(data: bytes, field: str, max_pixels: int) -> PIL.Image.Image:
    """The picture in a file.

    Raises:
        ApiError: it is none, cut off, or has more pixels than may be decoded.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                raise _too_large(field, max_pixels)
            picture.load()
            return _plain(picture)
    except PIL.Image.DecompressionBombError as error:
        raise _too_large(field, max_pixels) from error
    except _UNREADABLE as error:
        raise bad_request(f"{field}: not a picture that can be read ({', '.join(FORMATS)})", field) from error


def _too_large(field: str, max_pixels: int) -> ApiError:
    return ApiError(413, f"{field}: a picture of more than {max_pixels} pixels", field)


def _plain(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode in ("L", "RGB", "RGBA"):
        return picture.copy()
    return picture.convert("RGBA" if "transparency" in picture.info or picture.mode in ("LA", "PA") else "RGB")


class PictureReader:
    """Reads pictures within the limits of a server.

    Args:
        settings: those limits.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.max_pixels = settings.max_input_pixels
        self.policy = FetchPolicy(
            settings.allowed_media_domains,
            settings.allowed_local_media_path,
            settings.fetch_seconds,
            settings.max_body_bytes,
        )

    def read(self, source: Any, field: str) -> PIL.Image.Image:
        """A picture from the bytes of a file, a ``data:`` URL, an ``http(s):`` or ``file:`` URL, or bare base64.

        Blocks while it fetches.

        Raises:
            ApiError: it cannot be read, or may not be fetched; the error names ``field``.
        """
        if isinstance(source, bytes | bytearray):
            return decode_picture(bytes(source), field, self.max_pixels)
        if not isinstance(source, str) or not source.strip():
            raise bad_request(f"{field}: a picture is a file, a URL or base64", field)
        return decode_picture(self._bytes(source.strip(), field), field, self.max_pixels)

    def _bytes(self, source: str, field: str) -> bytes:
        if source.startswith("data:"):
            head, comma, source = source.partition(",")
            if not comma or not head.endswith(";base64"):
                raise bad_request(f"{field}: write a data URL as data:image/png;base64,…", field)
        elif "://" in source[:16] or source.startswith("file:"):
            try:
                return fetch(source, self.policy)
            except FetchError as error:
                raise bad_request(f"{field}: {error}", field) from error
        try:
            return base64.b64decode(source, validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad_request(f"{field}: not a URL, and not base64", field) from error
