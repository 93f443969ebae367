"""Marker interfaces: what a pipeline class says about itself."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable


@runtime_checkable
class SupportImageInput(Protocol):
    """The pipeline takes images."""

    support_image_input: ClassVar[bool] = True
    color_format: ClassVar[str] = "RGB"


@runtime_checkable
class SupportAudioInput(Protocol):
    """The pipeline takes audio."""

    support_audio_input: ClassVar[bool] = True


@runtime_checkable
class SupportAudioOutput(Protocol):
    """The pipeline makes audio."""

    support_audio_output: ClassVar[bool] = True


@runtime_checkable
class SupportsComponentDiscovery(Protocol):
    """The pipeline names its parts, as dotted attribute paths, for offloading, sharding and compilation."""

    _dit_modules: ClassVar[list[str]]
    _encoder_modules: ClassVar[list[str]]
    _vae_modules: ClassVar[list[str]]
    _resident_modules: ClassVar[list[str]] = []


@runtime_checkable
class SupportsStepExecution(Protocol):
    """The pipeline can run one denoising step at a time, its state held by the caller."""

    supports_step_execution: ClassVar[bool] = True

    def prepare_encode(self, state: Any, **kwargs: Any) -> Any:
        """Set the request's state up: embeddings, latents, timesteps."""
        ...

    def denoise_step(self, input_batch: Any, *, states: Any = None, **kwargs: Any) -> Any:
        """One prediction for a batch of requests."""
        ...

    def step_scheduler(self, state: Any, noise_pred: Any, **kwargs: Any) -> None:
        """One scheduler step of one request."""
        ...

    def post_decode(self, state: Any, **kwargs: Any) -> Any:
        """Decode the finished latents."""
        ...


def supports_step_execution(pipeline: object) -> bool:
    """Whether ``pipeline`` can run step by step."""
    return isinstance(pipeline, SupportsStepExecution)
