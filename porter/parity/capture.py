"""Records what a pipeline does, stage by stage, without changing what it does.

The same names are watched on the reference and on the port, since a port keeps the component and method names of its
original. Neural components are watched by hooks, methods by wrapping them; schedulers and image processors by their
class: a pipeline may copy the first, and a port's hooks make the second anew.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from porter.parity.flatten import Leaf, clone_tree, flatten

# Methods of the pipeline whose result is a stage of its own.
STAGE_METHODS = re.compile(
    r"_?(encode_\w+|get_\w*embeds?\w*|get_timesteps|prepare_\w*(latents|image|mask|control|video|ids)\w*)"
)
_TIME = re.compile(r"t|(\w+_)?time(steps?\w*)?")
# Signatures and names of methods, of functions and classes that are asked about at every call.
_CACHED = 1024
_COMPONENT_METHODS = ("encode", "decode", "generate")
_SCHEDULER_METHODS = ("step", "add_noise", "scale_noise")
_PROCESSOR_METHODS = ("preprocess", "preprocess_video", "postprocess", "postprocess_video")

# Values in a tensor above which no run waits for a denoiser, nor an early-stopped run for a VAE; and above which no run
# waits for a VAE. Some pipelines enlarge what they are given to a megapixel: what can be compared has been by then.
_LARGE = 2**18
_TOO_LARGE = 2**19
# Pixels above which an early-stopped run does not wait for pictures to be prepared.
_MANY_PIXELS = 2**23


class Enough(BaseException):
    """Ends a run of which only the beginning is wanted; no pipeline catches it."""


@dataclass
class Event:
    """One observed call."""

    name: str
    """What was called, by component: ``transformer``, ``scheduler.step``, ``encode_prompt``."""
    call: int
    """The how manieth call of that name."""
    kind: str
    """method, component, codec, schedule, step, processor or final: how strictly it must match."""
    values: Mapping[str, Leaf]
    """Flattened arguments (``args.…``) and results (``result.…``)."""
    raw: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    """The arguments of a component's forward, to call it again."""

    @property
    def stage(self) -> str:
        return f"{self.name}[{self.call}]"


@dataclass
class Capture:
    """All events of one run, in order, and how the run ended."""

    events: list[Event] = field(default_factory=list)
    error: BaseException | None = None
    watched: set[str] = field(default_factory=set)
    stopped: bool = False
    """Whether the run was ended on purpose: before its first prediction, or before a call that would be long."""
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, kind: str, values: Mapping[str, Leaf], raw: Any = None) -> None:
        """Append an event, numbered among those of its name."""
        call = self._counts.get(name, 0)
        self._counts[name] = call + 1
        self.events.append(Event(name, call, kind, values, raw))

    def stop(self, name: str, kind: str, values: dict[str, Leaf]) -> None:
        """Record a call that is not made, and end the run."""
        self.add(name, kind, values)
        self.stopped = True
        raise Enough


