"""Requests and components of the pipelines in this folder."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers.configuration_utils import FrozenDict

from porter.runtime.diffusion.data import OmniDiffusionConfig
from porter.runtime.diffusion.distributed import autoencoders
from porter.runtime.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
from porter.runtime.diffusion.request import OmniDiffusionRequest
from porter.runtime.diffusion.worker.request_batch import DiffusionRequestBatch
from porter.runtime.diffusion.worker.utils import StepRequestState
from porter.runtime.inputs.data import OmniDiffusionSamplingParams
from porter.runtime.transformers_utils.config import get_hf_file_to_dict

# Keys of a prompt dict that belong to the engine, not to the pipeline.
ENGINE_KEYS = ("multi_modal_data", "mm_processor_kwargs", "modalities", "additional_information", "task_type")

# How pipelines call the number of frames.
FRAME_COUNTS = ("num_frames", "frames", "video_length")


def request_state(req: DiffusionRequestBatch) -> StepRequestState:
    """The state of a request before anything was computed for it.

    Raises:
        ValueError: the batch holds several requests.
    """
    if len(req.requests) != 1:
        raise ValueError(f"This pipeline takes one request at a time, got {len(req.requests)}.")
    [request] = req.requests
    return StepRequestState(request.request_id, request.sampling_params, request.prompt)


def request_arguments(state: StepRequestState, pipeline: Any) -> dict[str, Any]:
    """The arguments that a request gives to a pipeline class, by the parameter names of diffusers.

    A parameter is looked up under its own name in the prompt, its multi-modal data, the extra arguments and the
    sampling parameters. In the sampling parameters a field that still has its default counts as not given. The warm-up
    request of the engine is the same for every model: what this one does not take is left out, and what it works on
    besides is made up.

    Raises:
        ValueError: the request names something that the pipeline does not take.
    """
    signature = inspect.signature(getattr(pipeline, "prepare_encode", pipeline.forward)).parameters
    names = [name for name in signature if name not in ("self", "req", "state")]
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values())
    prompt, sampling = state.prompt, state.sampling
    is_dummy_run = OmniDiffusionRequest.is_dummy_run_request_id(state.request_id)
    fields = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
    given = {name: value for name in names if (value := _sampling_value(sampling, name)) is not None}
    if is_dummy_run:
        given |= _stand_ins(names, sampling)
    for source in (sampling.extra_args, fields.get("multi_modal_data") or {}, fields):
        for name, value in source.items():
            if source is fields and name in ENGINE_KEYS and name not in names:
                continue
            if name in names or is_open:
                given[name] = value
            elif name in pipeline.dropped_arguments:
                raise ValueError(f"{name!r} is an argument of diffusers that this port does not have.")
            elif value is not None and not is_dummy_run:
                raise ValueError(f"Unknown argument {name!r}. This pipeline takes: {', '.join(names)}.")
    return given


def with_preprocessed(request: OmniDiffusionRequest, **values: Any) -> OmniDiffusionRequest:
    """The request with the results of its pre-processing hook, for :func:`preprocessed_inputs`."""
    return _with_information(request, "preprocessed", values)


def with_failure(request: OmniDiffusionRequest, error: Exception) -> OmniDiffusionRequest:
    """The request with the reason why its pre-processing failed, for :func:`preprocessed_inputs` to raise."""
    return _with_information(request, "preprocessing_failed", error)


def _with_information(request: OmniDiffusionRequest, key: str, value: Any) -> OmniDiffusionRequest:
    prompt = {"prompt": request.prompt} if isinstance(request.prompt, str) else dict(request.prompt)
    prompt["additional_information"] = {**(prompt.get("additional_information") or {}), key: value}
    request.prompt = prompt
    return request


def preprocessed_inputs(state: StepRequestState) -> dict[str, Any]:
    """What the pre-processing hook left with the request.

    Raises:
        Exception: what the hook met with; a ValueError if it did not run, which is the engine's part.
    """
    prompt = state.prompt
    held = (prompt.get("additional_information") or {}) if not isinstance(prompt, str) else {}
    if "preprocessing_failed" in held:
        raise held["preprocessing_failed"]
    if "preprocessed" not in held:
        raise ValueError("The request was not pre-processed: apply the model's pre_process_func first.")
    return held["preprocessed"]


def _stand_ins(names: list[str], sampling: OmniDiffusionSamplingParams) -> dict[str, Any]:
    """What the warm-up request lacks: a video of as many frames as it says, masks and control pictures."""
    picture = PIL.Image.new("RGB", (sampling.width or 512, sampling.height or 512))
    made: dict[str, Any] = {name: sampling.num_frames for name in names if name in FRAME_COUNTS}
    for name in names:
        if name in ("mask_image", "control_image", "control_mask"):
            made[name] = picture
        elif name == "control_video" or (name in ("video", "images") and name == names[0]):
            made[name] = [picture] * sampling.num_frames
    return made


def _sampling_value(sampling: OmniDiffusionSamplingParams, name: str) -> Any:
    if name.startswith("num_") and name.endswith("_per_prompt"):
        name = "num_outputs_per_prompt"
    elif name in FRAME_COUNTS:
        name = "num_frames"
    field = type(sampling).__dataclass_fields__.get(name)
    if field is None or not getattr(sampling, f"{name}_provided", True):
        return None
    value = getattr(sampling, name)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, torch.Tensor) or type(value) is not type(default):
        return value
    return None if value == default else value


def requested_output_type(sampling: OmniDiffusionSamplingParams | None, default: str) -> str:
    """The output type that a request asks for, wherever it says so."""
    if sampling is None:
        return default
    return sampling.extra_args.get("output_type", sampling.output_type or default)


def model_index_value(od_config: OmniDiffusionConfig, name: str, default: Any = None) -> Any:
    """A setting of the pipeline: the engine's where it is set, else as ``model_index.json`` registers it."""
    given = getattr(od_config, name, None)
    if given is not None:  # Wan's boundary_ratio
        return given
    index = get_hf_file_to_dict("model_index.json", od_config.model, od_config.revision) or {}
    return index.get(name, default)


