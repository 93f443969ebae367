"""Requests that take turns: their states, their steps, and their guidance."""

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from porter.runtime.diffusion.data import DiffusionOutput
from porter.runtime.diffusion.distributed.cfg_parallel import CFGParallelMixin
from porter.runtime.diffusion.distributed.parallel_state import get_cfg_group, get_classifier_free_guidance_rank
from porter.runtime.diffusion.request import OmniDiffusionRequest
from porter.runtime.diffusion.worker.input_batch import InputBatch
from porter.runtime.diffusion.worker.request_batch import DiffusionRequestBatch, split_diffusion_output_by_request
from porter.runtime.diffusion.worker.utils import StepRequestState
from porter.runtime.logger import init_logger

from .invariants import Invariants, holding
from .support import cache_branches, request_state

logger = init_logger(__name__)

# Environment variable for the MiB of results that a request may hold for its steps; 0: each step computes all anew.
HOISTING, HOISTING_LIMIT = "PORTER_HOISTING", 2048

# Attribute of a pipeline: the state of the request whose turn it is.
TURN = "_request_turn"


def run_request(pipeline: Any, req: DiffusionRequestBatch) -> DiffusionOutput | list[DiffusionOutput]:
    """Run a request from its first step to its last; a list for a pipeline that takes several at a time.

    Requests that differ in their texts and their noise alone are one call over all texts; others run one by one.
    """
    if not pipeline.supports_request_batch:
        return _run(pipeline, request_state(req))
    merged = merged_request(req.requests) if len(req.requests) > 1 else None
    if merged is None:
        return [_run(pipeline, request_state(DiffusionRequestBatch([request]))) for request in req.requests]
    output = _run(pipeline, request_state(DiffusionRequestBatch([merged])))
    return split_diffusion_output_by_request(output, req, num_outputs_per_prompt=1)


def _run(pipeline: Any, state: StepRequestState) -> DiffusionOutput:
    with _turn(pipeline, state):
        state = pipeline.prepare_encode(state)
        with pipeline.progress_bar(total=state.total_steps) as progress_bar:
            for _ in range(state.total_steps):
                pipeline.step_scheduler(state, pipeline.denoise_step(None, states=[state]))
                progress_bar.update()
        return pipeline.post_decode(state)


def merged_request(requests: Sequence[OmniDiffusionRequest]) -> OmniDiffusionRequest | None:
    """One request for all texts of several; None if they differ in more than texts and generators.

    A generator that draws for several outputs at once does not draw what it would for one after the other, so each
    request has one output.
    """
    prompts = [{"prompt": r.prompt} if isinstance(r.prompt, str) else dict(r.prompt) for r in requests]
    settings = [dict(vars(r.sampling_params)) for r in requests]
    generators = [held.pop("generator", None) for held in settings]
    for held in settings:
        held.pop("seed", None)
    if not all(isinstance(generator, torch.Generator) for generator in generators):
        return None
    if any(held.get("num_outputs_per_prompt") != 1 or not _alike(held, settings[0]) for held in settings):
        return None
    texts = list(prompts[0])
    if any(list(prompt) != texts or not all(isinstance(text, str) for text in prompt.values()) for prompt in prompts):
        return None
    first = copy.copy(requests[0])
    first.prompt = {name: [prompt[name] for prompt in prompts] for name in texts}
    first.sampling_params = copy.copy(requests[0].sampling_params)
    first.sampling_params.generator = generators
    return first


