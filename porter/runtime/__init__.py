"""porter.runtime: runs generated ports in one process, with torch, diffusers and transformers alone.

The module layout and the names are those of vLLM-Omni 0.30: both ``vllm_omni.X`` and ``vllm.X`` map to
``porter.runtime.X``. Whatever needs more than one process (tensor, sequence or CFG parallelism) is refused
in words; it runs on vllm-omni itself.

The public names are resolved lazily, so importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from porter.runtime.diffusion.data import DiffusionOutput, OmniDiffusionConfig
    from porter.runtime.entrypoints.omni import Omni
    from porter.runtime.errors import CheckpointError, ConfigError, ModelNotFoundError, PorterRuntimeError, RequestError
    from porter.runtime.inputs.data import OmniDiffusionSamplingParams, OmniPromptType
    from porter.runtime.outputs import OmniRequestOutput

_EXPORTS = {
    "Omni": "entrypoints.omni",
    "OmniDiffusionSamplingParams": "inputs.data",
    "OmniPromptType": "inputs.data",
    "OmniRequestOutput": "outputs",
    "OmniDiffusionConfig": "diffusion.data",
    "DiffusionOutput": "diffusion.data",
    "PorterRuntimeError": "errors",
    "RequestError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "ModelNotFoundError": "errors",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DiffusionOutput",
    "ModelNotFoundError",
    "Omni",
    "OmniDiffusionConfig",
    "OmniDiffusionSamplingParams",
    "OmniPromptType",
    "OmniRequestOutput",
    "PorterRuntimeError",
    "RequestError",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
