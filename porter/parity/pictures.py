"""The first picture of an output, kept as it is and written as a PNG data URI when a page asks for it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from pydantic import BaseModel

from porter.parity.capture import Capture
from porter.parity.flatten import to_numpy

_LEAST_SIDE = 128


class Pictures(BaseModel):
    """The first picture of an output, on both sides, as PNG data URIs; empty where there is none."""

    reference: str = ""
    port: str = ""
    difference: str = ""
    """Stretched to full contrast."""


@dataclass(frozen=True)
class RawPictures:
    """The first array of an output on both sides, as it came; None: the port gave none."""

    reference: np.ndarray
    port: np.ndarray | None

    def encode(self) -> Pictures:
        """Both sides and their difference, for a page; empty where it is no picture."""
        mine, its = (None if array is None else _picture(array) for array in (self.reference, self.port))
        if mine is None:
            return Pictures()
        found = Pictures(reference=_encode(mine))
        if its is not None:
            found.port = _encode(its)
            if its.shape == mine.shape:
                delta = np.abs(mine.astype(np.int16) - its.astype(np.int16))
                found.difference = _encode((delta * (255 / max(1, int(delta.max())))).astype(np.uint8))
        return found


def pictures(reference: Capture, port: Capture) -> RawPictures | None:
    """What may be both sides' first picture; None if the reference made none."""
    mine = _first(reference)
    return None if mine is None else RawPictures(mine, _first(port))


def _first(record: Capture) -> np.ndarray | None:
    event = next((event for event in record.events if event.name == "output"), None)
    leaf = next(iter(event.values.values()), None) if event else None
    if not isinstance(leaf, torch.Tensor | np.ndarray) or leaf.ndim < 3:
        return None
    return to_numpy(leaf) if all(leaf.shape) else None  # some pipelines make pictures of no width if they are asked to


def _picture(array: np.ndarray) -> np.ndarray | None:
    """The first picture in an array as height × width × 3 bytes; None if there is none."""
    array = array.reshape(-1, *array.shape[-3:])[0]
    if array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.shape[-1] not in (1, 3, 4) or not np.isfinite(array.astype(np.float64)).all():
        return None
    if array.dtype != np.uint8:
        array = (np.clip(array.astype(np.float64), 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]


def _encode(array: np.ndarray) -> str:
    image = PIL.Image.fromarray(np.ascontiguousarray(array))
    factor = max(1, _LEAST_SIDE // min(image.size))
    image = image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
