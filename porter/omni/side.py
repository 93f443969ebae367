"""The engine's side of a parity comparison: a port in vLLM-Omni's own worker."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from porter.omni.worker import OneWorker
from porter.parity.capture import Capture
from porter.parity.request import to_request
from porter.parity.sides import align, record
from porter.runtime.outputs import OmniRequestOutput


class EnginePort:
    """A port as vLLM-Omni runs it.

    Args:
        checkpoint: folder of the checkpoint.
        models_dir: folder of ports (of either target); None: the installed diffusers, converted on demand.
        device: where the engine is asked to run; it runs where its platform does.
        dtype: of the weights.
        native: run vLLM-Omni's own model instead of porter's.
        settings: of the engine, see :class:`OneWorker`.

    Raises:
        ValueError: the platform of this machine is another.
    """

    def __init__(
        self,
        checkpoint: Path,
        models_dir: str | Path | None,
        device: str,
        dtype: str,
        native: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> None:
        from vllm_omni.platforms import current_omni_platform

        if device.partition(":")[0] != current_omni_platform.device_type:
            raise ValueError(f"vLLM-Omni runs on {current_omni_platform.device_type} here, not on {device}")
        from porter.omni.plugin import use_native, use_port

        name = json.loads((checkpoint / "model_index.json").read_text("utf-8"))["_class_name"]
        use_native(name) if native else use_port(name, models_dir)
        self.worker = OneWorker(checkpoint, dtype, settings=settings)
        self.pipeline: Any = self.worker.pipeline
        if hasattr(self.pipeline, "set_progress_bar_config"):
            self.pipeline.set_progress_bar_config(disable=True)
        align(self.pipeline)

    def run(self, kwargs: dict[str, Any], methods: AbstractSet[str] | None = None, stop: bool = False) -> Capture:
        """Send the call as a request."""

        def call() -> list[Any]:
            prompt, params = to_request(kwargs)
            raw, processed = self.worker.run(prompt, engine_params(params))
            result = OmniRequestOutput(output=raw)
            result.set_media(processed)
            return result.media()

        return record(self.pipeline, kwargs, call, methods, stop)

    def close(self) -> None:
        """Unload the model."""
        self.pipeline = None
        self.worker.close()


def engine_params(params: Any) -> Any:
    """Sampling parameters of ``porter.runtime`` as vLLM-Omni's own.

    A value that is vLLM-Omni's default of its field would count as not given there; it travels in ``extra_args``.
    """
    from vllm_omni.inputs.data import OmniDiffusionSamplingParams

    defaults = _defaults(OmniDiffusionSamplingParams)
    given = {
        name: getattr(params, name)
        for name, default in _defaults(type(params)).items()
        if not _same(getattr(params, name), default)
    }
    mistakable = {name: value for name, value in given.items() if value is not None and _same(value, defaults[name])}
    for name in mistakable:
        del given[name]
    given["extra_args"] = {**given.get("extra_args", {}), **mistakable}
    return OmniDiffusionSamplingParams(**given)


def _defaults(cls: Any) -> dict[str, Any]:
    fields = dataclasses.fields(cls)
    return {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in fields}


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, (bool, int, float, str, dict)) and bool(value == default))
