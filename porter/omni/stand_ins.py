"""What a pipeline may work on besides a prompt, made up: for a warm-up request, which has at most a picture.

Kinds are told by the last word of a parameter's name, the way that diffusers names what it takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import PIL.Image
import torch

# How pipelines call the number of frames.
FRAME_COUNTS = ("num_frames", "frames", "video_length")
SOUNDS = ("audio", "waveforms")
_SAMPLING_RATE = 44100


def stand_ins(pipeline: Any, width: int, height: int, frames: int) -> dict[str, Any]:
    """Values for all parameters of a pipeline that name pictures, masks, videos, sounds, their parts, or labels.

    Args:
        pipeline: a port, loaded.
        width: of pictures, masks and frames.
        height: of the same.
        frames: length of videos.
    """
    picture = PIL.Image.new("RGB", (width, height))
    kinds: dict[str, Callable[[], Any]] = {
        "image": lambda: picture,
        "images": lambda: [picture],
        "mask": lambda: PIL.Image.new("L", (width, height), 255),
        "video": lambda: [picture] * frames,
        "frames": lambda: [picture] * frames,
        "audio": lambda: _sound(pipeline),
        "waveforms": lambda: _sound(pipeline),
        "labels": lambda: [0],
        "seconds": lambda: 1.0,
    }
    made = {}
    for name, parameter in parameters(pipeline).items():
        last = name.rpartition("_")[2]
        kind = "mask" if "mask" in name.split("_") and last in ("mask", "image") else last
        if name in FRAME_COUNTS or "adapter" in name:  # pictures for an adapter are for a model that may not be there
            continue
        if kind in SOUNDS or (kind in kinds and not _only_tensors(parameter)):
            made[name] = 0.0 if kind == "seconds" and "start" in name.split("_") else kinds[kind]()
    return made


def default_frames(pipeline: Any) -> int | None:
    """How many frames a pipeline makes if it is not told; None if it makes none, or finds out itself."""
    for name, parameter in parameters(pipeline).items():
        if name in FRAME_COUNTS and isinstance(parameter.default, int):
            return parameter.default
    return None


def parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    """What a port takes, by the names of diffusers."""
    taking = inspect.signature(getattr(pipeline, "prepare_encode", pipeline.forward)).parameters
    return {name: parameter for name, parameter in taking.items() if name not in ("self", "req", "state")}


def _only_tensors(parameter: inspect.Parameter) -> bool:
    """Whether a parameter takes tensors and no pictures: they would be latents, of a shape that only it knows."""
    said = str(parameter.annotation)
    return "Tensor" in said and "Image" not in said


def _sound(pipeline: Any) -> torch.Tensor:
    """A second of silence: (batch, channels, samples)."""
    config = getattr(getattr(pipeline, "vae", None), "config", {})
    return torch.zeros(1, config.get("audio_channels", 2), config.get("sampling_rate", _SAMPLING_RATE))
