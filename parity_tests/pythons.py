"""Other versions of Python, each with what a conversion needs and nothing else, in ``.venv-3.12`` and ``.venv-3.13``.

``python parity_tests/pythons.py`` makes those for which it finds an interpreter, with the versions of the lock; tests
take what is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.11", "3.12", "3.13")
NEEDED = ("jinja2", "libcst", "platformdirs", "pydantic", "rich", "ruff", "typer")
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


def environments() -> dict[str, str]:
    """The interpreter of each version that can convert, this one among them."""
    found = {OWN: sys.executable}
    for version in VERSIONS:
        python = _folder(version) / "bin" / "python"
        if version not in found and (_folder(version) / ".stamp").is_file() and _runs(str(python), version):
            found[version] = str(python)
    return found


def install() -> None:
    """Make the environments that are missing; says which there are."""
    for version in VERSIONS:
        if version in environments():
            continue
        python = _interpreter(version)
        if python is None:
            print(f"no Python {version} here")
            continue
        try:
            _make(_folder(version), python)
        except subprocess.CalledProcessError as error:
            print(f"no environment for Python {version}: {error}", file=sys.stderr)
    print(*(f"Python {version}: {python}" for version, python in sorted(environments().items())), sep="\n")


def _make(folder: Path, python: str) -> None:
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    lock = str(ROOT / "requirements" / "lock.txt")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--only-binary", ":all:", "--constraint", lock, *NEEDED], check=True)
    (folder / ".stamp").touch()


def _folder(version: str) -> Path:
    return ROOT / f".venv-{version}"


def _interpreter(version: str) -> str | None:
    homes = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    candidates = [shutil.which(f"python{version}")]
    candidates += [str(path) for home in homes for path in sorted(home.glob(f"{version}.*/bin/python{version}"))]
    return next((path for path in candidates if path and _runs(path, version)), None)


def _runs(python: str, version: str) -> bool:
    """Whether it is that version: a shim of pyenv may be there and lead nowhere."""
    ask = [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() == version
    except OSError:
        return False


if __name__ == "__main__":
    install()
