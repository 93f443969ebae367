"""What a person wrote into a generated file, kept when porter writes that file again.

The manifest tells an edited file from an older generation. An edit is merged with what porter writes now, line by line,
against the last generation; where both changed the same lines, nothing is written and both sides are shown. Beside a
file with edits lies its generation, ``FILE.base``: the next merge needs nothing else, on whatever machine and after
whatever upgrade. An edit that porter sees for the first time is merged against the generation of the manifest, which is
what porter would write now, or lies in the cache or in git's history.
"""

from __future__ import annotations

import ast
import difflib
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from ruff.__main__ import find_ruff_bin  # type: ignore[import-untyped]

from porter.emit import generations
from porter.emit.errors import OutputError
from porter.emit.manifest import digest, read_manifest
from porter.emit.merge import Region, regions

BASE, ORIGINAL = ".base", ".orig"
# What to do where an edit and porter changed the same lines.
FAIL, MINE, PORTER = "fail", "mine", "porter"
CHOICES = (FAIL, MINE, PORTER)
UNKNOWN_BASE = (
    "edited by hand, and the generation that was edited is neither in the cache nor in git's history: run "
    "`porter check --fix` once with the porter and diffusers that its header names"
)


@dataclass(frozen=True)
class Conflict:
    """Something written by hand that cannot be kept as it is, with both sides.

    Attributes:
        file: relative to the folder of ports.
        line: where in it.
        reason: one sentence.
        mine: what the person wrote.
        porter: what porter writes there now.
        base: what porter wrote there before, where that is known.
    """

    file: str
    line: int
    reason: str
    mine: str = ""
    porter: str = ""
    base: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.file}:{self.line}: {self.reason}"]
        if self.mine or self.porter:
            parts += ["<<<<<<< by hand", self.mine]
            parts += ["||||||| porter before", self.base] if self.base is not None else []
            parts += ["=======", self.porter, ">>>>>>> porter now"]
        return "\n".join(parts)


@dataclass(frozen=True)
class Edit:
    """An edited file.

    Attributes:
        text: with the edit.
        base: porter's own text, which the edit changes.
        recorded: it is known already; otherwise it takes a write to record it.
    """

    file: str
    text: str
    base: str
    recorded: bool

    def diff(self) -> str:
        """The edit as a unified diff."""
        before, after = (text.splitlines(keepends=True) for text in (self.base, self.text))
        return "".join(difflib.unified_diff(before, after, f"{self.file} (porter)", f"{self.file} (by hand)"))

    @property
    def counts(self) -> tuple[int, int]:
        """Lines added and lines taken away."""
        lines = self.diff().splitlines()[2:]
        return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)


@dataclass
class Plan:
    """What a write does to a folder.

    Attributes:
        files: what stands in each generated file afterwards.
        before: what stands there now; None where nothing does.
        aside: further files that are written: bases of edited ones, copies of what is replaced.
        remove: files that go.
        hashes: of the generations, for the manifest.
        edits: edited files.
        conflicts: what keeps the write from being done.
    """

    files: dict[str, str] = field(default_factory=dict)
    before: dict[str, str | None] = field(default_factory=dict)
    aside: dict[str, str] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)

    @property
    def differing(self) -> list[str]:
        """Generated files that are not what they should be."""
        return [name for name, text in self.files.items() if self.before[name] != text]


def plan_files(folder: Path, files: dict[str, str], choice: str = FAIL) -> Plan:
    """What writing ``files`` (relative path to formatted text) to ``folder`` takes, edits kept. Writes nothing.

    Args:
        folder: of ports.
        files: what porter writes.
        choice: for lines that both changed: ``fail``, ``mine`` or ``porter``.
    """
    plan, known = Plan(), read_manifest(folder)
    for name, text in files.items():
        plan.hashes[name] = digest(text)
        plan.before[name] = before = read(folder / name)
        base = read(folder / (name + BASE))
        if before is None or before == text:
            plan.files[name] = text
            if base is not None:
                plan.remove.append(name + BASE)
            continue
        _edited(plan, folder, name, before, base, text, known.get(name), choice)
    return plan


