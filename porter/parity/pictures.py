"""The first picture of an output, kept as it is and written as a PNG data URI when a page asks for it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import PIL.Image
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
    """The first picture of an output on both sides, each height × width × 3 bytes; None: the port gave none."""

    reference: np.ndarray
    port: np.ndarray | None

    def encode(self) -> Pictures:
        """Both sides and their difference, for a page."""
        found = Pictures(reference=_encode(self.reference))
        if self.port is not None:
            found.port = _encode(self.port)
            if self.port.shape == self.reference.shape:
                delta = np.abs(self.reference.astype(np.int16) - self.port.astype(np.int16))
                found.difference = _encode((delta * (255 / max(1, int(delta.max())))).astype(np.uint8))
        return found


def pictures(reference: Capture, port: Capture) -> RawPictures | None:
    """Both sides' first picture; None if the reference made none."""
    mine = _first(reference)
    return None if mine is None else RawPictures(mine, _first(port))


def _first(record: Capture) -> np.ndarray | None:
    """The first picture as height × width × 3 bytes."""
    event = next((event for event in record.events if event.name == "output"), None)
    leaf = next(iter(event.values.values()), None) if event else None
    if leaf is None or not hasattr(leaf, "shape"):
        return None
    array = to_numpy(leaf)
    if array.ndim < 3 or not array.size:  # some pipelines make pictures of no width if they are asked to
        return None
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
