"""A hand-written port with step execution, and its checkpoint: for tests and benchmarks of the server."""

from __future__ import annotations

import json
from pathlib import Path

MODELS_DIR = Path(__file__).resolve().parent


def write_checkpoint(folder: Path, dim: int = 32, layers: int = 2, pipeline: str = "ToyPipeline") -> Path:
    """A checkpoint of the toy with seeded random weights."""
    import torch
    from safetensors.torch import save_file

    from porter.runtime.diffusion.registry import ModelRegistry

    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    config = {"_class_name": "ToyTransformer2DModel", "dim": dim, "layers": layers}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    pipeline_cls = ModelRegistry(MODELS_DIR).load(pipeline).pipeline_cls
    torch.manual_seed(0)
    transformer = pipeline_cls.transformer_cls(dim=dim, layers=layers)
    save_file(transformer.state_dict(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return folder
