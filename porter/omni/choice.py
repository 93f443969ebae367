"""Which pipelines porter serves: those that vLLM-Omni has no model for, and those that somebody chose."""

from __future__ import annotations

import os
from functools import cache

# Names of pipelines whose own model in vLLM-Omni porter's port takes the place of; `all` for every one.
REPLACE = "PORTER_OMNI_REPLACE"


def serves(name: object) -> bool:
    """Whether porter's port of a pipeline is to be used."""
    from porter.omni.ports import available

    if not isinstance(name, str) or not name.endswith("Pipeline") or name not in available():
        return False
    return name not in native_models() or chosen(name)


def chosen(name: str) -> bool:
    """Whether the environment asks for porter's port in the place of vLLM-Omni's model."""
    wanted = {part.strip() for part in os.environ.get(REPLACE, "").split(",")}
    return "all" in wanted or name in wanted


@cache
def native_models() -> frozenset[str]:
    """The pipeline classes that vLLM-Omni, or another plugin before porter, has a model for."""
    from vllm_omni.diffusion.registry import _DIFFUSION_MODELS

    return frozenset(name for name, entry in _DIFFUSION_MODELS.items() if not entry[0].startswith("porter."))
