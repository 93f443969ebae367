"""A hand-written toy port and its checkpoint: small enough to read, with one of everything the runtime handles."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import save_file

from porter.emit.templates import fill

TRANSFORMER = """
import torch
from torch import nn

from porter.runtime.diffusion.attention.backends.abstract import AttentionMetadata
from porter.runtime.diffusion.attention.layer import Attention


class ToyTransformer2DModel(nn.Module):
    def __init__(self, od_config=None, dim: int = 16, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn = Attention(num_heads=heads, head_size=dim // heads, causal=False, softmax_scale=None)
        self.out = nn.Linear(dim, dim, bias=False)
        self.register_buffer("table", torch.zeros(dim))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x + self.table).unflatten(-1, (3, self.heads, -1)).unbind(2)
        metadata = AttentionMetadata(attn_mask=mask) if mask is not None else None
        return (self.out(self.attn(q, k, v, metadata).flatten(2)),)
"""

PIPELINE = """
import torch
from torch import nn

from porter.runtime.diffusion.data import DiffusionOutput
from porter.runtime.diffusion.distributed.utils import get_local_device
from porter.runtime.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
from porter.runtime.diffusion.models.progress_bar import ProgressBarMixin
from porter.runtime.diffusion.profiler.diffusion_pipeline_profiler import DiffusionPipelineProfilerMixin
from porter.runtime.diffusion.utils.tf_utils import get_transformer_config_kwargs
from porter.runtime.model_executor.models.utils import AutoWeightsLoader

from .toy_transformer import ToyTransformer2DModel


def get_toy_pre_process_func(od_config):
    def pre_process_func(request):
        if isinstance(request.prompt, str):
            request.prompt = {"prompt": request.prompt}
        request.prompt["additional_information"] = {"prepared": True}
        request.prompt.get("multi_modal_data", {}).pop("image", None)
        return request

    return pre_process_func


def get_toy_post_process_func(od_config):
    def post_process_func(images, sampling_params=None):
        if sampling_params.output_type == "latent":
            return images
        if sampling_params.output_type == "video":
            return {"video": images, "fps": 8, "audio": images[0], "audio_sample_rate": 16000}
        return [image.numpy() for image in images]

    return post_process_func


class ToyPipeline(nn.Module, ProgressBarMixin, DiffusionPipelineProfilerMixin):
    def __init__(self, *, od_config, prefix=""):
        super().__init__()
        self.od_config = od_config
        self.device = get_local_device()
        kwargs = get_transformer_config_kwargs(od_config.tf_model_config, ToyTransformer2DModel)
        self.transformer = ToyTransformer2DModel(od_config=od_config, **kwargs)
        self.weights_sources = [
            DiffusersPipelineLoader.ComponentSource(
                model_or_path=od_config.model, subfolder="transformer", revision=None, prefix="transformer."
            )
        ]
        self.setup_diffusion_pipeline_profiler(
            ["diffuse"], enable_diffusion_pipeline_profiler=od_config.enable_diffusion_pipeline_profiler
        )

    def diffuse(self, x, steps):
        with self.progress_bar(total=steps) as bar:
            for _ in range(steps):
                x = x - 0.1 * self.transformer(x)[0]
                bar.update()
        return x

    def forward(self, req, num_inference_steps=2):
        assert not torch.is_grad_enabled()
        [prompt], params = req.prompts, req.sampling_params
        assert prompt["additional_information"]["prepared"]
        texts = prompt["prompt"] if isinstance(prompt["prompt"], list) else [prompt["prompt"]]
        if "boom" in texts:
            return DiffusionOutput(error="boom")
        params.extra_args.pop("knob", None)
        count = len(texts) * params.num_outputs_per_prompt
        dtype = self.transformer.out.weight.dtype
        x = torch.randn(count, 4, 16, generator=params.generator, device=self.device).to(dtype)
        return DiffusionOutput(output=self.diffuse(x, params.num_inference_steps or num_inference_steps))

    def load_weights(self, weights):
        return AutoWeightsLoader(self).load_weights(weights)
"""

REGISTRY = """
_DIFFUSION_MODELS = {"ToyPipeline": ("toy", "pipeline_toy", "ToyPipeline")}
_DIFFUSION_PRE_PROCESS_FUNCS = {"ToyPipeline": "get_toy_pre_process_func"}
_DIFFUSION_POST_PROCESS_FUNCS = {"ToyPipeline": "get_toy_post_process_func"}
"""


@pytest.fixture
def toy_state() -> dict[str, torch.Tensor]:
    """Random tensors under the names of ToyTransformer2DModel."""
    dim, generator = 16, torch.Generator().manual_seed(0)
    shapes = {"qkv.weight": (3 * dim, dim), "qkv.bias": (3 * dim,), "out.weight": (dim, dim), "table": (dim,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A folder as ``porter convert -o`` writes it."""
    folder = tmp_path / "ports"
    (folder / "toy").mkdir(parents=True)
    (folder / "registry.py").write_text(textwrap.dedent(REGISTRY))
    (folder / "toy" / "__init__.py").write_text("")
    (folder / "toy" / "toy_transformer.py").write_text(TRANSFORMER)
    (folder / "toy" / "pipeline_toy.py").write_text(PIPELINE)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, toy_state: dict[str, torch.Tensor]) -> Path:
    """A diffusers-style checkpoint of the toy."""
    folder = tmp_path / "checkpoint"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    config = {"_class_name": "ToyTransformer2DModel", "dim": 16, "heads": 2}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    save_file(toy_state, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return folder


SUPPORT = """\
cache_branches = print


def request_state(batch):
    [request] = batch.requests
    if not hasattr(request, "extra"):
        request.extra = {}
    return request
"""


@pytest.fixture(scope="module")
def stepwise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The file that a family has, with a support file of two functions."""
    folder = tmp_path_factory.mktemp("families") / "batching_family"
    folder.mkdir()
    for name in ("stepwise", "invariants"):
        text = re.sub(r"from vllm(_omni)?\.", "from porter.runtime.", fill(f"{name}.py.j2"))
        (folder / f"{name}.py").write_text(text)
    (folder / "support.py").write_text(SUPPORT)
    (folder / "__init__.py").touch()
    sys.path.insert(0, str(folder.parent))
    yield importlib.import_module("batching_family.stepwise")
    sys.path.remove(str(folder.parent))