def read(path: Path) -> str | None:
    """The text of a file, None if there is none.

    Raises:
        OutputError: it is no text.
    """
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link; porter writes into its own folder only.")
    try:
        return path.read_text("utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise OutputError(f"{path} is not UTF-8 ({error.reason}); mend or move it away.") from error


def _edited(
    plan: Plan, folder: Path, name: str, before: str, base: str | None, text: str, known: str | None, choice: str
) -> None:
    """Plan a file that is there and holds something else."""
    plan.files[name] = text
    recorded = base is not None
    if base is None:
        base = _last_generation(plan, folder, name, before, known, choice)
    if base is None:
        return
    cut = regions(*(side.splitlines(keepends=True) for side in (base, before, text)))
    if choice == PORTER and any(region.conflict for region in cut):
        plan.aside[_free(folder, name)] = before
    merged, conflicts = _merge(name, cut, before, text, choice)
    if conflicts:
        plan.conflicts += conflicts
        plan.files[name] = before
        return
    plan.files[name] = merged
    if merged == text:
        plan.remove += [name + BASE] if recorded else []
        return
    plan.edits.append(Edit(name, merged, text, recorded and base == text))
    if base != text or not recorded:
        plan.aside[name + BASE] = text


def _last_generation(plan: Plan, folder: Path, name: str, before: str, known: str | None, choice: str) -> str | None:
    """What porter wrote last to a file whose edits are not recorded; None if there is no edit to keep, or no way to."""
    path, text = folder / name, plan.files[name]
    if known is None:  # written before there were manifests, or not by porter
        if not generations.is_committed(path):
            plan.aside[_free(folder, name)] = before
        return None
    if digest(before) == known:
        return None
    base = text if plan.hashes[name] == known else generations.recall(known, path)
    if base is not None:
        half = base.startswith(before) and not _whole(before)  # of what porter wrote, and nothing else
        return None if half else base
    if choice == PORTER:
        plan.aside[_free(folder, name)] = before
    else:
        plan.conflicts.append(Conflict(name, 1, UNKNOWN_BASE))
        plan.files[name] = before
    return None


def _whole(text: str) -> bool:
    """Whether a text may be all that somebody wanted: it ends with a line, and it is Python."""
    try:
        return text.endswith("\n") and bool(ast.parse(text).body)
    except (SyntaxError, ValueError):
        return False


def _free(folder: Path, name: str) -> str:
    """A name for a copy that nothing has yet."""
    number, place = 1, name + ORIGINAL
    while (folder / place).exists():
        number += 1
        place = f"{name}{ORIGINAL}{number}"
    return place


def _merge(name: str, cut: list[Region], mine: str, theirs: str, choice: str) -> tuple[str, list[Conflict]]:
    """The merged text, and what is in its way."""
    lines: list[str] = []
    conflicts: list[Conflict] = []
    for region in cut:
        if region.conflict and choice == FAIL:
            sides = ["".join(side).rstrip("\n") for side in (region.mine, region.theirs, region.base)]
            conflicts.append(Conflict(name, region.line, "edited by hand, and changed by porter", *sides))
        lines += region.theirs if region.conflict and choice == PORTER else region.merged
    text = "".join(lines)
    if not conflicts and name.endswith(".py") and text not in (mine, theirs):
        conflicts += [Conflict(name, line, f"with the edit kept, {problem}") for line, problem in _broken(text, theirs)]
    return text, conflicts


def _broken(text: str, generated: str) -> list[tuple[int, str]]:
    """What is wrong with a merged text: it does not parse, or lacks names that the edit uses."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return [(error.lineno or 1, f"the file is no Python ({error.msg})")]
    fine = {problem for _, problem in _undefined(generated)}
    return [(line, problem) for line, problem in _undefined(text) if problem not in fine]


def _undefined(text: str) -> list[tuple[int, str]]:
    command = [find_ruff_bin(), "check", "--isolated", "--no-cache", "--quiet", "--select", "F821"]
    command += ["--target-version", "py311", "--output-format", "concise", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    rows = (line.split(":", 3) for line in done.stdout.splitlines())  # file, line, column, message
    problems = [(row[1], row[3].strip()) for row in rows if len(row) == 4 and row[1].isdigit()]
    return [(int(line), said.removeprefix("F821 ").replace("Undefined name", "there is no")) for line, said in problems]
