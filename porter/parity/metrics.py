"""How far two arrays are apart.

Exact comparison comes first; the rest says how much and of what kind a difference is. Cosine alone is blind to scale
and picture scores to drift below a pixel, so all of them are reported side by side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import BaseModel

_LOWEST = 1e-12


class Metrics(BaseModel):
    """The distance between two arrays of one shape; infinities stand for what cannot be compared."""

    equal: bool
    max_abs: float = 0.0
    max_rel: float = 0.0
    rel_l2: float = 0.0
    cosine: float = 1.0
    psnr: float | None = None
    ssim: float | None = None
    log_spectral: float | None = None


def bitwise_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Same shape and values. NaN equals NaN here: whether a NaN is acceptable is another question."""
    if a.shape != b.shape:
        return False
    floating = a.dtype.kind in "fc" and b.dtype.kind in "fc"
    return bool(np.array_equal(a, b, equal_nan=floating))


def measure(reference: np.ndarray, port: np.ndarray, kind: str = "tensor") -> Metrics:
    """Compare two arrays; ``kind`` is tensor, image, video or audio and adds the scores of that medium."""
    if reference.shape != port.shape:
        return _incomparable()
    if bitwise_equal(reference, port):
        found = Metrics(equal=True)
        return found if kind == "tensor" else found.model_copy(update=_perfect(kind))
    a, b = _wide(reference), _wide(port)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        same = np.isfinite(a) == np.isfinite(b)
        if not (same.all() and np.array_equal(a[~np.isfinite(a)], b[~np.isfinite(b)], equal_nan=True)):
            return _incomparable()
        finite = np.isfinite(a)
        a, b = a[finite], b[finite]
    delta = np.abs(a - b)
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    cosine = float(np.vdot(a, b).real) / (norm_a * norm_b) if norm_a and norm_b else float(norm_a == norm_b)
    found = Metrics(
        equal=False,
        max_abs=float(delta.max(initial=0.0)),
        max_rel=float((delta / np.maximum(np.abs(a), _LOWEST)).max(initial=0.0)),
        rel_l2=float(np.linalg.norm(delta)) / max(norm_a, _LOWEST),
        cosine=cosine,
    )
    return found if kind == "tensor" else found.model_copy(update=_scores(reference, port, kind))


def psnr(reference: np.ndarray, port: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio in decibels; infinite where nothing differs."""
    error = float(np.mean((_wide(reference) - _wide(port)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(reference: np.ndarray, port: np.ndarray, data_range: float) -> float | None:
    """Structural similarity, the mean over pictures (… × height × width × channels); None below 3 × 3 pixels."""
    from skimage.metrics import structural_similarity

    a, b = _pictures(reference), _pictures(port)
    window = min(7, *a.shape[1:3])
    window -= 1 - window % 2
    if window < 3:
        return None
    scores = [
        structural_similarity(x, y, data_range=data_range, channel_axis=-1, win_size=window) for x, y in zip(a, b)
    ]
    return float(np.mean(scores))


def log_spectral_distance(reference: np.ndarray, port: np.ndarray, window: int = 256) -> float:
    """Root mean square of the difference of log power spectra, in decibels, over windows of the last axis."""
    a, b = _spectrum(_wide(reference), window), _spectrum(_wide(port), window)
    return float(np.mean(np.sqrt(np.mean((a - b) ** 2, axis=-1))))


def _spectrum(signal: np.ndarray, window: int) -> np.ndarray:
    window = max(2, min(window, signal.shape[-1]))
    frames = np.lib.stride_tricks.sliding_window_view(signal, window, axis=-1)[..., :: max(1, window // 2), :]
    power = np.abs(np.fft.rfft(frames * np.hanning(window + 2)[1:-1], axis=-1)) ** 2
    return 10 * np.log10(np.maximum(power, 1e-10))


def _scores(reference: np.ndarray, port: np.ndarray, kind: str) -> dict[str, Any]:
    if kind == "audio":
        return {"log_spectral": log_spectral_distance(reference, port)} if reference.ndim else {}
    a, b = _channels_last(reference), _channels_last(port)
    if a.ndim < 2:
        return {}
    data_range = 255.0 if reference.dtype == np.uint8 else max(1.0, float(_wide(a).max() - _wide(a).min()))
    return {"psnr": psnr(a, b, data_range), "ssim": ssim(a, b, data_range)}


def _perfect(kind: str) -> dict[str, Any]:
    return {"log_spectral": 0.0} if kind == "audio" else {"psnr": math.inf, "ssim": 1.0}


def _incomparable() -> Metrics:
    return Metrics(equal=False, max_abs=math.inf, max_rel=math.inf, rel_l2=math.inf, cosine=0.0)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """Move the channels of a torch-style array (… × channels × height × width) to the end."""
    if array.ndim >= 3 and array.shape[-1] not in (1, 3, 4) and array.shape[-3] in (1, 3, 4):
        return np.moveaxis(array, -3, -1)
    return array


def _pictures(array: np.ndarray) -> np.ndarray:
    wide = _wide(array)
    if wide.ndim == 2:
        wide = wide[..., None]
    return wide.reshape(-1, *wide.shape[-3:])
