"""Formatting by ruff: imports merged and sorted, unused ones dropped, layout as diffusers has it."""

from __future__ import annotations

import ast
import subprocess
import tempfile
from pathlib import Path

from ruff.__main__ import find_ruff_bin  # type: ignore[import-untyped]

LINE_LENGTH = 119
OPTIONS = ("--isolated", "--target-version", "py311", "--no-cache", "--quiet")


class FormatError(RuntimeError):
    """Generated code that ruff cannot parse: a defect of a rule."""


def format_folder(folder: Path, line_length: int = LINE_LENGTH) -> None:
    """Format all Python files below ``folder`` in place.

    Raises:
        FormatError: a file does not parse.
    """
    ruff = find_ruff_bin()
    # What counts as first-party is said here: ruff would look at the folders around the working directory.
    isort = ["--config", "src = []", "--config", 'lint.isort.known-first-party = ["porter", "vllm", "vllm_omni"]']
    options = [*OPTIONS, "--line-length", str(line_length)]
    check = [
        ruff,
        "check",
        *options,
        *isort,
        "--select",
        "F401,I,W,E701,E711",
        "--fix-only",
        "--exit-zero",
        str(folder),
    ]
    layout = [ruff, "format", *options, str(folder)]
    for command in (check, layout):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FormatError(_first_error(folder) or done.stderr.strip())


def formatted(texts: dict[str, str], line_length: int = LINE_LENGTH) -> dict[str, str]:
    """Texts as they are written, by file name.

    Raises:
        FormatError: a text does not parse.
    """
    if not texts:
        return {}
    with tempfile.TemporaryDirectory(prefix="porter-") as scratch:
        for file, text in texts.items():
            path = Path(scratch, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        format_folder(Path(scratch), line_length)
        return {file: Path(scratch, file).read_text("utf-8") for file in texts}


def _first_error(folder: Path) -> str:
    for path in sorted(folder.rglob("*.py")):
        try:
            ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            line = (error.text or "").strip()
            return f"{path.relative_to(folder)}:{error.lineno}: {error.msg}: {line}"
    return ""
