"""What the engine expects of a model's class besides what a port says itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from porter.omni.card import Card
from porter.omni.log import logger


def adapt(cls: Any, card: Card) -> Any:
    """The class of a port, told what comes out of it, and with a warm-up that may be refused."""
    if card.kind == "audio" and not hasattr(cls, "support_audio_output"):
        cls.support_audio_output = True
    cls.forward = _forward(cls.forward, cls.__name__)
    return cls


def pre_process(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A pre-processing hook that leaves a warm-up request alone which is not for it."""

    @functools.wraps(hook)
    def processed(request: Any) -> Any:
        try:
            return hook(request)
        except Exception:
            if not request.is_dummy_run():
                raise
            return request

    return processed


def _forward(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``forward``, except that a refused warm-up request is told and not an error.

    The engine warms every model up with one request. A pipeline that takes its prompt as JSON, or a model whose
    positions were learned for one number of frames, cannot take it, which tells nothing about the port; but the engine
    would not start. Too little memory does tell something.
    """

    @functools.wraps(forward)
    def started(self: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return forward(self, req, *args, **kwargs)
        except Exception as error:
            if not req.is_dummy_run() or isinstance(error, torch.OutOfMemoryError):
                raise
            from vllm_omni.diffusion.data import DiffusionOutput

            what = f"{type(error).__name__}: {error}"
            logger.warning("porter: %s does not take the engine's warm-up request and starts cold: %s", name, what)
            return DiffusionOutput(output=torch.zeros(1))

    return started
