"""Timing of a pipeline's stages."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from porter.runtime.logger import init_logger

logger = init_logger(__name__)


class DiffusionPipelineProfilerMixin:
    """Wraps methods of a pipeline and of its components so that their time is recorded."""

    _PROFILER_TARGETS: ClassVar[list[str]] = [
        "vae.encode",
        "vae.decode",
        "diffuse",
        "text_encoder.forward",
        "tokenizer.forward",
    ]

    def setup_diffusion_pipeline_profiler(
        self, profiler_targets: list[str] | None = None, enable_diffusion_pipeline_profiler: bool = False
    ) -> None:
        """Start recording ``forward`` and the targets (dotted method paths); those that do not exist are logged."""
        self.enable_diffusion_pipeline_profiler = enable_diffusion_pipeline_profiler
        self._stage_durations: dict[str, float] = {}
        if not enable_diffusion_pipeline_profiler:
            return
        targets = ["forward", *(self._PROFILER_TARGETS if profiler_targets is None else profiler_targets)]
        for path in dict.fromkeys(targets):
            owner_path, _, method_name = path.rpartition(".")
            owner = _resolve(self, owner_path)
            method = getattr(owner, method_name, None)
            if callable(method):
                setattr(owner, method_name, self._timed(f"{type(self).__name__}.{path}", method, path == "forward"))
            else:
                logger.info("profiler: %s has no %s", type(self).__name__, path)

    @property
    def stage_durations(self) -> dict[str, float]:
        """Seconds per stage of the last ``forward``; empty if the profiler is off."""
        return dict(getattr(self, "_stage_durations", {}))

    def clear_profiler_records(self) -> None:
        """Forget what was recorded."""
        self._stage_durations.clear()

    def _timed(self, name: str, method: Callable[..., Any], is_whole: bool) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if is_whole:
                self.clear_profiler_records()
            _synchronize()
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                _synchronize()
                elapsed = time.perf_counter() - start
                self._stage_durations[name] = self._stage_durations.get(name, 0.0) + elapsed

        return timed


def _resolve(root: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        root = getattr(root, name, None)
    return root


def _synchronize() -> None:
    # Kernels run behind the Python code: without this a stage would be charged with its predecessor's work.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
