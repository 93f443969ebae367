"""The weight check is strict in both directions, and names what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.omni, pytest.mark.slow, pytest.mark.usefixtures("own_tables")]


def load(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Load the checkpoint with other tensors in its transformer."""
    from safetensors.torch import load_file, save_file

    from porter.omni.plugin import use_port
    from porter.omni.worker import OneWorker

    [file] = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    use_port("StableDiffusion3Pipeline")
    OneWorker(folder).close()


@pytest.fixture
def copy(checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("StableDiffusion3Pipeline"), tmp_path / "changed"))


def test_a_missing_parameter(copy: Path) -> None:
    with pytest.raises(ValueError, match=r"not initialized from checkpoint: \{'transformer.proj_out.bias'\}"):
        load(copy, lambda tensors: tensors.pop("proj_out.bias"))


def test_a_missing_buffer(copy: Path) -> None:
    with pytest.raises(ValueError, match="lacks tensors of SD3Transformer2DModel: pos_embed.pos_embed"):
        load(copy, lambda tensors: tensors.pop("pos_embed.pos_embed"))


def test_an_unknown_tensor(copy: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["proj_out.scale"] = tensors["proj_out.bias"].clone()

    with pytest.raises(ValueError, match="SD3Transformer2DModel has no parameter or buffer 'proj_out.scale'"):
        load(copy, add)


def test_a_misnamed_tensor(copy: Path) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        tensors["proj_out.biases"] = tensors.pop("proj_out.bias")

    with pytest.raises(ValueError, match="has no parameter or buffer 'proj_out.biases'"):
        load(copy, rename)
