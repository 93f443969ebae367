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
    "docs/models/supported_models.md": """| Architecture | Models | Example HF Models | NVIDIA GPU | AMD GPU |
|---|---|---|---|---|
| `AuraFlow0Pipeline` | Aura | | | |
| `FluxPipeline` | Flux | | yes | |

End.
""",
    "docs/user_guide/diffusion_features.md": """### ImageGen

| Model | TeaCache | Cache-DiT | SP (Ulysses & Ring) | Tensor-Parallel | HSDP | Step Execution |
|---|:---:|:---:|:---:|:---:|:---:|:---:|
| **Bagel** | ✅ | ✅ | ✅ | ✅ | ❌ | ❌ |
| **Flux** | ❌ | ✅ | ✅ | ✅ | ❌ | ❌ |

### VideoGen

| Model | Cache-DiT | CFG-Parallel |
|---|:---:|:---:|
| **Wan** | ✅ | ✅ |

## Other
""",
    "recipes/README.md": """| Recipe | Task | Hardware |
|---|---|---|
| [`aa/A.md`](./aa/A.md) | Pictures | 1x |
| [`zz/Z.md`](./zz/Z.md) | Pictures | 1x |
""",
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


QUEUES = """steps:
  - group: ":x: Diffusion X2I Model Test"
    steps:
      - label: "Diffusion X2I · Function Test with H100"
        key: one
        # Of all that it tests.
        commands:
          - pytest -s tests/e2e/online_serving/test_old_expansion.py -m "full_model and H100" --run-level "full_model"
        agents:
          queue: "big"
        plugins:
          - docker#v5:
              image: x:$BUILDKITE_COMMIT

      # About the next one.
      - label: "Diffusion X2I · Perf Test"
        commands:
          - pytest -s tests/perf
        agents:
          queue: "big"
"""
PRESETS = """steps:
  - group: ":x: Diffusion X2I(&A&T) Model Test"
    steps:
      - label: ":moon: Diffusion X2I(&A&T) · Function Test with H100 · Single-GPU"
        source_file_dependencies: diffusion_old_function
        timeout_in_minutes: 120
        commands:
          - >-
            pytest -sv
            tests/e2e/online_serving/test_old_expansion.py
            -m "full_model and diffusion and H100 and B200 and cards_1"
            --run-level "full_model"
      - label: ":moon: Diffusion X2I(&A&T) · Function Test with H100 · 2-GPU"
        commands:
          - pytest -sv tests/e2e/old -m "full_model and diffusion and H100 and cards_2"

  - label: "last"
    commands: make
"""
DEPENDENCIES = """source_file_dependencies:
  diffusion_old_function:
    - vllm_omni/diffusion/models/old/

  other:
    - tests/
"""


@pytest.fixture
def ci(checkout: Path) -> Callable[[str], Path]:
    """Gives the tree the CI of one time: ``queues``, or ``presets``."""

    def write(form: str) -> Path:
        files = {".buildkite/test-nightly.yml": QUEUES}
        if form == "presets":
            files = {
                ".buildkite/cuda/test-nightly.yml": PRESETS,
                ".buildkite/common/ci_source_file_dependencies.yml": DEPENDENCIES,
            }
        for name, text in files.items():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_text(text)
        commit(checkout)
        return checkout / next(iter(files))

    return write


@pytest.fixture
def committed() -> Callable[[Path], None]:
    """Records everything."""
    return commit


@pytest.fixture(scope="session")
def converter() -> Converter:
    """For vLLM-Omni; models that pipelines share are built once."""
    return Converter(SourceTree(), get_target("vllm-omni"))
