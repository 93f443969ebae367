"""A source tree of vLLM-Omni: a git checkout, or its wheel unpacked."""

from __future__ import annotations

import ast
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from porter.export import ExportError

PACKAGE = "vllm_omni"
# The version that ports of the target are written for; its tables are what is inserted into.
SUPPORTED = "0.30"
REGISTRY = f"{PACKAGE}/diffusion/registry.py"
METADATA = f"{PACKAGE}/diffusion/model_metadata.py"
EXTRAS = f"{PACKAGE}/model_extras/registry.py"
SAMPLING = f"{PACKAGE}/inputs/data.py"


@dataclass(frozen=True)
class Checkout:
    """The tree that is exported into.

    Attributes:
        root: the folder that holds the package ``vllm_omni``.
        version: of it; empty where the tree does not say.
    """

    root: Path
    version: str

    def read(self, name: str) -> str | None:
        """The text of a file relative to the root; None if there is none."""
        path = self.root / name
        return path.read_bytes().decode("utf-8") if path.is_file() else None

    def text(self, name: str) -> str:
        """The text of a file that has to be there.

        Raises:
            ExportError: it is not.
        """
        found = self.read(name)
        if found is None:
            raise ExportError(f"{self.root} has no {name}: it is no complete source tree of vLLM-Omni")
        return found

    def dirty(self) -> list[str]:
        """Files with changes that git has not recorded; none where the tree is not git's."""
        if not (self.root / ".git").exists():
            return []
        lines = _git(self.root, "status", "--porcelain", "--untracked-files=all")
        if lines is None:
            raise ExportError(f"git cannot tell the state of {self.root}: run `git status` there")
        return [line[3:].strip('"') for line in lines.splitlines()]

    def sampling_fields(self) -> frozenset[str]:
        """Names of the fields of ``OmniDiffusionSamplingParams``, read from the source."""
        for node in ast.parse(self.text(SAMPLING)).body:
            if isinstance(node, ast.ClassDef) and node.name == "OmniDiffusionSamplingParams":
                fields = (item.target for item in node.body if isinstance(item, ast.AnnAssign))
                return frozenset(field.id for field in fields if isinstance(field, ast.Name))
        raise ExportError(f"{SAMPLING} has no OmniDiffusionSamplingParams: vLLM-Omni {SUPPORTED} is supported")


def open_checkout(root: Path) -> Checkout:
    """The tree in a folder.

    Raises:
        ExportError: there is none, or it is of a version that is not supported.
    """
    if not (root / REGISTRY).is_file():
        hint = f"; did you mean {root.parent}?" if (root.parent / REGISTRY).is_file() else ""
        raise ExportError(
            f"{root} is no source tree of vLLM-Omni: there is no {REGISTRY} (name its checkout, or the folder that "
            f"its wheel was unpacked into){hint}"
        )
    version = _version(root)
    if not version:
        raise ExportError(
            f"{root} does not say which version of vLLM-Omni it is: fetch its tags (`git fetch --tags`), or check out "
            f"a release of {SUPPORTED}"
        )
    if not f"{version}.".startswith(f"{SUPPORTED}."):
        raise ExportError(f"{root} is vLLM-Omni {version}; ports are written for {SUPPORTED}: check out v{SUPPORTED}.0")
    return Checkout(root, version)


def _version(root: Path) -> str:
    """What a build wrote into the package, what the wheel says, or the last tag."""
    written = root / PACKAGE / "_version.py"
    for line in written.read_text("utf-8").splitlines() if written.is_file() else ():
        found = re.match(r"""(?:__version__ = )*(?:version = )?['"](\d[^'"]*)['"]""", line)
        if found:
            return found[1]
    for info in sorted(root.glob(f"{PACKAGE}-*.dist-info")):
        return info.name.removeprefix(f"{PACKAGE}-").removesuffix(".dist-info")
    tag = _git(root, "describe", "--tags", "--abbrev=0", "--match", "v[0-9]*") if (root / ".git").exists() else None
    return (tag or "").strip().removeprefix("v")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
