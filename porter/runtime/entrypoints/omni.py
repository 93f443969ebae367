"""Omni: load a model, generate."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import resource
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from porter.runtime.diffusion.data import AttentionConfig, DiffusionOutput, OmniDiffusionConfig
from porter.runtime.diffusion.distributed.utils import default_device, set_local_device
from porter.runtime.diffusion.request import OmniDiffusionRequest
from porter.runtime.diffusion.worker.request_batch import DiffusionRequestBatch
from porter.runtime.entrypoints.load import checked_settings, load_model
from porter.runtime.entrypoints.steps import OnStep, watched_steps
from porter.runtime.errors import ConfigError, RequestError
from porter.runtime.inputs.data import OmniDiffusionSamplingParams, OmniPromptType, copy_containers
from porter.runtime.inputs.media import decode_media
from porter.runtime.outputs import OmniRequestOutput

SamplingParams = OmniDiffusionSamplingParams | None


class Omni:
    """One model in this process.

    Args:
        model: a checkpoint folder or a hub id.
        models_dir: folder of ports, as ``porter convert -o`` writes it; None: the committed ports.
        device: where to run; None: the accelerator if there is one, else the CPU.
        dtype: of the weights; None: bfloat16 on an accelerator, float32 on the CPU.
        diffusion_load_format: ``"default"``: the port; ``"diffusers"``: the pipeline of diffusers as it is, with
            ``diffusers_load_kwargs`` for its ``from_pretrained`` and ``diffusers_call_kwargs`` for its calls.
        model_class_name: the pipeline class, if not the one that ``model_index.json`` names.
        attention_backend: TORCH_SDPA, FLASH_ATTN or SAGE_ATTN; None or ``"auto"``: the best one that can run.
        revision: of a hub model.
        od_config: any other field of ``OmniDiffusionConfig``.

    Raises:
        ModelNotFoundError: no such model, or no port of its pipeline.
        CheckpointError: its weights do not fit the port.
        ConfigError: a setting that this runtime does not know or cannot honour.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        models_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        diffusion_load_format: str = "default",
        model_class_name: str | None = None,
        attention_backend: str | None = None,
        revision: str | None = None,
        **od_config: Any,
    ) -> None:
        self.device = _device(device)
        if dtype is None:
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        if attention_backend is not None:
            od_config["diffusion_attention_config"] = AttentionConfig(default=attention_backend)
        self.od_config = OmniDiffusionConfig.from_kwargs(
            model=os.fspath(model),
            model_class_name=model_class_name,
            dtype=dtype,
            diffusion_load_format=diffusion_load_format,
            revision=revision,
            **checked_settings(od_config, diffusion_load_format, model, model_class_name, models_dir),
        )
        self._loaded = load_model(self.od_config, self.device, models_dir)

    @property
    def pipeline(self) -> nn.Module:
        """The loaded pipeline."""
        return self._loaded.pipeline

    @property
    def name(self) -> str:
        """The pipeline's class, as diffusers calls it."""
        return self._loaded.name

    @property
    def kind(self) -> str:
        """What the pipeline makes: ``image``, ``video`` or ``audio``."""
        return self._loaded.kind

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the pipeline's call, by the names of diffusers."""
        return self._loaded.parameters

    def generate(
        self,
        prompts: OmniPromptType | Sequence[OmniPromptType],
        sampling_params: SamplingParams | Sequence[OmniDiffusionSamplingParams] = None,
        on_step: Callable[[int, int, int | None], None] | None = None,
    ) -> list[OmniRequestOutput]:
        """Run one request per prompt, one after the other.

        A string or a dict is one request, a list of them as many; ``prompt`` inside a dict may be a list: one
        batched call. The caller's dicts and sampling parameters are never changed; a caller's generator is used
        itself, so it advances.

        Args:
            prompts: what to make.
            sampling_params: for all requests, or one per request; None: the pipeline's defaults.
            on_step: called after each denoising step with the number of the request, the steps done, and the steps to
                do where that is known.

        Returns:
            One result per request.

        Raises:
            RequestError: a prompt or sampling parameter of the wrong type, or one the pipeline refuses.
        """
        requests = self._requests(prompts, sampling_params)
        return [
            self.run(request, original, on_step and functools.partial(on_step, number))
            for number, (request, original) in enumerate(requests)
        ]

    def _requests(self, prompts: Any, sampling_params: Any) -> list[tuple[OmniDiffusionRequest, OmniPromptType]]:
        prompt_list = list(prompts) if isinstance(prompts, (list, tuple)) else [prompts]
        if not prompt_list:
            raise RequestError("there is no prompt")
        for prompt in prompt_list:
            if not isinstance(prompt, (str, dict)):
                raise RequestError(f"a prompt is a string or a dict, not {type(prompt).__name__}")
        if isinstance(sampling_params, (list, tuple)):
            params_list = list(sampling_params)
            if len(params_list) != len(prompt_list):
                raise RequestError(f"{len(params_list)} sampling parameters for {len(prompt_list)} prompts")
        else:
            params_list = [sampling_params or OmniDiffusionSamplingParams()] * len(prompt_list)
        return [(make_request(prompt, params), prompt) for prompt, params in zip(prompt_list, params_list, strict=True)]

    def run(
        self, request: OmniDiffusionRequest, original: OmniPromptType | None = None, on_step: OnStep | None = None
    ) -> OmniRequestOutput:
        """Run one request, which this changes; what ``on_step`` raises ends it.

        Raises:
            RequestError: the pipeline refuses it.
        """
        pipeline = self._loaded.pipeline
        with self.active(), _peak_memory(self.device) as peak:
            with refusals(), watched_steps(getattr(pipeline, "pipeline", pipeline), on_step):
                request = self.prepare(request)
                output = pipeline.forward(DiffusionRequestBatch([request]))
            if isinstance(output, list) and len(output) == 1:
                output = output[0]
            result = self.finish(request, output, original)
        result.peak_memory_mb = result.peak_memory_mb or peak[0]
        return result

    def prepare(self, request: OmniDiffusionRequest) -> OmniDiffusionRequest:
        """Pre-process a request and give it its generator; the part before ``forward``."""
        if self._loaded.pre_process is not None:
            request = self._loaded.pre_process(request)
        self._seed(request.sampling_params)
        return request

    def finish(
        self, request: OmniDiffusionRequest, output: Any, original: OmniPromptType | None = None
    ) -> OmniRequestOutput:
        """Post-process what a pipeline returned; the part after ``forward``."""
        pipeline = self._loaded.pipeline
        if not isinstance(output, DiffusionOutput):
            raise TypeError(f"{type(pipeline).__name__}.forward returned {type(output).__name__}")
        if output.error is not None:
            raise RuntimeError(f"request {request.request_id} failed: {output.error}")
        result = OmniRequestOutput(
            request_id=request.request_id,
            prompt=request.prompt if original is None else original,
            output=output.output,
            stage_durations=dict(output.stage_durations or getattr(pipeline, "stage_durations", {})),
            peak_memory_mb=output.peak_memory_mb,
        )
        result.set_media(self._post_process(request, output))
        return result

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """What a pipeline runs in: its device, and no gradients."""
        with torch.no_grad(), set_local_device(self.device):
            yield

    def _seed(self, params: OmniDiffusionSamplingParams) -> None:
        if params.generator is None and params.seed is not None:
            device = params.generator_device or self.device
            params.generator = torch.Generator(device=device).manual_seed(params.seed)

    def _post_process(self, request: OmniDiffusionRequest, output: DiffusionOutput) -> Any:
        hook = output.post_process_func or self._loaded.post_process
        if hook is None:
            return output.output
        offered = {
            "sampling_params": request.sampling_params,
            "prompt": request.prompt,
            "request": request,
        }
        accepted = inspect.signature(hook).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        arguments = {name: value for name, value in offered.items() if takes_any or name in accepted}
        # A hook that cannot see the output type would decode latents as if they were a picture.
        latent = request.sampling_params.output_type == "latent"
        if latent and "sampling_params" not in arguments and output.post_process_func is None:
            return output.output
        return hook(output.output, **arguments)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return default_device()
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return found


