"""What is declared, what is locked, and what a wheel carries."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import porter

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def lock() -> dict[str, Version]:
    lines = (ROOT / "requirements" / "lock.txt").read_text("utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {name: Version(version) for name, version in pins}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet"]
    result = subprocess.run([*command, "--wheel-dir", str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [path] = folder.glob("porter-*.whl")
    return zipfile.ZipFile(path)


def test_the_version_is_the_same_everywhere():
    assert porter.__version__ == PROJECT["version"]


def test_the_lock_holds_pins_and_nothing_else(lock):
    text = (ROOT / "requirements" / "lock.txt").read_text("utf-8")
    for line in text.splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.!]+", line), line
    assert list(lock) == sorted(lock)


def test_the_lock_satisfies_what_is_declared(lock):
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["serve"], *extras["dev"]]:
        requirement = Requirement(line)
        if requirement.name != PROJECT["name"]:
            name = canonicalize_name(requirement.name)
            assert name in lock, f"{name} is declared and not locked: make lock"
            assert requirement.specifier.contains(lock[name]), f"{line} is locked at {lock[name]}: make lock"


def test_the_lock_holds_what_lock_in_fixes(lock):
    for line in (ROOT / "requirements" / "lock.in").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)])


def test_a_wheel_carries_package_templates_ports_and_data(wheel):
    inside = set(wheel.namelist())
    wanted = {f"{path.relative_to(ROOT)}" for path in (ROOT / "porter").rglob("*.py")}
    for folder in ("targets/data", "parity/data"):
        wanted |= {f"{path.relative_to(ROOT)}" for path in (ROOT / "porter" / folder).rglob("*") if path.is_file()}
    for folder in ("templates", "generated_models"):
        wanted |= {f"porter/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*") if path.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert "porter/targets/data/targets.toml" in wanted
    assert wanted <= inside, sorted(wanted - inside)


def test_a_wheel_carries_nothing_besides(wheel):
    roots = {name.split("/")[0] for name in wheel.namelist()}
    assert roots == {"porter", f"porter-{PROJECT['version']}.dist-info"}


def test_a_wheel_has_the_command_and_the_licence(wheel):
    [entry_points] = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert "porter = porter.cli:main" in wheel.read(entry_points).decode()
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in wheel.namelist() if "/licenses/" in name}
