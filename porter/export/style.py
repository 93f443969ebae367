"""Files as the style checks of vLLM-Omni want them."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ruff.__main__ import find_ruff_bin  # type: ignore[import-untyped]

from porter.emit.format import FormatError, formatted

# The repository's own settings, from its pyproject.toml.
LINE_LENGTH = 120
_RULES = "E,W,F,I,N,UP"
_IGNORED = "E203,N801,N802,N806,N812"
_SETTINGS = (
    "--isolated",
    "--no-cache",
    "--target-version=py310",
    f"--line-length={LINE_LENGTH}",
    f"--select={_RULES}",
    f"--ignore={_IGNORED}",
    "--config=src = []",
    '--config=lint.isort.known-first-party = ["tests", "vllm_omni"]',
    '--config=lint.per-file-ignores = {"examples/**" = ["E501"], "tests/**" = ["E501"]}',
)
SPDX = (
    "# SPDX-License-Identifier: Apache-2.0\n"
    "# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Omni project\n\n"
)


def styled(texts: Mapping[str, str]) -> dict[str, str]:
    """Python files with the licence's header, formatted, and without what the repository's linter can mend.

    What it finds and cannot mend (a long line of a docstring, an argument that diffusers spells in capitals) is the
    source's, and stays: the file says that it is not to be told of it.

    Args:
        texts: by path in the repository.

    Raises:
        FormatError: a text does not parse.
    """
    with tempfile.TemporaryDirectory(prefix="porter-") as scratch:
        root = Path(scratch).resolve()
        for name, text in formatted(dict(texts), LINE_LENGTH).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(SPDX + text, "utf-8")
        _ruff(root, "check", *_SETTINGS, "--fix-only", "--exit-zero", "--quiet")
        _ruff(root, "format", *_SETTINGS[:4], "--quiet")
        found = json.loads(_ruff(root, "check", *_SETTINGS, "--exit-zero", "--output-format=json") or "[]")
        left: dict[str, set[str]] = {}
        for entry in found:
            left.setdefault(Path(entry["filename"]).resolve().relative_to(root).as_posix(), set()).add(entry["code"])
        read = {name: (root / name).read_text("utf-8") for name in texts}
    return {name: _excused(text, sorted(left.get(name, ()))) for name, text in read.items()}


def _excused(text: str, codes: list[str]) -> str:
    return f"{SPDX}# ruff: noqa: {', '.join(codes)}\n{text.removeprefix(SPDX)}" if codes else text


def _ruff(root: Path, *arguments: str) -> str:
    command = [find_ruff_bin(), *arguments, "."]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FormatError(done.stderr.strip())
    return done.stdout
