"""The first picture of an output as a PNG data URI, for the report."""

from __future__ import annotations

import base64
import io

import numpy as np
import PIL.Image

from porter.parity.capture import Capture
from porter.parity.flatten import to_numpy
from porter.parity.results import Pictures

_LEAST_SIDE = 128


def pictures(reference: Capture, port: Capture) -> Pictures | None:
    """Both sides' first picture and their difference, stretched to full contrast; None if there is none."""
    mine, its = _first(reference), _first(port)
    if mine is None:
        return None
    found = Pictures(reference=_encode(mine))
    if its is not None:
        found.port = _encode(its)
        if its.shape == mine.shape:
            delta = np.abs(mine.astype(np.int16) - its.astype(np.int16))
            found.difference = _encode((delta * (255 / max(1, int(delta.max())))).astype(np.uint8))
    return found


def _first(record: Capture) -> np.ndarray | None:
    """The first picture as height × width × 3 bytes."""
    event = next((event for event in record.events if event.name == "output"), None)
    leaf = next(iter(event.values.values()), None) if event else None
    if leaf is None or not hasattr(leaf, "shape"):
        return None
    array = to_numpy(leaf)
    if array.ndim < 3:
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
