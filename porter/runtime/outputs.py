"""What ``Omni.generate`` returns for each request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Keys by which a post-processing hook can name its results; any of them in a dict makes it an envelope.
_ENVELOPE_KEYS = ("images", "video", "frames", "audio", "audios", "audio_sample_rate", "fps")


@dataclass
class OmniRequestOutput:
    """The result of one request.

    Attributes:
        request_id: the id that the engine gave the request.
        prompt: the prompt as the caller passed it.
        output: what the pipeline's ``forward`` put into ``DiffusionOutput.output``: raw tensors.
        images: pictures after the post-processing hook (a list, tensor or array, as the hook returned it).
        frames: video frames after the hook, None if there are none.
        audios: audio after the hook, None if there is none.
        audio_sample_rate: samples per second of ``audios``.
        fps: frames per second of ``frames``.
        multimodal_output: whatever else the hook handed out beside pictures, frames and audio, by its name in
            diffusers' output (camera poses, a mask, the latents of a decoded video).
        stage_durations: seconds spent per stage; empty unless the profiler is on.
        peak_memory_mb: on an accelerator the peak of allocated memory during the request; on the CPU the peak
            resident size of the process.
        finished: always true: the runtime does not stream.
    """

    request_id: str = ""
    prompt: Any = None
    output: Any = None
    images: Any = field(default_factory=list)
    frames: Any = None
    audios: Any = None
    audio_sample_rate: int | None = None
    fps: float | None = None
    multimodal_output: dict[str, Any] = field(default_factory=dict)
    stage_durations: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    finished: bool = True
    error: str | None = None

    @property
    def video(self) -> Any:
        """Same as ``frames``."""
        return self.frames

    @property
    def audio(self) -> Any:
        """Same as ``audios``."""
        return self.audios

    def media(self) -> list[Any]:
        """Pictures, frames, sound and what else was named, those there are; the raw output if there are none."""
        found = [self.images, self.frames, self.audios, *self.multimodal_output.values()]
        found = [item for item in found if item is not None and (hasattr(item, "shape") or len(item))]
        return found or [self.output]

    def set_media(self, processed: Any) -> None:
        """Sort a post-processing hook's return value into ``images``, ``frames``, ``audios`` and the rest.

        A dict with any of the keys images, video, frames, audio, audios, audio_sample_rate or fps names its
        parts; anything else is the pictures (a lone picture becomes a list of one).
        """
        if isinstance(processed, dict) and any(key in processed for key in _ENVELOPE_KEYS):
            self.images = processed.get("images", [])
            self.frames = _first(processed, "frames", "video")
            self.audios = _first(processed, "audios", "audio")
            self.audio_sample_rate = processed.get("audio_sample_rate")
            self.fps = processed.get("fps")
            self.multimodal_output = {key: value for key, value in processed.items() if key not in _ENVELOPE_KEYS}
        elif processed is None:
            self.images = []
        else:
            is_picture = hasattr(processed, "save") and hasattr(processed, "size")
            self.images = [processed] if is_picture else processed


def _first(mapping: dict[str, Any], *keys: str) -> Any:
    return next((mapping[key] for key in keys if mapping.get(key) is not None), None)