def make_request(
    prompt: Any, params: OmniDiffusionSamplingParams, request_id: str | None = None
) -> OmniDiffusionRequest:
    """A request of its own from a caller's prompt and sampling parameters, with its pictures decoded.

    Raises:
        RequestError: they are of the wrong type, or a picture cannot be read.
    """
    params = _checked(params).clone()
    prompt = copy_containers(prompt)
    if isinstance(prompt, dict):
        if prompt.get("multi_modal_data") is not None:
            prompt["multi_modal_data"] = decode_media(prompt["multi_modal_data"])
        if "output_type" in prompt:  # the post-processing hook sees the sampling parameters only
            params.extra_args["output_type"] = prompt["output_type"]
    return OmniDiffusionRequest(
        prompt=prompt, sampling_params=params, request_id=request_id or f"req-{uuid.uuid4().hex[:12]}"
    )


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """A ValueError is how diffusers says that it does not take an input."""
    try:
        yield
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(str(error)) from error


def _checked(params: Any) -> OmniDiffusionSamplingParams:
    if not isinstance(params, OmniDiffusionSamplingParams):
        raise RequestError(f"sampling parameters are an OmniDiffusionSamplingParams, not {type(params).__name__}")
    count = params.num_outputs_per_prompt
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise RequestError(f"num_outputs_per_prompt must be a positive integer, got {count!r}")
    return params


@contextlib.contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[float]]:
    """A list of one number, filled at the end: MB at the peak (see ``OmniRequestOutput.peak_memory_mb``)."""
    peak = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    if device.type == "cuda":
        peak[0] = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        # Linux counts in KiB, macOS in bytes.
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
