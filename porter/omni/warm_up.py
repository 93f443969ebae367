"""The request that the engine sends before it takes others: ports run it, or decline it in one line of the log.

It is the same for every model: 512×512, two steps, guidance 0, one frame, a picture if the model takes any. What a
pipeline needs besides is made up. One that still refuses (its prompt is JSON, say) tells nothing about the port, but
the engine would not start. Too little memory does tell something, and is an error as ever.
"""

from __future__ import annotations

import copy
import functools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from porter.omni.log import logger
from porter.omni.stand_ins import FRAME_COUNTS, default_frames, parameters, stand_ins

# Attribute of a pipeline while it runs the request, and entry of a state whose request was run.
_RUNNING, _RUN = "_porter_warms_up", "porter_warmed_up"


def survive(cls: Any) -> None:
    """Make the class of a port survive the engine's first request, whether it is run whole or in steps."""
    cls.forward = _forward(cls.forward, cls.__name__)
    if getattr(cls, "supports_step_execution", False):
        _in_steps(cls)


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
    @functools.wraps(forward)
    def started(self: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
        if not req.is_dummy_run():
            return forward(self, req, *args, **kwargs)
        setattr(self, _RUNNING, True)
        try:
            return forward(self, req, *args, **kwargs)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            refusal = error
            for tried in _completed(self, req):
                try:
                    return forward(self, tried, *args, **kwargs)
                except Exception as error:  # too little memory among them: these are larger than what was asked
                    refusal = error
            logger.warning(
                "porter: %s does not take the engine's warm-up request and starts cold: %s", name, _told(refusal)
            )
            return _nothing()
        finally:
            delattr(self, _RUNNING)

    return started


def _told(error: Exception) -> str:
    """What an exception says, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


def _completed(pipeline: Any, req: Any) -> Iterator[Any]:
    """The request with more of what the pipeline may need, one thing after the other.

    All that it may work on is made up; its picture stands in a list; it has as many frames as the pipeline makes by
    itself.
    """
    from vllm_omni.diffusion.registry import get_diffusion_pre_process_func

    [request] = req.requests
    hook = get_diffusion_pre_process_func(pipeline.od_config)
    sampling = request.sampling_params
    sides, frames, own = (sampling.width or 512, sampling.height or 512), sampling.num_frames, default_frames(pipeline)
    made = stand_ins(pipeline, *sides, frames)
    variants = [_with(request, made), _with(request, made, listed=True)]
    if own is not None and own != frames:
        counts = {name: own for name in parameters(pipeline) if name in FRAME_COUNTS}
        variants.append(_with(request, stand_ins(pipeline, *sides, own) | counts))
    for completed in variants:
        again = copy.copy(req)
        again.requests = [completed if hook is None else hook(completed)]
        yield again


def _with(request: Any, made: dict[str, Any], listed: bool = False) -> Any:
    """A copy of a request, not pre-processed, with further arguments; those that it has keep their values.

    ``listed`` puts single pictures into lists.
    """
    prompt: dict[str, Any] = {"prompt": request.prompt} if isinstance(request.prompt, str) else dict(request.prompt)
    prompt.pop("additional_information", None)
    media = prompt.get("multi_modal_data") or {}
    if listed:
        media = {name: [item] if isinstance(item, PIL.Image.Image) else item for name, item in media.items()}
        prompt["multi_modal_data"] = media
    completed = copy.copy(request)
    completed.prompt = prompt
    completed.sampling_params = copy.copy(request.sampling_params)
    extra = {name: value for name, value in made.items() if name not in media and name not in prompt}
    completed.sampling_params.extra_args = {**request.sampling_params.extra_args, **extra}
    return completed


def _in_steps(cls: Any) -> None:
    """Have a class run the request whole where its first step is prepared, so that it can be declined in one place."""

    @functools.wraps(cls.prepare_encode)
    def prepare_encode(self: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_omni.diffusion.request import OmniDiffusionRequest
        from vllm_omni.diffusion.worker.request_batch import DiffusionRequestBatch

        if hasattr(self, _RUNNING) or not OmniDiffusionRequest.is_dummy_run_request_id(state.request_id):
            return prepare(self, state, *args, **kwargs)
        whole = OmniDiffusionRequest(prompt=state.prompt, sampling_params=state.sampling, request_id=state.request_id)
        self.forward(DiffusionRequestBatch([whole]))
        state.latents, state.timesteps = torch.zeros(1, 1, device=self.device), torch.zeros(1)
        state.extra[_RUN] = True
        return state

    @functools.wraps(cls.denoise_step)
    def denoise_step(self: Any, batch: Any, *args: Any, states: Any, **kwargs: Any) -> Any:
        if all(_RUN in state.extra for state in states):
            return torch.cat([state.latents for state in states])
        return denoise(self, batch, *args, states=states, **kwargs)

    @functools.wraps(cls.step_scheduler)
    def step_scheduler(self: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        if _RUN not in state.extra:
            return schedule(self, state, *args, **kwargs)
        state.step_index += 1
        return None

    @functools.wraps(cls.post_decode)
    def post_decode(self: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        return decode(self, state, *args, **kwargs) if _RUN not in state.extra else _nothing()

    prepare, denoise, schedule, decode = cls.prepare_encode, cls.denoise_step, cls.step_scheduler, cls.post_decode
    cls.prepare_encode, cls.denoise_step = prepare_encode, denoise_step
    cls.step_scheduler, cls.post_decode = step_scheduler, post_decode


def _nothing() -> Any:
    from vllm_omni.diffusion.data import DiffusionOutput

    return DiffusionOutput(output=torch.zeros(1))
