"""Have a Chromium for the tests of pages: Debian's, installed as root, else unpacked into .chromium.

    python tools/browser.py

Does nothing where there is one. Where none can be had it says so and ends well: the test that needs it fails in words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
FOLDER = HERE / ".chromium"
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
INSTALL = ("install", "--yes", "--no-install-recommends", "chromium")


def find_chromium() -> str | None:
    """``PORTER_CHROMIUM``, an installed one, or the one that was unpacked."""
    wanted = os.environ.get("PORTER_CHROMIUM")
    return next(filter(None, map(shutil.which, [wanted] if wanted else [*NAMES, str(FOLDER / "chromium")])), None)


def main() -> int:
    """Find, install or unpack."""
    if find_chromium():
        return 0
    if shutil.which("apt-get") is None:
        print("browser: no Chromium, and no apt-get to get one with; PORTER_CHROMIUM can name one", file=sys.stderr)
        return 0
    try:
        install() if os.geteuid() == 0 else unpack()
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"browser: no Chromium could be installed ({error}); PORTER_CHROMIUM can name one", file=sys.stderr)
    return 0


def install() -> None:
    """As Debian does it."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (("update",), INSTALL):
        subprocess.run(["apt-get", "-qq", *command], check=True, env=environment, stdout=subprocess.DEVNULL)


def unpack(status: str = "/var/lib/dpkg/status") -> None:
    """Fetch Chromium and what it misses on this machine into a folder, and a script that starts it there."""
    root, packages, state = FOLDER / "root", FOLDER / "packages", FOLDER / "state"
    for folder in (root, packages, state / "lists/partial", state / "cache/archives/partial"):
        folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": state / "lists",
        "Dir::State::status": status,
        "Dir::Cache": state / "cache",
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-qq", *(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    planned = subprocess.run([*apt, "--simulate", *INSTALL], check=True, capture_output=True, text=True).stdout
    names = [line.split()[1] for line in planned.splitlines() if line.startswith("Inst ")]
    subprocess.run([*apt, "download", *names], check=True, cwd=packages)
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg", "--extract", str(package), str(root)], check=True)
    shutil.rmtree(packages)
    shutil.rmtree(state)
    libraries = sorted({str(path.parent) for path in root.glob("usr/lib/**/*.so*")})
    script = FOLDER / "chromium"
    script.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH="{":".join(libraries)}" exec "{root}/usr/lib/chromium/chromium" "$@"\n'
    )
    script.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
