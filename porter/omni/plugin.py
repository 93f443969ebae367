"""Registers ports as models of the engine."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from porter.omni import require_engine
from porter.omni.choice import REPLACE, chosen, native_models
from porter.omni.early import announce_models
from porter.omni.log import logger
from porter.omni.models import forget, hook_name
from porter.omni.ports import MODELS_DIR, available

MODULE = "porter.omni.models"


def register_ports() -> None:
    """Register every port that vLLM-Omni has no model for, or that ``PORTER_OMNI_REPLACE`` chooses.

    Registering is cheap: a port is converted and imported when the engine loads the model. May be called again.
    """
    from vllm_omni.diffusion import registry

    require_engine()
    announce_models()
    native = native_models()
    names = [name for name in available() if name not in native or chosen(name)]
    # One line for each of some three hundred models would bury the engine's own.
    level = registry.logger.level
    registry.logger.setLevel(logging.WARNING)
    try:
        for name in names:
            _register(name)
    finally:
        registry.logger.setLevel(level)
    replaced = [name for name in names if name in native]
    logger.info(
        "porter: %d pipelines of diffusers are registered, to be converted when one is loaded%s",
        len(names),
        f"; in the place of vLLM-Omni's own ({REPLACE}): {', '.join(replaced)}" if replaced else "",
    )


# What vLLM-Omni's tables held about pipelines whose model was replaced.
_replaced: dict[str, list[tuple[dict[str, Any], Any]]] = {}


def _register(name: str) -> None:
    from vllm_omni.diffusion import registry

    if name in native_models() and name not in _replaced:
        hooks = (
            registry._DIFFUSION_PRE_PROCESS_FUNCS,
            registry._DIFFUSION_POST_PROCESS_FUNCS,
            registry._DIFFUSION_IR_OP_PRIORITY_FUNCS,
            registry._DIFFUSION_PREFIX_CACHE_FUNCS,
            _cache_enablers(),
        )
        tables = (registry._DIFFUSION_MODELS, registry.DiffusionModelRegistry.models, *hooks)
        _replaced[name] = [(table, table.get(name)) for table in tables]
        for table in hooks:  # hooks of a model that is gone
            table.pop(name, None)
    registry.register_diffusion_model(
        name,
        MODULE,
        name,
        pre_process_func_name=hook_name(name, "pre"),
        post_process_func_name=hook_name(name, "post"),
    )


def _cache_enablers() -> dict[str, Any]:
    """How the engine puts Cache-DiT on models of its own that do not say so themselves, by pipeline."""
    try:
        from vllm_omni.diffusion.cache.cachedit import CUSTOM_DIT_ENABLERS
    except ImportError:  # Cache-DiT is not installed
        return {}
    enablers: dict[str, Any] = CUSTOM_DIT_ENABLERS
    return enablers


def use_port(name: str, models_dir: str | Path | None = None) -> None:
    """Make porter's port the model of a pipeline in this process, whatever there is besides.

    Args:
        name: the pipeline class.
        models_dir: a folder of ports (of either target) to take it from; None: as :mod:`porter.omni.ports` finds it.
    """
    if models_dir is not None:
        os.environ[MODELS_DIR] = str(models_dir)
    elif MODELS_DIR in os.environ:
        del os.environ[MODELS_DIR]
    forget()
    native_models()
    _register(name)


def use_native(name: str) -> None:
    """Give a pipeline the model back that vLLM-Omni has for it.

    Raises:
        ValueError: it has none.
    """
    if name not in native_models():
        raise ValueError(f"vLLM-Omni has no model of its own for {name}")
    held = _replaced.pop(name, None)
    for table, entry in held or ():
        table.pop(name, None)
        if entry is not None:
            table[name] = entry
