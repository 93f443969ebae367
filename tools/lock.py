"""Write requirements/lock.txt, or requirements/omni.txt: what pip resolves for one of porter's environments.

    python tools/lock.py         porter with its development tools
    python tools/lock.py omni    porter beside vLLM-Omni

pip resolves without installing. What torch itself asks for on the platform (the CUDA libraries, triton) is left out:
torch pins that, and it differs between the builds of torch.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
HEADER = """\
# The exact environment of `make venv`, made by `make lock`: change pyproject.toml or lock.in and run that.
# torch and torchvision are installed first; the libraries that a build of torch asks for are left to torch.
"""
OMNI_HEADER = """\
# The exact environment of `make omni-env`, made by `make omni-lock`: change pyproject.toml and run that.
# torch is installed first, with what its build asks for; all others without their dependencies. Left out are those of
# vllm-omni that a test on a CPU does not need, and builds for CUDA that do not import beside a torch for the CPU.
"""
# Installed without its dependencies, so that it is not part of what pip resolves.
ENGINE = {"vllm-omni": "0.30.0"}
OF_TORCH = re.compile(r"(nvidia|cuda)-.*|triton")
OF_OMNI = re.compile(rf"{OF_TORCH.pattern}|torchaudio|torchcodec")


def main() -> int:
    """Resolve and write."""
    if sys.argv[1:] == ["omni"]:
        # hatchling and pytest, because the environment builds porter without isolation, and tests it.
        extra = ["hatchling>=1.27", "pytest>=8.3"]
        return write("omni.txt", OMNI_HEADER, [*wanted("omni"), *extra], OF_OMNI, ENGINE)
    arguments = ["--requirement", str(REQUIREMENTS / "lock.in"), *wanted("serve", "dev")]
    return write("lock.txt", HEADER, arguments, OF_TORCH, {})


def write(name: str, header: str, arguments: list[str], left_out: re.Pattern[str], added: dict[str, str]) -> int:
    """Resolve ``arguments`` of ``pip install`` and write the lock called ``name``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), *arguments], check=True)
        installs = json.loads(report.read_text("utf-8"))["install"]
    pins = {canonical(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in installs} | added
    lines = [f"{name}=={version.partition('+')[0]}\n" for name, version in sorted(pins.items())]
    kept = [line for line in lines if not left_out.fullmatch(line.partition("==")[0])]
    (REQUIREMENTS / name).write_text(header + "".join(kept), "utf-8")
    print(f"requirements/{name}: {len(kept)} packages")
    return 0


def wanted(*extras: str) -> list[str]:
    """The requirements of porter and of some of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return [requirement for requirement in found if not requirement.startswith(f"{project['name']}[")]


def canonical(name: str) -> str:
    """The name of a distribution as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