def refuse_parallelism(od_config: OmniDiffusionConfig, pipeline: str, derived: dict[str, str] | None = None) -> None:
    """Refuse to run distributed in ways that the port was not verified for.

    Args:
        derived: by size, ``verified``, ``derived`` (runs with ``PORTER_UNVERIFIED=1`` in the environment) or why not.

    Raises:
        ValueError: a parallel size above one; without a plan the engine would shard what the model does not expect.
    """
    for size in ("tensor_parallel_size", "sequence_parallel_size", "cfg_parallel_size"):
        value = getattr(od_config.parallel_config, size, 1) or 1
        state = (derived or {}).get(size, "")
        if value <= 1 or state == "verified" or (state == "derived" and os.environ.get("PORTER_UNVERIFIED") == "1"):
            continue
        hint = " or with PORTER_UNVERIFIED=1 in the environment" if state == "derived" else ""
        reason = f" ({state})" if ":" in state else ""
        raise ValueError(f"{pipeline} was not verified for {size}={value}{reason}; run it with {size}=1{hint}.")


def component_spec(od_config: OmniDiffusionConfig, name: str) -> tuple[str, str] | None:
    """(library, class name) of a component in ``model_index.json``; None if the checkpoint has none."""
    index = get_hf_file_to_dict("model_index.json", od_config.model, od_config.revision) or {}
    spec = index.get(name)
    return (spec[0], spec[1]) if spec and spec[0] is not None and spec[1] is not None else None


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Make tensors as diffusers does, whatever dtype the engine builds models in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def load_component(od_config: OmniDiffusionConfig, name: str, *classes: type) -> Any:
    """Load a component from its folder, as the class that ``model_index.json`` names.

    Args:
        name: the component, and the folder it lies in.
        classes: classes known to the port; the one with the named class's name is preferred over the library's.

    Raises:
        ValueError: ranks that work on different requests are to share the decoding.
    """
    spec = component_spec(od_config, name)
    if spec is None:
        return None
    library, class_name = spec
    component = next((c for c in classes if getattr(c, "__name__", None) == class_name), None)
    if component is None:
        # A component is named by its library, or by the diffusers pipeline that it belongs to.
        own = hasattr(importlib.import_module("diffusers.pipelines"), library)
        module = f"diffusers.pipelines.{library}" if own else library
        component = getattr(importlib.import_module(module), class_name)
    arguments: dict[str, Any] = {"subfolder": name, "local_files_only": os.path.isdir(od_config.model)}
    if od_config.revision and not arguments["local_files_only"]:
        arguments["revision"] = od_config.revision
    if not issubclass(component, torch.nn.Module):
        with float32_by_default():
            return with_flow_shift(od_config, component.from_pretrained(od_config.model, **arguments))
    arguments["torch_dtype" if component.__module__.startswith("diffusers") else "dtype"] = od_config.dtype
    # The engine tells one component how many ranks share it: the one that the pipeline calls its vae.
    is_shared = name == "vae" and od_config.parallel_config.vae_patch_parallel_size > 1
    shared = distributed_class(component) if is_shared else None
    if shared is not None:
        if (od_config.parallel_config.data_parallel_size or 1) > 1:
            raise ValueError(
                "With data_parallel_size above 1 (which GPUs that no other size uses make up) ranks have pictures of "
                "different requests and cannot share the decoding; run it with vae_patch_parallel_size=1."
            )
        return decoding_for_all(shared.from_pretrained(od_config.model, **arguments).to(od_config_device()))
    return component.from_pretrained(od_config.model, **arguments).to(od_config_device())


