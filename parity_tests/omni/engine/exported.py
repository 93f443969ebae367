"""Run in a process of its own, with an exported-into package first on the path: what its registry and models do.

    python exported.py [NAME …]

Prints JSON: the module of each registered model's class (empty where it does not import here), and for each NAME the
verdict and largest difference of its model, run by the engine as vLLM-Omni's own, against diffusers.
"""

from __future__ import annotations

import json
import sys

import porter.omni

porter.omni.start()

import vllm_omni  # noqa: E402
from vllm_omni.diffusion.registry import _DIFFUSION_MODELS, DiffusionModelRegistry  # noqa: E402

import porter.omni.side  # noqa: E402
from porter.parity import run_parity  # noqa: E402

_Port = porter.omni.side.EnginePort


class OwnModel(_Port):
    """The model that the package itself has."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **{**named, "native": True})  # type: ignore[arg-type]


def module_of(name: str) -> str:
    """The module of a registered class; empty if it does not import on this machine."""
    loaded = DiffusionModelRegistry._try_load_model_cls(name)
    return "" if loaded is None else loaded.__module__


found = {"package": vllm_omni.__file__, "models": {}, "parity": {}}
for name, (folder, module, _) in _DIFFUSION_MODELS.items():
    if module:  # others are plugins'
        found["models"][name] = module_of(name) if folder else ""
porter.omni.side.EnginePort = OwnModel  # type: ignore[misc]
for name in sys.argv[1:]:
    report = run_parity(name, engine="vllm-omni", cases=["plain"])
    found["parity"][name] = {
        "verdict": report.verdict,
        "reason": report.reason,
        "largest_difference": report.largest_difference,
        "weights": bool(report.weights and report.weights.passed),
    }
print("\n" + json.dumps(found))
