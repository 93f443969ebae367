"""Sources of a released diffusers, fetched once and kept in porter's cache. Nothing of them is installed or run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from porter.cache import cache_folder
from porter.source.tree import PACKAGE, SourceError, SourceTree

VERSION = re.compile(r"\d+(\.\d+)+([abc.]|rc|dev|post|\d)*")


def open_source(given: str) -> SourceTree:
    """The sources of a version (``0.42.1``) or in a folder.

    Raises:
        SourceError: neither; or the version cannot be fetched.
    """
    if not Path(given).exists() and VERSION.fullmatch(given):
        return SourceTree(fetch(given))
    return SourceTree(given)


def fetch(version: str) -> Path:
    """The folder that holds ``diffusers/`` of a released version.

    Raises:
        SourceError: there is no such version, or no way to it.
    """
    place = cache_folder() / "sources" / f"{PACKAGE}-{version}"
    if (place / PACKAGE / "__init__.py").is_file():
        return place
    with tempfile.TemporaryDirectory(prefix="porter-fetch-") as scratch:
        wheel = _download(version, Path(scratch))
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=place.parent, prefix=".part-"))
        try:
            _unpack(wheel, staging)
            shutil.rmtree(place, ignore_errors=True)
            os.rename(staging, place)
        except OSError as error:
            if not (place / PACKAGE / "__init__.py").is_file():  # nobody else was quicker
                raise SourceError(f"diffusers {version} cannot be kept in {place}: {error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return place


def _download(version: str, folder: Path) -> Path:
    # Wheels only: building from an sdist would run its code.
    command = [sys.executable, "-m", "pip", "download", f"{PACKAGE}=={version}", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--quiet", "--disable-pip-version-check", "--dest", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob(f"{PACKAGE}-*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (errors or done.stderr.splitlines() or ["pip gave no reason"])[-1]
        raise SourceError(f"diffusers {version} cannot be fetched ({why}); name a folder with its sources instead.")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    """The package's Python files; whatever else an archive holds, or names outside of the folder, stays in it."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if path.parts[:1] != (PACKAGE,) or path.suffix != ".py" or ".." in path.parts:
                continue
            target = folder.joinpath(*path.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
