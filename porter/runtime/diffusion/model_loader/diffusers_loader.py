"""DiffusersPipelineLoader: builds a pipeline and fills it from a diffusers checkpoint, strict both ways."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Hashable, Iterator

import torch
from torch import nn

from porter.runtime.diffusion.config import set_current_diffusion_config
from porter.runtime.diffusion.data import OmniDiffusionConfig
from porter.runtime.diffusion.distributed.utils import set_local_device
from porter.runtime.diffusion.model_loader.checkpoint_files import find_checkpoint_files, iterate_tensors
from porter.runtime.errors import CheckpointError, CheckpointFileError, ConfigError
from porter.runtime.logger import init_logger
from porter.runtime.model_executor.layers.linear import missing_shards
from porter.runtime.model_executor.models.utils import TrackedWeights, persistent_buffers

logger = init_logger(__name__)

# What PyTorch's CPU allocator guarantees for tensors that it makes itself.
_ALIGNMENT = 64

# Parts of names, of a fused layer and of one that it holds, and the shard that this one is.
Mapping = tuple[str, str, Hashable]


@contextlib.contextmanager
def set_default_torch_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make ``dtype`` the default of new floating tensors inside the block."""
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


class DiffusersPipelineLoader:
    """Loads one pipeline.

    Components that the pipeline builds with ``from_pretrained`` bring their own weights. For the others the
    pipeline lists ``weights_sources`` and takes the tensors in ``load_weights``.
    """

    @dataclasses.dataclass
    class ComponentSource:
        """Where the weights of one component come from.

        Attributes:
            model_or_path: a folder or a hub id.
            subfolder: the component's folder in it.
            revision: of the hub model.
            prefix: prepended to each tensor's name, e.g. ``"transformer."``.
            fall_back_to_pt: whether ``.bin`` files may serve when there are no safetensors.
            allow_patterns_overrides: file names (patterns) in the subfolder to read instead of the usual ones.
        """

        model_or_path: str
        subfolder: str | None
        revision: str | None
        prefix: str = ""
        fall_back_to_pt: bool = True
        allow_patterns_overrides: list[str] | None = None

    def __init__(self, od_config: OmniDiffusionConfig) -> None:
        self.od_config = od_config

    def load_model(self, pipeline_cls: type[nn.Module], target_device: torch.device) -> nn.Module:
        """Build ``pipeline_cls(od_config=...)`` on the device, fill it, and return it in eval mode.

        Raises:
            CheckpointError: the checkpoint does not fit the model.
        """
        # On the CPU a device context would change nothing but slow every torch call down.
        device_context = contextlib.nullcontext() if target_device.type == "cpu" else target_device
        with set_default_torch_dtype(self.od_config.dtype), set_local_device(target_device):
            with device_context, set_current_diffusion_config(self.od_config):
                pipeline = pipeline_cls(od_config=self.od_config)
            self._configure_vae(pipeline)
            self.load_weights(pipeline)
        pipeline.to(target_device)
        pipeline.eval()
        align_storages(pipeline)
        return pipeline

    def load_weights(self, model: nn.Module) -> None:
        """Stream the checkpoint into ``model.load_weights`` and compare both sides' names.

        Each parameter and persistent buffer under the prefix of a source must have been filled, and each checkpoint
        tensor must have been taken. ``load_weights`` of the model returns the names that it filled, plus those
        checkpoint names that it left out on purpose. Names that it fused count as taken if a module's
        ``stacked_params_mapping`` of ``(fused, single, shard)`` leads to a filled one.

        Raises:
            CheckpointError: naming every tensor that is missing, without a taker, or of the wrong shape.
        """
        sources: list[DiffusersPipelineLoader.ComponentSource] = list(getattr(model, "weights_sources", ()))
        if not sources:
            return
        start = time.perf_counter()
        weights = TrackedWeights(self._iterate_sources(sources))
        failure = CheckpointError()
        try:
            loaded = weights.feed(model.load_weights, type(model).__name__)
        except CheckpointFileError:
            raise
        except CheckpointError as error:
            failure, loaded = error, error.loaded

        missing, unexpected = [], list(failure.unexpected)
        if failure.complete:
            mappings = _stacked_mappings(model)
            missing = _unfilled(model, tuple(source.prefix for source in sources), loaded, mappings)
            taken = loaded | set(unexpected)
            unexpected += [n for n in weights.names if n not in taken and not _taken_fused(n, mappings, loaded)]
        if missing or unexpected or failure.misshapen or failure.headline:
            where = ", ".join(sorted({f"{s.model_or_path}/{s.subfolder or ''}" for s in sources}))
            headline = f"the weights in {where} do not fit {type(model).__name__}"
            raise CheckpointError(
                f"{headline}: {failure.headline}" if failure.headline else headline,
                missing=missing,
                unexpected=unexpected,
                misshapen=failure.misshapen,
                loaded=loaded,
                complete=failure.complete,
            )
        logger.info("loaded %d tensors in %.2f seconds", len(weights.names), time.perf_counter() - start)

    def _iterate_sources(self, sources: list[ComponentSource]) -> Iterator[tuple[str, torch.Tensor]]:
        for source in sources:
            # A source may leave the revision open; it is then the one that the whole model was asked for.
            same_model = source.model_or_path == self.od_config.model
            revision = source.revision or (self.od_config.revision if same_model else None)
            files = find_checkpoint_files(
                source.model_or_path,
                source.subfolder,
                revision,
                fall_back_to_pt=source.fall_back_to_pt,
                allow_patterns=source.allow_patterns_overrides,
            )
            for name, tensor in iterate_tensors(files):
                yield source.prefix + name, tensor

    def _configure_vae(self, pipeline: nn.Module) -> None:
        vae = getattr(pipeline, "vae", None)
        for attribute in ("use_slicing", "use_tiling"):
            wanted = getattr(self.od_config, f"vae_{attribute}")
            if wanted and not hasattr(vae, attribute):
                raise ConfigError(f"vae_{attribute} is set, and the pipeline's vae does not have it")
            if wanted:
                setattr(vae, attribute, True)


