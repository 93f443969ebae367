"""A small source tree in the layout of vLLM-Omni."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from porter.port import Converter
from porter.source import SourceTree
from porter.targets import get_target

FILES = {
    "vllm_omni/_version.py": "__version__ = version = '0.30.0'\n",
    "vllm_omni/inputs/data.py": "class OmniDiffusionSamplingParams:\n    height: int\n    width: int\n    seed: int\n",
    "vllm_omni/diffusion/registry.py": """_DIFFUSION_MODELS = {
    # arch: (folder, module, class)
    "FluxPipeline": (
        "flux",
        "pipeline_flux",
        "FluxPipeline",
    ),
    # The last one.
    "KreaPipeline": (
        "krea",
        "pipeline_krea",
        "KreaPipeline",
    ),
}
_DIFFUSION_MODELS["Alias"] = _DIFFUSION_MODELS["FluxPipeline"]

_DIFFUSION_POST_PROCESS_FUNCS = {
    "FluxPipeline": "get_flux_post",  # by hand
    "KreaPipeline": "get_krea_post",
}
_DIFFUSION_PRE_PROCESS_FUNCS = {
    "FluxPipeline": "get_flux_pre",
}
""",
    "vllm_omni/diffusion/model_metadata.py": "_DIFFUSION_MODEL_METADATA: dict = {\n}\n",
    "vllm_omni/model_extras/registry.py": """from PIL import Image

from vllm_omni.model_extras.bagel import BAGEL
from vllm_omni.model_extras.vace import VACE

_EXTRA_SPECS: dict = {
    "BagelPipeline": {
        "extra_body_params": BAGEL,
    },
}
""",
    "vllm_omni/diffusion/models/flux/pipeline_flux.py": "import torch\n\n\nclass FluxPipeline(Base):\n    pass\n",
    "docs/models/supported_models.md": "| Architecture | Models |\n|---|---|\n| `FluxPipeline` | Flux |\n\nEnd.\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The tree, committed to git."""
    root = tmp_path / "vllm-omni"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    commit(root)
    return root


def commit(root: Path) -> None:
    """Record everything."""
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(root), *command], check=True, capture_output=True)


@pytest.fixture
def committed() -> Callable[[Path], None]:
    """Records everything."""
    return commit


@pytest.fixture(scope="session")
def converter() -> Converter:
    """For vLLM-Omni; models that pipelines share are built once."""
    return Converter(SourceTree(), get_target("vllm-omni"))
