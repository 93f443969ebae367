"""The same input gives the same bytes, whatever the hash seed, the folder, the number of processes and the Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from parity_tests.pythons import OWN, ROOT, VERSIONS, environments
from porter.source import SourceTree

PYTHONS = environments()
# Two folders of diffusers, so that two processes have something to do.
NAMES = ("QwenImageEditPipeline", "FluxPipeline")


def convert(python: str, folder: Path, seed: int, jobs: int) -> dict[str, bytes]:
    """What a conversion in ``folder`` writes and prints."""
    folder.mkdir(parents=True)
    command = [python, "-m", "porter", "convert", *NAMES, "--source", str(SourceTree().root), "--no-cache", "--json"]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed), "PORTER_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [*command, "--jobs", str(jobs), "-o", "out"],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, **environment},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    out = folder / "out"
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    return found | {"printed": done.stdout}


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, bytes]:
    return convert(PYTHONS[OWN], tmp_path_factory.mktemp("first") / "here", seed=0, jobs=1)


def test_another_seed_folder_and_number_of_processes(expected, tmp_path):
    found = convert(PYTHONS[OWN], tmp_path / "a folder" / "elsewhere", seed=1, jobs=4)
    assert "flux/flux_transformer.py" in found and "manifest.json" in found
    assert found == expected


@pytest.mark.parametrize("version", sorted(set(PYTHONS) - {OWN}))
def test_another_python(expected, tmp_path, version):
    assert convert(PYTHONS[version], tmp_path / version, seed=2, jobs=1) == expected


def test_in_ci_every_version_that_is_supported_ran():
    if os.environ.get("CI"):
        assert set(PYTHONS) == set(VERSIONS), "make pythons"
