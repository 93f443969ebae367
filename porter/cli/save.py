"""Write what a port generated: PNG or WebP, MP4, WAV, with the parameters in the file's metadata."""

from __future__ import annotations

import io
import json
import struct
import wave
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

SUFFIXES = {"image": (".png", ".webp"), "video": (".mp4",), "audio": (".wav",)}
DEFAULT_FPS = 24
DEFAULT_SAMPLE_RATE = 44100


def kind_of(result: Any) -> str:
    """``video``, ``audio`` or ``image``; a video may carry sound."""
    if result.frames is not None:
        return "video"
    return "audio" if result.audios is not None else "image"


def save(result: Any, path: Path, parameters: Mapping[str, Any]) -> list[Path]:
    """Write every output of a result; several outputs are numbered: ``name_1.png``.

    Raises:
        ValueError: the output is not of the kind that the file's name says, or is no media at all.
    """
    kind = kind_of(result)
    if path.suffix.lower() not in SUFFIXES[kind]:
        raise ValueError(f"{path}: this pipeline makes {kind}s; name a file in {' or '.join(SUFFIXES[kind])}")
    writers: dict[str, Callable[[], list[Path]]] = {
        "image": lambda: _each(path, images(result.images), lambda image, to: _write_image(image, to, parameters)),
        "video": lambda: _videos(result, path, parameters),
        "audio": lambda: _sounds(result, path, parameters),
    }
    return writers[kind]()


def _each(path: Path, items: list[Any], write: Callable[[Any, Path], object]) -> list[Path]:
    places = [path] if len(items) == 1 else [path.with_stem(f"{path.stem}_{n}") for n in range(1, len(items) + 1)]
    for item, place in zip(items, places, strict=True):
        write(item, place)
    return places


def images(value: Any) -> list[PIL.Image.Image]:
    """All pictures in a list (of lists) of pictures, an array or a tensor."""
    if isinstance(value, PIL.Image.Image):
        return [value]
    if isinstance(value, list | tuple):
        return [image for item in value for image in images(item)]
    array = as_array(value)
    if array.ndim < 3:
        raise ValueError(f"the output is no picture: its shape is {tuple(array.shape)}")
    array = as_pixels(array.reshape(-1, *array.shape[-3:]))
    return [PIL.Image.fromarray(picture) for picture in array]


def as_array(value: Any) -> np.ndarray:
    """A tensor, array, picture or list of them as one array."""
    if isinstance(value, torch.Tensor):
        return value.detach().float().cpu().numpy()
    if isinstance(value, list | tuple):
        return np.stack([as_array(item) for item in value])
    return np.asarray(value)


def as_pixels(array: np.ndarray) -> np.ndarray:
    """… × height × width × 3 bytes, from floats in 0…1 or bytes, channels first or last."""
    if array.shape[-1] not in (1, 3, 4) and array.shape[-3] in (1, 3, 4):
        array = np.moveaxis(array, -3, -1)
    if array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"the output is no picture: its shape is {tuple(array.shape)}")
    if array.dtype != np.uint8:
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]


def _write_image(image: PIL.Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    text = json.dumps(dict(parameters), ensure_ascii=False, sort_keys=True)
    if path.suffix.lower() == ".png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("parameters", text)
        image.save(path, pnginfo=info)
    else:
        exif = PIL.Image.Exif()
        exif[0x010E] = text  # ImageDescription
        image.save(path, lossless=True, exif=exif)


def _videos(result: Any, path: Path, parameters: Mapping[str, Any]) -> list[Path]:
    frames = result.frames
    nested = isinstance(frames, list | tuple) and not isinstance(frames[0], PIL.Image.Image)
    batch = list(frames) if nested else [frames]
    if not nested and not isinstance(frames, list | tuple):
        batch = list(as_array(frames)) if as_array(frames).ndim == 5 else [frames]
    sounds = channels(result.audios) if result.audios is not None else []
    rate = result.audio_sample_rate or DEFAULT_SAMPLE_RATE
    pairs = [(video, sounds[n] if n < len(sounds) else None) for n, video in enumerate(batch)]
    fps = result.fps or DEFAULT_FPS
    return _each(
        path, pairs, lambda pair, to: _write_video(as_pixels(as_array(pair[0])), pair[1], rate, to, fps, parameters)
    )


def _write_video(
    pixels: np.ndarray, sound: np.ndarray | None, rate: int, path: Path, fps: float, parameters: Mapping[str, Any]
) -> None:
    import av

    height, width = pixels.shape[1] // 2 * 2, pixels.shape[2] // 2 * 2  # yuv420p halves both
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = json.dumps(dict(parameters), ensure_ascii=False, sort_keys=True)
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        voice = container.add_stream("aac", rate=rate) if sound is not None else None
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if voice is not None and sound is not None:
            layout = "mono" if len(sound) == 1 else "stereo"
            data = np.ascontiguousarray(sound[:2].astype(np.float32))
            audio = av.AudioFrame.from_ndarray(data, format="fltp", layout=layout)
            audio.sample_rate = rate
            container.mux(voice.encode(audio))
            container.mux(voice.encode())


def _sounds(result: Any, path: Path, parameters: Mapping[str, Any]) -> list[Path]:
    rate = result.audio_sample_rate or DEFAULT_SAMPLE_RATE
    return _each(
        path, channels(result.audios), lambda samples, to: to.write_bytes(wav_bytes(samples, rate, parameters))
    )


def channels(value: Any) -> list[np.ndarray]:
    """One array of channels × samples for each sound."""
    array = as_array(value)
    if array.ndim == 1:
        array = array[None, None]
    elif array.ndim == 2:
        array = array[:, None] if array.shape[0] > 2 or array.shape[1] < array.shape[0] else array[None]
    return list(array.reshape(-1, *array.shape[-2:]))


def wav_bytes(samples: np.ndarray, rate: int, parameters: Mapping[str, Any] | None = None) -> bytes:
    """Channels × samples in -1…1 as a WAV file of 16 bits, with the parameters as its comment."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm_bytes(samples))
    data = buffer.getvalue()
    if not parameters:
        return data
    text = json.dumps(dict(parameters), ensure_ascii=False, sort_keys=True).encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    info = b"INFOICMT" + struct.pack("<I", len(text)) + text
    data += b"LIST" + struct.pack("<I", len(info)) + info
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def pcm_bytes(samples: np.ndarray) -> bytes:
    """Channels × samples in -1…1 as interleaved little-endian numbers of 16 bits."""
    return (samples.T.clip(-1, 1) * 32767).round().astype("<i2").tobytes()
