"""Results as bytes: pictures, videos, sound."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from porter.cli.save import DEFAULT_SAMPLE_RATE, channels, images, pcm_bytes, save, wav_bytes
from porter.runtime.outputs import OmniRequestOutput

IMAGE_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "jpg": "image/jpeg", "webp": "image/webp"}
AUDIO_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
}
# Formats that PyAV writes: codec and container.
_CODECS = {"flac": ("flac", "flac"), "mp3": ("libmp3lame", "mp3"), "opus": ("libopus", "ogg")}
_OPUS_RATE = 48000


def pictures_of(result: OmniRequestOutput) -> list[PIL.Image.Image]:
    """All pictures of a result; of a video, its frames."""
    return images(result.images if result.frames is None else result.frames)


def encode_picture(picture: PIL.Image.Image, form: str, compression: int = 100) -> bytes:
    """A picture as a file.

    Args:
        picture: the picture.
        form: png, jpeg, jpg or webp.
        compression: 0 to 100: quality of jpeg and webp; of png, how little time is spent on making it small.
    """
    buffer = io.BytesIO()
    if form == "png":
        picture.save(buffer, "PNG", compress_level=max(0, min(9, 9 - compression // 11)))
    elif form == "webp":
        picture.save(buffer, "WEBP", quality=compression)
    else:
        if "A" in picture.mode:
            white = PIL.Image.new("RGB", picture.size, "white")
            white.paste(picture, mask=picture.getchannel("A"))
            picture = white
        picture.convert("RGB").save(buffer, "JPEG", quality=compression)
    return buffer.getvalue()


def b64(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode("ascii")


def encode_videos(result: OmniRequestOutput, parameters: Mapping[str, Any]) -> list[bytes]:
    """Each video of a result as an MP4 file."""
    with tempfile.TemporaryDirectory(prefix="porter-") as folder:
        return [path.read_bytes() for path in save(result, Path(folder) / "video.mp4", parameters)]


def encode_sound(result: OmniRequestOutput, form: str, speed: float = 1.0) -> bytes:
    """The first sound of a result as a file (``pcm``: no file, but numbers of 16 bits)."""
    samples = channels(result.audios)[0]
    rate = int(result.audio_sample_rate or DEFAULT_SAMPLE_RATE)
    if speed != 1.0:
        samples = _resampled(samples, round(samples.shape[-1] / speed))
    if form == "wav":
        return wav_bytes(samples, rate)
    if form == "pcm":
        return pcm_bytes(samples)
    return _with_codec(samples, rate, *_CODECS[form])


def _resampled(samples: np.ndarray, length: int) -> np.ndarray:
    """As many samples as asked for, in between read off straight lines: faster or slower, and higher or lower."""
    places = np.linspace(0, samples.shape[-1] - 1, max(1, length))
    return np.stack([np.interp(places, np.arange(samples.shape[-1]), channel) for channel in samples])


def _with_codec(samples: np.ndarray, rate: int, codec: str, container: str) -> bytes:
    import av

    if codec == "libopus" and rate != _OPUS_RATE:
        samples, rate = _resampled(samples, round(samples.shape[-1] * _OPUS_RATE / rate)), _OPUS_RATE
    layout = "mono" if samples.shape[0] == 1 else "stereo"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        data = np.ascontiguousarray(samples[:2].astype(np.float32))
        frame = av.AudioFrame.from_ndarray(data, format="fltp", layout=layout)
        frame.sample_rate = rate
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()
