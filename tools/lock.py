"""Write requirements/lock.txt: what pip resolves for porter with its development tools.

    python tools/lock.py

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
OF_TORCH = re.compile(r"(nvidia|cuda)-.*|triton")


def main() -> int:
    """Resolve and write."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), "--requirement", str(REQUIREMENTS / "lock.in"), *wanted()]
        subprocess.run(command, check=True)
        installs = json.loads(report.read_text("utf-8"))["install"]
    pins = {canonical(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in installs}
    lines = [f"{name}=={version.partition('+')[0]}\n" for name, version in sorted(pins.items())]
    kept = [line for line in lines if not OF_TORCH.fullmatch(line.partition("==")[0])]
    (REQUIREMENTS / "lock.txt").write_text(HEADER + "".join(kept), "utf-8")
    print(f"requirements/lock.txt: {len(kept)} packages")
    return 0


def wanted() -> list[str]:
    """The requirements of porter and of its extras `serve` and `dev`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    found = [*project["dependencies"], *extras["serve"], *extras["dev"]]
    return [requirement for requirement in found if not requirement.startswith(f"{project['name']}[")]


def canonical(name: str) -> str:
    """The name of a distribution as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