def _alike(one: Any, other: Any) -> bool:
    """Whether two settings are equal; tensors and other large values only if they are the same object."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(map(_alike, one, other))
    return one is other or (isinstance(one, (bool, int, float, str)) and bool(one == other))


def denoise_requests(
    pipeline: Any, input_batch: InputBatch | None, states: Sequence[StepRequestState] | None
) -> torch.Tensor:
    """The predictions for one step of several requests, one below the other.

    Args:
        input_batch: the engine's view of the requests; a port reads their states.
        states: the requests; those of ``input_batch`` if left out.
    """
    if states is None:
        states = input_batch.states if input_batch is not None else ()
    predictions = []
    for state in states:
        with holding(_invariants(pipeline, state)):
            predictions.append(pipeline.denoise(state))
    return predictions[0] if len(predictions) == 1 else torch.cat(predictions)


def _invariants(pipeline: Any, state: StepRequestState) -> Invariants | None:
    """What the request holds for its steps; None where that is switched off.

    Raises:
        ValueError: the switch is no number.
    """
    if "invariants" not in state.extra:
        limit = os.environ.get(HOISTING) or str(HOISTING_LIMIT)
        if not limit.isdecimal():
            raise ValueError(f"{HOISTING} is {limit!r}; set it to the MiB that a request may hold, or to 0.")
        constants = {name: state.extra[name] for name in pipeline.request_constants if name in state.extra}
        changing = [value for name, value in state.extra.items() if name not in constants]
        held = Invariants(int(limit) * 2**20) if int(limit) else None
        if held is not None:
            state.extra.update(held.know(constants, [state.latents, state.timesteps, changing]))
        state.extra["invariants"] = held
    elif (held := state.extra["invariants"]) is not None and state.step_index == 1:
        size = f"{held.nbytes / 2**20:.1f} MiB"
        logger.debug("Request %s holds %d results for its steps, %s.", state.request_id, held.results, size)
    return state.extra["invariants"]


def per_request(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let the pipeline hold a request's own schedulers and settings while ``method`` works on it, without gradients.

    diffusers keeps them on the pipeline, which runs one call at a time. Here requests take turns.
    """

    @functools.wraps(method)
    def work(self: Any, state: StepRequestState, *args: Any, **kwargs: Any) -> Any:
        if vars(self).get(TURN) is state:
            return method(self, state, *args, **kwargs)
        with _turn(self, state):
            return method(self, state, *args, **kwargs)

    return work


@contextlib.contextmanager
def _turn(pipeline: Any, state: StepRequestState) -> Iterator[None]:
    """Let the pipeline hold what is a request's own while the block runs, which wants no gradients."""
    if torch.is_grad_enabled():  # asked first: engines have switched them off already
        with torch.no_grad(), _turn(pipeline, state):
            yield
        return
    names = (*pipeline.request_components, *pipeline.request_attributes)
    held = vars(pipeline)
    shared = {name: held[name] for name in (*names, TURN) if name in held}
    own = state.extra.setdefault("self", {})
    for name in pipeline.request_components:
        if name not in own:
            own[name] = copy.deepcopy(getattr(pipeline, name))
    state.scheduler = own.get("scheduler")
    held.update(own, **{TURN: state})
    try:
        yield
    finally:
        own.update({name: held.pop(name) for name in names if name in held})
        del held[TURN]
        held.update(shared)


def predict_branches(
    pipeline: Any, guided: Any, positive_kwargs: dict[str, Any], negative_kwargs: dict[str, Any] | None
) -> tuple[Any, Any]:
    """The predictions of both branches of guidance, side by side where the engine has ranks for that."""
    cache_branches(pipeline, bool(guided))
    if not guided:
        return pipeline.predict_noise(**positive_kwargs), None
    guiding = pipeline if pipeline.od_config.parallel_config.cfg_parallel_size == 1 else _Exchanged(pipeline)
    return guiding.predict_noise_maybe_with_cfg(
        do_true_cfg=True,
        true_cfg_scale=1.0,
        positive_kwargs=positive_kwargs,
        negative_kwargs=negative_kwargs,
        cfg_normalize=False,
    )


class _Exchanged(CFGParallelMixin):
    """A pipeline's predictions as ranks exchange them: the tensors of all parts in a row, then parts again."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.form = pipeline, None

    def predict_noise(self, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        self.form = self.pipeline.predict_noise(**kwargs)
        return tuple(_in_a_row(self.form))

    def combine_cfg_noise(self, positive_noise_pred: Any, negative_noise_pred: Any, *args: Any, **kwargs: Any) -> Any:
        return tuple(_formed(self.form, iter(row)) for row in (positive_noise_pred, negative_noise_pred))


def _in_a_row(prediction: Any) -> list[torch.Tensor]:
    if isinstance(prediction, torch.Tensor):
        return [prediction]
    if type(prediction) in (tuple, list):
        return [tensor for part in prediction for tensor in _in_a_row(part)]
    if prediction is None:
        return []
    raise TypeError(f"A prediction holds a {type(prediction).__name__}, which ranks cannot exchange.")


def _formed(form: Any, row: Iterator[torch.Tensor]) -> Any:
    """The tensors of ``row`` in the form of another branch's prediction: both have the same parts."""
    if isinstance(form, torch.Tensor):
        return next(row)
    return None if form is None else type(form)(_formed(part, row) for part in form)


