"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MEBIBYTE = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """What the server allows and how much of it.

    Attributes:
        model_names: names that requests may give the model; the first is what it is called in answers.
        api_keys: any of them is needed under ``/v1`` and for ``/metrics``; none: no key is needed.
        max_num_seqs: requests that run side by side, step by step.
        max_queue: requests that wait; one more is answered with 429.
        max_body_bytes: size of a request's body.
        max_generated_image_size: pixels of a picture or a frame that may be asked for.
        min_side: the least width and height that may be asked for.
        max_num_frames: frames of a video that may be asked for.
        max_prompt_length: characters of a prompt.
        max_input_pixels: of a picture that comes with a request; what is larger is not decoded.
        max_input_images: pictures of one request.
        allowed_media_domains: hosts that pictures may be fetched from, private ones too; None: any public one.
        allowed_local_media_path: folder that ``file://`` URLs may lead into; None: none.
        fetch_seconds: for one picture.
        sync_seconds: for one video of ``/v1/videos/sync``.
        shutdown_seconds: to finish what is running when the server is told to stop.
        video_dir: where videos are kept; None: a temporary folder.
        max_stored_videos: jobs that are remembered; the oldest that are done make room.
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    max_num_seqs: int = 8
    max_queue: int = 64
    max_body_bytes: int = 64 * MEBIBYTE
    max_generated_image_size: int = 4096 * 4096
    min_side: int = 8
    max_num_frames: int = 1024
    max_prompt_length: int = 32_000
    max_input_pixels: int = 64 * 1024 * 1024
    max_input_images: int = 16
    allowed_media_domains: frozenset[str] | None = None
    allowed_local_media_path: Path | None = None
    fetch_seconds: float = 30.0
    sync_seconds: float = 1800.0
    shutdown_seconds: float = 30.0
    video_dir: Path | None = None
    max_stored_videos: int = field(default=100)
