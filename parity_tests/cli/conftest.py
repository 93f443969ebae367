"""A small diffusers package as source, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from porter.cli import main

PIPELINE = '''\
import torch

from ...models.transformers.transformer_{stem} import {name}Transformer2DModel
from ..pipeline_utils import DiffusionPipeline, ImagePipelineOutput


class {name}Pipeline(DiffusionPipeline):
    """A pipeline of one linear layer."""

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: {name}Transformer2DModel):
        super().__init__()
        self.register_modules(transformer=transformer)

    @torch.no_grad()
    def __call__(self, prompt=None, height=None, width=None, num_inference_steps: int = 2, generator=None,
                 callback_on_step_end=None, return_dict: bool = True):
        image = torch.zeros((1, 4))
        for step in range(num_inference_steps):
            image = self.transformer(image)
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, 0, {{}})
        if not return_dict:
            return (image,)
        return ImagePipelineOutput(images=image)
'''

MODEL = """\
import torch
from torch import nn

from ...configuration_utils import ConfigMixin, register_to_config
from ..modeling_utils import ModelMixin


class {name}Transformer2DModel(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, dim: int = 4):
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.proj(hidden_states)
"""


@dataclass
class Tree:
    """A package folder named ``diffusers`` that is written file by file."""

    root: Path

    def write(self, file: str, text: str) -> Path:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.parents:
            if self.root not in (parent, *parent.parents):
                break
            (parent / "__init__.py").touch()
        path.write_text(text, encoding="utf-8")
        return path

    def add(self, name: str) -> None:
        """A pipeline and its model."""
        stem = name.lower()
        self.write(f"pipelines/{stem}/pipeline_{stem}.py", PIPELINE.format(name=name, stem=stem))
        self.write(f"models/transformers/transformer_{stem}.py", MODEL.format(name=name))


@pytest.fixture
def tree(tmp_path) -> Tree:
    made = Tree(tmp_path / "source" / "diffusers")
    made.write("__init__.py", '__version__ = "0.42.1"\n')
    made.write("models/modeling_utils.py", "class ModelMixin:\n    pass\n")
    made.write("configuration_utils.py", "class ConfigMixin: ...\n\n\ndef register_to_config(init): ...\n")
    made.write(
        "pipelines/pipeline_utils.py", "class DiffusionPipeline:\n    pass\n\n\nclass ImagePipelineOutput:\n    pass\n"
    )
    made.add("Tiny")
    return made


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def porter(tmp_path, monkeypatch, capfd) -> Callable[..., Result]:
    """Runs a command in an empty folder, with a cache of its own."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PORTER_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run