def align_storages(module: nn.Module) -> int:
    """Copy each CPU parameter and buffer that does not start at a 64-byte boundary; return how many there were.

    Tensors that a library took straight out of a mapped safetensors file start wherever the file's header ends. For
    such addresses CPU kernels choose other code paths (peeled loops, no packed loads), whose sums are ordered
    otherwise: the same weights then give results that differ in the last bits.
    """
    copied = 0
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
            copied += 1
    return copied


def _unfilled(model: nn.Module, prefixes: tuple[str, ...], loaded: set[str], mappings: list[Mapping]) -> list[str]:
    """Names under the prefixes that nothing filled; for a fused parameter, those of the shards that it lacks."""
    owners: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        tensors = dict(module._parameters) | persistent_buffers(module)
        for name, tensor in tensors.items():
            if tensor is not None:
                owners.setdefault(id(tensor), []).append((f"{path}.{name}" if path else name, tensor))
    unfilled = []
    for aliases in owners.values():
        name, tensor = aliases[0]
        # A tied tensor is filled under any one of its names.
        names = [alias for alias, _ in aliases if alias.startswith(prefixes)]
        if not names or getattr(tensor, "is_checkpoint_optional", False):
            continue
        shards = missing_shards(tensor)
        if shards:
            unfilled += _names_of_shards(names[0], shards, mappings)
        elif not loaded.intersection(names):
            unfilled.append(names[0])
    return unfilled


def _names_of_shards(name: str, shards: list[Hashable], mappings: list[Mapping]) -> list[str]:
    """What a checkpoint calls the shards of a fused parameter; its own name where no module says."""
    found = {key: name.replace(fused, single) for fused, single, key in mappings if fused in name}
    unknown = [str(shard) for shard in shards if shard not in found]
    named = [found[shard] for shard in shards if shard in found]
    return [*named, f"{name} (shards {', '.join(unknown)})"] if unknown else named


def _stacked_mappings(model: nn.Module) -> list[Mapping]:
    """(fused, single, shard): name parts that the modules declare."""
    mappings: list[Mapping] = []
    for module in model.modules():
        mappings += [tuple(entry[:3]) for entry in getattr(module, "stacked_params_mapping", None) or ()]
    return list(dict.fromkeys(mappings))


def _taken_fused(name: str, mappings: list[Mapping], loaded: set[str]) -> bool:
    return any(single in name and name.replace(single, fused) in loaded for fused, single, _ in mappings)
