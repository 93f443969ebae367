"""Stands in for vLLM-Omni's helper of this name: pictures made up."""

from __future__ import annotations

import base64
import io

from PIL import Image


def generate_synthetic_image(width: int, height: int, seed: int = 0) -> dict[str, str]:
    """A grey picture, as base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (seed % 256, 128, 128)).save(buffer, "JPEG")
    return {"base64": base64.b64encode(buffer.getvalue()).decode()}
