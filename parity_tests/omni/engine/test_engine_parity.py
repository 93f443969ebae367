"""Ports in vLLM-Omni's own worker against plain diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest

from porter.parity import run_parity

pytestmark = [pytest.mark.omni, pytest.mark.slow, pytest.mark.usefixtures("own_tables")]

# One of each kind; docs/omni_parity.md has them all.
PORTS = [
    "QwenImageEditPipeline",  # a picture and a pre-processing hook
    "FluxPipeline",  # two kinds of blocks
    "StableDiffusion3Pipeline",  # three text encoders, a persistent buffer
    "ZImagePipeline",
    "WanImageToVideoPipeline",  # a video, two transformers
    "LTXPipeline",  # a video
    "StableAudio3Pipeline",  # sound, a table of rotary embeddings in the checkpoint
    "PixArtAlphaPipeline",  # the classic Attention; vLLM-Omni has no model of its own
    "SanaPipeline",  # linear attention; vLLM-Omni has no model of its own
    "StableDiffusionPipeline",  # nothing that is converted but the pipeline
]


@pytest.mark.parametrize("name", PORTS)
def test_a_port_computes_what_diffusers_computes(name: str) -> None:
    report = run_parity(name, engine="vllm-omni", cases=["plain", "guidance omitted"])
    assert report.verdict == "parity", report.reason or report.cases[0].port_error
    assert report.largest_difference == 0
    assert report.command == f"porter parity {name} --engine vllm-omni"
    assert {"vllm-omni", "diffusers"} <= report.environment.keys()


def test_committed_ports_serve_what_the_installed_diffusers_lacks(committed: Path) -> None:
    """A port of a newer diffusers, translated, is the engine's model; here one that both have, to compare it."""
    report = run_parity("SanaPipeline", engine="vllm-omni", models_dir=committed, cases=["plain"])
    assert report.passed, report.reason


@pytest.mark.parametrize(
    ("parts", "asked"),
    [("*", "float32"), ("transformer", "float32"), ("vae", "bfloat16")],
    ids=["all in half", "one component in half", "asked for half, one component has it"],
)
def test_a_checkpoint_in_another_dtype_is_cast_as_diffusers_casts_it(
    checkpoint, tmp_path: Path, parts: str, asked: str
) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(checkpoint("SanaPipeline"), tmp_path / "half"))
    files = list(folder.glob(f"{parts}/*.safetensors"))
    assert files
    for file in files:
        tensors = load_file(file)
        save_file({k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}, file, {"format": "pt"})
    report = run_parity("SanaPipeline", engine="vllm-omni", checkpoint=folder, cases=["plain"], dtype=asked, threads=1)
    assert report.passed, report.reason
    assert torch.get_default_dtype() == torch.float32
