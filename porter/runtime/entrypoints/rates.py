"""Frames and samples per second of a result, where the pipeline itself does not say them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from porter.runtime.outputs import OmniRequestOutput

if TYPE_CHECKING:
    from porter.runtime.entrypoints.omni import Omni

_FPS = ("frame_rate", "fps")
_SAMPLE_RATES = ("output_sampling_rate", "sampling_rate", "sample_rate")
_AUDIO_PARTS = ("vocoder", "audio_vae", "vae")


def fill_rates(result: OmniRequestOutput, omni: Omni, given: Mapping[str, Any]) -> None:
    """Fill ``fps`` and ``audio_sample_rate`` of a result in.

    Args:
        result: of a request to ``omni``.
        given: the arguments of that request; a frame rate among them wins over the pipeline's default.
    """
    asked = next((given[name] for name in _FPS if given.get(name) is not None), None)
    result.fps = result.fps or asked or _default_fps(omni)
    result.audio_sample_rate = result.audio_sample_rate or sample_rate(omni)


def _default_fps(omni: Omni) -> float | None:
    defaults = (omni.parameters[name].default for name in _FPS if name in omni.parameters)
    return next((value for value in defaults if isinstance(value, int | float)), None)


def sample_rate(omni: Omni) -> int | None:
    """Samples per second of the pipeline's sound, where it or a component's config states it."""
    for owner in _owners(getattr(omni.pipeline, "pipeline", omni.pipeline)):
        for name in _SAMPLE_RATES:
            if isinstance(rate := getattr(owner, name, None), int):
                return rate
    return None


def _owners(pipeline: Any) -> Iterator[Any]:
    yield pipeline
    for name in _AUDIO_PARTS:
        part = getattr(pipeline, name, None)
        yield from (getattr(part, "config", None), part)
