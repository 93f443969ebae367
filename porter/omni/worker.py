"""One model in vLLM-Omni's own worker, in this process: its loader, process groups, hooks and runner.

This is the engine without its scheduler process and queues: what runs a request, and what can be watched while it does.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from porter.omni import require_engine
from porter.omni.log import logger
from porter.omni.rendezvous import free_port


class OneWorker:
    """A checkpoint, loaded as the engine loads it.

    Args:
        checkpoint: folder in the layout of diffusers.
        dtype: of the weights, as torch names it.
        model_class_name: pipeline class; None: the one that ``model_index.json`` names.
        step_execution: requests are run a step at a time, so many of them at once; 0: whole.
        rank: number of this process among those that share the model.
        parallel: sizes of vllm_omni's ``DiffusionParallelConfig``; their product, but for the VAE's, is the number of
            processes.
        port: where the processes meet.
        together: how many whole requests may run in one call.
        settings: further ones of vllm_omni's ``OmniDiffusionConfig``.
        cache: settings of Cache-DiT, as the engine's ``cache_config`` takes them; None: no cache.

    Raises:
        EngineMissing: vllm-omni is not installed.
        Exception: whatever the engine raises while it loads the model.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        dtype: str = "float32",
        model_class_name: str | None = None,
        step_execution: int = 0,
        rank: int = 0,
        parallel: dict[str, int] | None = None,
        port: int | None = None,
        cache: dict[str, Any] | None = None,
        together: int = 1,
        settings: dict[str, Any] | None = None,
    ) -> None:
        require_engine()
        from vllm_omni.diffusion.data import DiffusionParallelConfig, OmniDiffusionConfig
        from vllm_omni.diffusion.registry import get_diffusion_post_process_func, get_diffusion_pre_process_func
        from vllm_omni.platforms import current_omni_platform
        from vllm_omni.plugins import load_omni_general_plugins

        load_omni_general_plugins()
        config = OmniDiffusionConfig(
            model=str(checkpoint),
            model_class_name=model_class_name,
            dtype=getattr(torch, dtype),
            # Ranks that decode together are those that other sizes started.
            num_gpus=math.prod(v for name, v in (parallel or {}).items() if name != "vae_patch_parallel_size"),
            parallel_config=DiffusionParallelConfig(**(parallel or {})),
            enforce_eager=True,
            master_port=port or free_port(),
            step_execution=step_execution > 0,
            max_num_seqs=max(step_execution, together, 1),
            **({} if cache is None else {"cache_backend": "cache_dit", "cache_config": cache}),
            # The dataclass has pydantic's idea of a default here, which only pydantic understands.
            **{"extras": {}, **(settings or {})},
        )
        if port is not None:
            # The config moves on from a port that is taken, and to every rank but the first one it is: they would wait
            # for each other at different places.
            config.master_port = port
        config.enrich_config()
        self.config: Any = config
        # Hooks first, as in the engine: what is wrong with them shows before the weights are read.
        self._pre_process = get_diffusion_pre_process_func(config)
        self._post_process = get_diffusion_post_process_func(config)
        worker_class = _resolve(current_omni_platform.get_diffusion_worker_cls())
        with _own_streams():
            self._worker = worker_class(local_rank=rank, rank=rank, od_config=config)
        self.pipeline: Any = self._worker.model_runner.pipeline

    def run(self, prompt: Any, params: Any) -> tuple[Any, Any]:
        """Run one request: pre-processing hook, worker, post-processing hook.

        Args:
            prompt: a string or a prompt dict.
            params: an ``OmniDiffusionSamplingParams`` of vllm_omni.

        Returns:
            What ``forward`` returned in its ``DiffusionOutput``, and what the post-processing hook made of it.
        """
        from vllm_omni.diffusion.postprocess.media import finalize_diffusion_media

        output = self._forward(self.request(prompt, params))
        if output.media is not None:
            return output.media.video.tensor, finalize_diffusion_media(output.media, sampling_params=params)
        if self._post_process is None:
            return output.output, output.output
        accepted = inspect.signature(self._post_process).parameters
        arguments = {"sampling_params": params} if "sampling_params" in accepted else {}
        return output.output, self._post_process(output.output, **arguments)

    def warm_up(self, size: int = 512, **arguments: Any) -> None:
        """Run the request that the engine sends before it takes others.

        Args:
            size: height and width; the engine's own by default. The VAE of a tiny checkpoint may scale so little that
                a picture of that size has as many tokens as one of 4096 pixels has otherwise.
            arguments: put into the request besides.

        Raises:
            Exception: the port does not survive it; the engine would not start.
        """
        request = dummy_request(self.config, size)
        if request is None:
            return
        request.sampling_params.extra_args.update(arguments)
        processed = request if self._pre_process is None else self._pre_process(request)
        if not self.config.step_execution:
            self._forward(processed)
            return
        from porter.omni.stepwise import run_made

        run_made(self, [processed])

    def request(self, prompt: Any, params: Any) -> Any:
        """A request as the worker gets it: after the pre-processing hook."""
        from vllm_omni.diffusion.request import OmniDiffusionRequest

        request_id = f"porter-{uuid.uuid4().hex[:12]}"
        made = OmniDiffusionRequest(prompt=prompt, sampling_params=params, request_id=request_id)
        return made if self._pre_process is None else self._pre_process(made)

    def step(self, scheduled: Any) -> Any:
        """Run one step of the requests that the engine's scheduler chose."""
        return self._worker.execute_stepwise(scheduled)

    def run_scheduled(self, scheduled: Any) -> Any:
        """Run the whole requests that the engine's scheduler chose, in one call."""
        return self._worker.execute_model_batch(scheduled, self.config)

    def _forward(self, request: Any) -> Any:
        output = self._worker.execute_model(request, self.config)
        if output.error is not None:
            raise RuntimeError(f"the request failed: {output.error}")
        return output

    def close(self) -> None:
        """Give up the process groups, so that another model can be loaded in this process."""
        self.pipeline = None
        try:
            self._worker.shutdown()
        except Exception:
            logger.exception("the worker did not shut down")


def dummy_request(config: Any, size: int = 512) -> Any:
    """The engine's own warm-up request for a model; None if the model is to be started without."""
    from vllm_omni.diffusion.diffusion_engine import DiffusionEngine

    engine = DiffusionEngine.__new__(DiffusionEngine)
    engine.od_config = config
    return engine._make_dummy_request(height=size, width=size, guidance_scale=0.0, num_inference_steps=2)


@contextlib.contextmanager
def _own_streams() -> Iterator[None]:
    """A worker puts its name before every line of its process; this process has other things to say."""
    streams = (sys.stdout, sys.stderr)
    held = [dict(vars(stream)) if hasattr(stream, "__dict__") else {} for stream in streams]
    try:
        yield
    finally:
        for stream, before in zip(streams, held):
            for name in ("write", "_original_write"):
                if name in before:
                    setattr(stream, name, before[name])
                elif name in getattr(stream, "__dict__", {}):
                    delattr(stream, name)


def _resolve(name: str) -> Any:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    return resolve_obj_by_qualname(name)