def distributed_class(component: type) -> type | None:
    """The engine's own class of a VAE, whose ranks decode a part of its tiles each; None if the engine has none."""
    for file in sorted(Path(next(iter(autoencoders.__path__))).glob("[!_]*.py")):
        found = None
        with contextlib.suppress(ImportError):  # kernels for a device that is not here
            module = importlib.import_module(f"{autoencoders.__name__}.{file.stem}")
            found = getattr(module, f"Distributed{component.__name__}", None)
        if found is not None and issubclass(found, component):
            return found
    return None


def decoding_for_all(vae: Any) -> Any:
    """``vae``, with what it decodes on every rank.

    Some of the engine's classes leave it on the first one, and the others with nothing; what a pipeline does after
    decoding runs on all of them.
    """
    decode = vae.decode

    @functools.wraps(decode)
    def decode_for_all(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = decode(z, *args, **kwargs)
        if not vae.is_distributed_enabled():
            return result
        sample, group = result[0], vae.distributed_executor.group
        lacks = sample.numel() == 0
        told = torch.tensor([lacks, *([0] * z.ndim if lacks else sample.shape)], device=z.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group)
        is_lacking, *shape = told.tolist()
        if is_lacking:
            sample = z.new_empty(shape) if lacks else sample.to(z.dtype).contiguous()
            torch.distributed.broadcast(sample, group=group, group_src=0)
        return (sample,) if isinstance(result, tuple) else type(result)(sample=sample)

    vae.decode = decode_for_all
    return vae


def with_flow_shift(od_config: OmniDiffusionConfig, component: Any) -> Any:
    """``component`` with the flow shift of the engine's settings, if that is set and it is a scheduler that has one."""
    shift = getattr(od_config, "flow_shift", None)
    name = next((n for n in ("flow_shift", "shift") if n in getattr(component, "config", {})), None)
    if shift is None or name is None or not hasattr(component, "set_timesteps"):
        return component
    return type(component).from_config(component.config, **{name: shift})


def refuse_caching(od_config: OmniDiffusionConfig, pipeline: str, reason: str = "") -> None:
    """Refuse caches that the port's blocks do not fit, or that were calibrated for another port of the same name.

    Args:
        reason: why Cache-DiT cannot run the blocks; empty if it can.

    Raises:
        ValueError: the engine is configured for such a cache.
    """
    backend = getattr(od_config, "cache_backend", None) or "none"
    if backend == "none" or (backend == "cache_dit" and not reason):
        return
    if backend == "cache_dit":
        raise ValueError(f"{pipeline} does not run with cache_backend='cache_dit' ({reason}); leave it out.")
    other = "leave it out" if reason else "use 'cache_dit'"
    raise ValueError(f"{pipeline} has no calibration for cache_backend={backend!r}; {other}.")


def cache_each_branch(pipeline: torch.nn.Module) -> None:
    """Let Cache-DiT keep the branches of guidance apart: a guided step calls the models once for each."""
    if getattr(pipeline.od_config, "cache_backend", None) != "cache_dit":
        return
    for model in (getattr(pipeline, name, None) for name in pipeline._dit_modules):
        config = getattr(model, "_cache_dit_adapter_config", None)
        if config is not None:
            model._cache_dit_adapter_config = dataclasses.replace(config, has_separate_cfg=True)
    predict = getattr(pipeline, "predict_noise_maybe_with_cfg", None)
    if predict is None:
        return

    @functools.wraps(predict)
    def predict_noise(do_true_cfg: bool, *args: Any, **kwargs: Any) -> Any:
        cache_branches(pipeline, bool(do_true_cfg))
        return predict(do_true_cfg, *args, **kwargs)

    pipeline.predict_noise_maybe_with_cfg = predict_noise


def cache_branches(pipeline: Any, guided: bool) -> None:
    """Tell Cache-DiT, before a request's first step, how often a step calls the model in this process."""
    for name in pipeline._dit_modules:
        model = getattr(pipeline, name, None)
        manager = getattr(model, "_context_manager", None)
        for context in (manager.get_context(held) for held in model._context_names) if manager is not None else ():
            if context.transformer_executed_steps == 0:
                apart = guided and pipeline.od_config.parallel_config.cfg_parallel_size == 1
                context.cache_config.enable_separate_cfg = apart


def od_config_device() -> torch.device:
    """The device that components are placed on."""
    from porter.runtime.diffusion.distributed.utils import get_local_device

    return get_local_device()


def component_config(od_config: OmniDiffusionConfig, name: str, component: type) -> FrozenDict:
    """The config of a component without its weights: defaults of its class, then its ``config.json``."""
    signature = inspect.signature(component.__init__).parameters.values()
    defaults = {p.name: p.default for p in signature if p.default is not inspect.Parameter.empty}
    held = get_hf_file_to_dict(f"{name}/config.json", od_config.model, od_config.revision) or {}
    return FrozenDict({**defaults, **held})


def build_component(od_config: OmniDiffusionConfig, name: str, *classes: type, stays: Iterable[type] = ()) -> Any:
    """Build a ported model from its config, to be filled through ``weights_sources``.

    Args:
        name: the component, and the folder it lies in.
        classes: the ported models that it may be.
        stays: classes that are not ported.

    Returns:
        The model, without weights; None if the checkpoint has none, or one that stays diffusers' own.
    """
    spec = component_spec(od_config, name)
    if spec is None or spec[1] in [kind.__name__ for kind in stays]:
        return None
    component = next((c for c in classes if c.__name__ == spec[1]), classes[0])
    held = get_hf_file_to_dict(f"{name}/config.json", od_config.model, od_config.revision) or {}
    accepted = inspect.signature(component.__init__).parameters
    return component(od_config=od_config, **{k: v for k, v in held.items() if k in accepted})


def load_component_weights(pipeline: torch.nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
    """Hand each weight to the component that its name begins with; the names of all that were filled.

    vLLM's ``AutoWeightsLoader`` leaves out tables of rotary embeddings, which some models read from the checkpoint.
    """
    loaded: set[str] = set()
    for component, group in itertools.groupby(weights, key=lambda item: item[0].partition(".")[0]):
        own = ((name.partition(".")[2], tensor) for name, tensor in group)
        loaded.update(f"{component}.{name}" for name in getattr(pipeline, component).load_weights(own))
    return loaded


def weights_source(od_config: OmniDiffusionConfig, name: str) -> DiffusersPipelineLoader.ComponentSource:
    """Where the weights of a ported component come from."""
    return DiffusersPipelineLoader.ComponentSource(
        model_or_path=od_config.model,
        subfolder=name,
        revision=od_config.revision,
        prefix=f"{name}.",
        fall_back_to_pt=True,
    )
