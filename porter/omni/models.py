"""The one module that every port is registered with; its names come into being when the engine asks for them.

``register_diffusion_model`` wants a module, a class name and the names of two hooks, long before it is known which
model will be served. ``XPipeline`` here is the class of that port, ``get_XPipeline_pre_process_func`` and
``get_XPipeline_post_process_func`` are the factories of its hooks: converting and importing happen at that moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from porter.omni.adapt import adapt
from porter.omni.card import card
from porter.omni.log import logger
from porter.omni.ports import port_folder
from porter.omni.warm_up import pre_process
from porter.on_demand import ConversionRefused
from porter.runtime.diffusion.registry import ModelRegistry, RegisteredModel

_HOOK = re.compile(r"get_(\w+)_(pre|post)_process_func")


def hook_name(name: str, kind: str) -> str:
    """The name of the factory of a hook; ``kind`` is ``pre`` or ``post``."""
    return f"get_{name}_{kind}_process_func"


def __getattr__(name: str) -> Any:
    hook = _HOOK.fullmatch(name)
    if hook is not None:
        return _hook_factory(hook[1], hook[2])
    if name.endswith("Pipeline"):
        return pipeline_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def pipeline_class(name: str) -> type:
    """The class of a port; one that refuses in words where there is none that could be trusted.

    The engine's registry logs an exception and goes on as if the model were unknown, so it is raised where the engine
    builds the model instead.
    """
    try:
        return _adapted(name)
    except ConversionRefused as error:
        logger.error("porter: %s", error)
        return _refusing(name, str(error))


def _adapted(name: str) -> type:
    loaded, port = _load(name), card(name)
    assert port is not None  # or loading had raised
    return adapt(loaded.pipeline_cls, port)


@cache
def _load(name: str) -> RegisteredModel:
    return ModelRegistry(port_folder(name)).load(name)


def _hook_factory(name: str, kind: str) -> Callable[[Any], Callable[..., Any]]:
    try:
        port = _load(name)
    except ConversionRefused:
        return lambda od_config: _unchanged
    factory = port.pre_process_factory if kind == "pre" else port.post_process_factory
    if factory is None:
        return lambda od_config: _unchanged
    return (lambda od_config: pre_process(factory(od_config))) if kind == "pre" else factory


def _unchanged(value: Any) -> Any:
    return value


def _refusing(name: str, reason: str) -> type:
    def __init__(self: Any, **arguments: Any) -> None:
        raise ConversionRefused(reason)

    return type(name, (), {"__init__": __init__, "__module__": __name__, "__doc__": reason})


def forget() -> None:
    """Look for every port anew, since where they come from has changed."""
    for function in (pipeline_class, _load, port_folder, card):
        function.cache_clear()