def predict_halves(pipeline: Any, guided: Any, along: dict[str, int | None] | None = None, /, **kwargs: Any) -> Any:
    """The prediction for a batch that holds both branches of guidance, one half after the other.

    It is one call, as in diffusers; where the engine has ranks for the branches, each takes its half.

    Args:
        guided: whether there are two branches.
        along: the dimension along which the branches of an argument are joined, where that is not the first; None:
            it is the same for both.
    """
    if not guided or pipeline.od_config.parallel_config.cfg_parallel_size == 1:
        return pipeline.predict_noise(**kwargs)
    places = dict.fromkeys(kwargs, 0) | (along or {})
    batched = (v for name, v in kwargs.items() if places[name] == 0 and isinstance(v, (torch.Tensor, list)))
    rows = len(next(batched))
    branches = [{name: _half(value, half, rows, places[name]) for name, value in kwargs.items()} for half in (0, 1)]
    # Tables of rotations are for all samples, also where they have two rows: cosine and sine.
    tables = {name: value for name, value in kwargs.items() if "rotary" in name or "freqs" in name}
    first, second = predict_branches(pipeline, True, *(branch | tables for branch in branches))
    if isinstance(first, list):
        return [*first, *second]
    if isinstance(first, tuple):
        return tuple(torch.cat(parts) for parts in zip(first, second, strict=True))
    return torch.cat([first, second])


def predict_own(pipeline: Any, branches: Sequence[Any], branch: Any, /, **kwargs: Any) -> Any:
    """The prediction for one of the branches of guidance; None if another rank makes it.

    Ranks take turns. One that no branch is left for makes the first one's, to have something of its shape.
    """
    cache_branches(pipeline, len(branches) == 2)
    size = pipeline.od_config.parallel_config.cfg_parallel_size
    own = branches if size == 1 else branches[get_classifier_free_guidance_rank() :: size] or branches[:1]
    return pipeline.predict_noise(**kwargs) if any(item is branch for item in own) else None


def exchange_predictions(pipeline: Any, branches: Sequence[Any], name: str) -> None:
    """Give each branch its prediction, the attribute ``name``, from the rank that made it."""
    size = pipeline.od_config.parallel_config.cfg_parallel_size
    if size == 1 or len(branches) == 1:
        return
    made = [prediction for branch in branches if (prediction := getattr(branch, name)) is not None]
    for start in range(0, len(branches), size):
        turn = branches[start : start + size]
        gathered = get_cfg_group().all_gather(made[min(start // size, len(made) - 1)], separate_tensors=True)
        for branch, prediction in zip(turn, gathered):
            setattr(branch, name, prediction)


def _half(value: Any, half: int, rows: int, along: int | None = 0) -> Any:
    """One half of whatever has ``rows`` rows in ``value``; the rest as it is."""
    if along is None:
        return value
    if isinstance(value, dict):
        return {key: _half(item, half, rows, along) for key, item in value.items()}
    if isinstance(value, torch.Tensor) and value.ndim > along and value.shape[along] == rows:
        return value.chunk(2, along)[half]
    if isinstance(value, list) and len(value) == rows:
        return value[half * rows // 2 : (half + 1) * rows // 2]
    if isinstance(value, (tuple, list)):
        return type(value)(_half(item, half, rows, along) for item in value)
    return value


def single(prediction: Any) -> Any:
    """A prediction out of the tuple that the engine may hold it in."""
    return prediction[0] if isinstance(prediction, tuple) and len(prediction) == 1 else prediction
