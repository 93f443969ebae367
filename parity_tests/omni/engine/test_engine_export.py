"""Ports exported into a copy of the real package: it imports, resolves every model, and runs them at parity."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from porter.export.checkout import EXTRAS, METADATA, REGISTRY, open_checkout
from porter.export.plan import check_plan, plan_export, write_plan
from porter.port import Converter
from porter.source import SourceTree
from porter.targets import get_target

pytestmark = [pytest.mark.omni, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]
# Of each kind one: a picture, from a picture, an edit (in the place of vllm_omni's own), a video, with sound, sound.
NAMES = [
    "AuraFlowPipeline",
    "FluxImg2ImgPipeline",
    "QwenImageEditPlusPipeline",
    "LTXPipeline",
    "LTX2ImageToVideoPipeline",
    "StableAudio3Pipeline",
]


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the installed package with the models in it."""
    spec = importlib.util.find_spec("vllm_omni")
    assert spec is not None and spec.origin is not None
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(Path(spec.origin).parent, root / "vllm_omni", ignore=shutil.ignore_patterns("__pycache__"))
    plan = plan_export(Converter(SourceTree(), get_target("vllm-omni")), NAMES, open_checkout(root))
    check_plan(plan, force=False)
    assert plan.changed and write_plan(plan)
    return root


@pytest.fixture(scope="module")
def found(patched: Path) -> dict[str, Any]:
    """What a process with that package first on its path says."""
    script = Path(__file__).with_name("exported.py")
    done = subprocess.run([sys.executable, script, *NAMES], env=environment(patched), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["package"].startswith(str(patched))
    return result


def environment(patched: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(patched), str(ROOT)]), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def with_helpers(patched: Path) -> Path:
    """The patched package with stand-ins for the helpers of vLLM-Omni's own tests, which its wheel leaves out."""
    shutil.copytree(Path(__file__).with_name("test_helpers"), patched / "tests/helpers", dirs_exist_ok=True)
    shutil.move(patched / "tests/helpers/conftest.py", patched / "tests/e2e/conftest.py")
    for folder in (patched / "tests", patched / "tests/helpers"):
        (folder / "__init__.py").touch()
    return patched


def pytest_in(patched: Path, *arguments: object, **more: str) -> str:
    """What pytest says in a process with the patched package first on its path; it has to succeed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", patched, *arguments]
    done = subprocess.run(
        list(map(str, command)), env=environment(patched) | more, cwd=patched, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_only_entries_were_put_into_the_package(patched: Path) -> None:
    own = Path(str(importlib.util.find_spec("vllm_omni").origin)).parent.parent  # type: ignore[union-attr]
    removed = []
    for path in sorted((own / "vllm_omni").rglob("*.py")):
        name = path.relative_to(own).as_posix()
        before, after = path.read_text("utf-8"), (patched / name).read_text("utf-8")
        if before != after:
            assert name in (REGISTRY, METADATA, EXTRAS)
            diff = difflib.ndiff(before.splitlines(), after.splitlines())
            removed += [line for line in diff if line.startswith("-")]
    assert removed == [
        '-         "qwen_image",',
        '-     "QwenImageEditPlusPipeline": "get_qwen_image_edit_plus_pre_process_func",',
    ]


def test_every_model_resolves(found: dict[str, Any]) -> None:
    from vllm_omni.diffusion.registry import DiffusionModelRegistry

    from porter.omni.choice import native_models

    lost = [name for name in native_models() if not found["models"].get(name)]
    # A model that lacks a package on this machine does so without the export too.
    assert [name for name in lost if DiffusionModelRegistry._try_load_model_cls(name) is not None] == []
    for name in NAMES:
        assert ".pipeline_" in found["models"][name], name


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_model_is_at_parity(found: dict[str, Any], name: str) -> None:
    assert found["parity"][name] == {"verdict": "parity", "reason": "", "largest_difference": 0.0, "weights": True}


def test_the_exported_tests_pass(patched: Path) -> None:
    found = pytest_in(patched, "--noconftest", "-m", "core_model and cpu", patched / "tests/diffusion")
    assert "failed" not in found and "skipped" not in found


def test_the_tests_that_need_a_checkpoint_are_collected_by_the_marks_that_the_ci_asks_for(with_helpers: Path) -> None:
    tests = sorted(path.stem for path in with_helpers.glob("tests/e2e/*/test_*.py"))
    assert len(tests) > len(NAMES)
    marks = "full_model and diffusion and H100"
    found = pytest_in(with_helpers, "--collect-only", "-m", marks, with_helpers / "tests/e2e")
    assert {line.split("/")[-1].split(".py")[0] for line in found.splitlines() if "::" in line} == set(tests)
    assert "tensor_parallel" in found and "one_card" in found


def test_an_exported_test_runs_on_a_tiny_checkpoint(with_helpers: Path, checkpoint) -> None:
    test = with_helpers / "tests/e2e/offline_inference/test_ltx.py"
    found = pytest_in(with_helpers, test, TINY_CHECKPOINT=str(checkpoint("LTXPipeline")))
    assert "1 passed" in found