def neural_components(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The pipeline's components that are torch modules, by attribute name."""
    return {name: item for name, item in components(pipeline).items() if isinstance(item, torch.nn.Module)}


def components(pipeline: Any) -> dict[str, Any]:
    """Everything that hangs on the pipeline under a public name, modules included; nested pipelines' parts as well."""
    found = {**getattr(pipeline, "_modules", {}), **vars(pipeline)}
    found = {name: item for name, item in found.items() if not name.startswith("_") and item is not None}
    for name, item in list(found.items()):
        if _is_pipeline(item):
            found |= {f"{name}.{inner}": part for inner, part in components(item).items()}
    named: dict[int, str] = {}
    for name, item in found.items():  # a part that hangs on the pipeline twice keeps its first name
        named.setdefault(id(item), name)
    return {name: item for name, item in found.items() if named[id(item)] == name}


def _is_pipeline(item: Any) -> bool:
    return not isinstance(item, type) and type(item).__name__.endswith("Pipeline") and hasattr(item, "__dict__")


@contextlib.contextmanager
def capture(
    pipeline: Any, methods: AbstractSet[str] | None = None, stop: bool = False, record: Capture | None = None
) -> Iterator[Capture]:
    """Watch ``pipeline`` while the block runs.

    Args:
        pipeline: the reference or the port.
        methods: which of the pipeline's own methods are watched; None: all that are stages.
        stop: raise :class:`Enough` instead of the first prediction, whose arguments are recorded, and instead of
            encoding or decoding anything large. What is too large for a comparison ends the run in any case.
        record: what the events are added to; None: a new one.
    """
    record = Capture() if record is None else record
    parts = components(pipeline)
    known = {id(item): name for name, item in parts.items()}
    with contextlib.ExitStack() as stack:
        for name in stage_methods(pipeline) if methods is None else sorted(methods & stage_methods(pipeline)):
            record.watched.add(name)
            _watch_method(stack, record, pipeline, name)
        for name, item in parts.items():
            if isinstance(item, torch.nn.Module) and not _is_pipeline(item):
                _watch_module(stack, record, name, item, stop)
        seen: set[type] = set()
        for name, item in parts.items():
            cls = type(item)
            if cls in seen:
                continue
            if hasattr(item, "set_timesteps") and hasattr(item, "step"):
                seen.add(cls)
                _watch_scheduler(stack, record, pipeline, cls, known, name)
            elif hasattr(item, "postprocess") and not isinstance(item, torch.nn.Module):
                seen.add(cls)
                for method in _PROCESSOR_METHODS:
                    _watch_processor(stack, record, cls, method, stop)
        yield record


def stage_methods(pipeline: Any) -> frozenset[str]:
    """Names of the pipeline's own methods that are stages."""
    cls: Any = type(pipeline)
    return _stage_methods(cls)


@functools.lru_cache(_CACHED)
def _stage_methods(cls: Any) -> frozenset[str]:
    names = (name for name in dir(cls) if STAGE_METHODS.fullmatch(name))
    return frozenset(name for name in names if inspect.isroutine(getattr(cls, name)))


def is_denoiser(module: torch.nn.Module) -> bool:
    """Whether a component is called once a step, by its signature: it is told the time."""
    return _takes_time(type(module).forward)


@functools.lru_cache(_CACHED)
def _takes_time(forward: Callable[..., Any]) -> bool:
    return any(_TIME.fullmatch(name) for name in _signature(forward).parameters)


def bind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by parameter name with defaults filled in; by position where they do not fit the signature."""
    if inspect.ismethod(function):  # what it is bound to is the first of its arguments, and no argument of the call
        named = bind(function.__func__, (function.__self__, *args), kwargs)
        del named[next(iter(named))]
        return named
    try:
        defaults = _defaults(function)
        if defaults is not None:
            named = {**defaults, **dict(zip(defaults, args)), **kwargs}
            if len(named) == len(defaults):
                return named
        bound = _signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {**{str(index): value for index, value in enumerate(args)}, **kwargs}
    bound.apply_defaults()
    return dict(bound.arguments)


@functools.lru_cache(_CACHED)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


@functools.lru_cache(_CACHED)
def _defaults(function: Callable[..., Any]) -> dict[str, Any] | None:
    """What parameters are if nothing is given for them; None where some do not take a value by position and by name."""
    parameters = _signature(function).parameters.values()
    usual = all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    return {parameter.name: parameter.default for parameter in parameters} if usual else None


def _watch_method(stack: contextlib.ExitStack, record: Capture, owner: Any, name: str) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        record.add(name, "method", flatten(result, "result"))
        return result

    _replace(stack, owner, name, watched)


def _watch_module(stack: contextlib.ExitStack, record: Capture, name: str, module: torch.nn.Module, stop: bool) -> None:
    pending: list[tuple[dict[str, Leaf], Any]] = []

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raw = clone_tree(args), clone_tree(kwargs)
        values = flatten(bind(module.forward, *raw), "args", copy=False)
        if is_denoiser(module) and (stop or _size(values) > _LARGE):
            record.stop(name, "component", values)
        pending.append((values, raw))

    def after(_: Any, __: Any, ___: Any, result: Any) -> None:
        values, raw = pending.pop()
        record.add(name, "component", values | flatten(result, "result"), raw)

    for handle in (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ):
        stack.callback(handle.remove)
    cls: Any = type(module)
    for method in _codec_methods(cls):
        _watch_codec(stack, record, name, module, method, stop)


@functools.lru_cache(_CACHED)
def _codec_methods(cls: Any) -> list[str]:
    return [method for method in _COMPONENT_METHODS if inspect.isroutine(getattr(cls, method, None))]


def _watch_codec(
    stack: contextlib.ExitStack, record: Capture, name: str, module: torch.nn.Module, method: str, stop: bool
) -> None:
    original = getattr(module, method)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        values = flatten(bind(original, args, kwargs), "args", copy=False)
        if _size(values) > (_LARGE if stop else _TOO_LARGE):
            record.stop(f"{name}.{method}", "codec", values)  # nobody comes to change them
        values = clone_tree(values)
        result = original(*args, **kwargs)
        record.add(f"{name}.{method}", "codec", values | flatten(result, "result"))
        return result

    _replace(stack, module, method, watched)


def _size(values: dict[str, Leaf]) -> int:
    """Values in the largest tensor of real numbers: masks and tables of rotations cost a denoiser little."""
    tensors = {name: leaf for name, leaf in values.items() if isinstance(leaf, torch.Tensor)}
    counted = (leaf for name, leaf in tensors.items() if leaf.is_floating_point() and "mask" not in name)
    return max((leaf.numel() for leaf in counted), default=0)


def _watch_scheduler(
    stack: contextlib.ExitStack, record: Capture, pipeline: Any, cls: type, known: dict[int, str], fallback: str
) -> None:
    depth = [0]  # a scheduler's method may call another of its own; only the outer call is a stage

    def wrap(method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
            if depth[0]:
                return original(self, *args, **kwargs)
            given = {} if method == "set_timesteps" else bind(original, (self, *args), kwargs)
            values = flatten({name: value for name, value in given.items() if value is not self}, "args")
            depth[0] += 1
            try:
                result = original(self, *args, **kwargs)
            finally:
                depth[0] -= 1
            # A port works with copies of its own, which stand where the original stood.
            held = {id(item): name for name, item in vars(pipeline).items() if isinstance(item, cls)}
            name = known.get(id(self)) or held.get(id(self), fallback)
            if method == "set_timesteps":
                schedule = {key: getattr(self, key, None) for key in ("timesteps", "sigmas")}
                record.add(f"{name}.timesteps", "schedule", flatten(schedule, "result"))
            else:
                record.add(f"{name}.{method}", "step", values | flatten(result, "result"))
            return result

        return watched

    for method in ("set_timesteps", *_SCHEDULER_METHODS):
        if hasattr(cls, method):
            _replace(stack, cls, method, wrap(method, getattr(cls, method)))


def _watch_processor(stack: contextlib.ExitStack, record: Capture, cls: type, method: str, stop: bool) -> None:
    original = getattr(cls, method, None)
    if original is None:
        return

    @functools.wraps(original)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        named = bind(original, (self, *args), kwargs)
        if stop and _pixels(named) > _MANY_PIXELS:
            sizes = {name: value for name, value in named.items() if isinstance(value, int)}
            record.stop(f"{cls.__name__}.{method}", "processor", flatten(sizes, "args"))
        values = flatten(named, "args")
        result = original(self, *args, **kwargs)
        record.add(f"{cls.__name__}.{method}", "processor", values | flatten(result, "result"))
        return result

    _replace(stack, cls, method, watched)


def _pixels(named: Mapping[str, Any]) -> int:
    """How many pixels a processor is asked for: those of each picture that it is given, in the size that it is told."""
    height, width = named.get("height"), named.get("width")
    given = flatten({name: value for name, value in named.items() if name != "self"}, copy=False).values()
    arrays = [leaf for leaf in given if isinstance(leaf, (torch.Tensor, np.ndarray))]
    if not (isinstance(height, int) and isinstance(width, int)):
        return sum(math.prod(leaf.shape[-3:]) for leaf in arrays)
    return height * width * sum(math.prod(leaf.shape[:-3]) for leaf in arrays)


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until the stack unwinds, then restore exactly what was there."""
    space = vars(owner)
    had, before = name in space, space.get(name)
    setattr(owner, name, value)

    def restore() -> None:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)

    stack.callback(restore)
