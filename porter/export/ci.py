"""The step of vLLM-Omni's CI that runs a model's tests on its checkpoint: a neighbour's, with these tests in it.

The CPU tests need none: the CI runs all of ``tests/diffusion`` that have their markers. How a step names its hardware
has changed with time (queues and containers, or a preset), so that the new one has the lines of one that is there.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import yaml  # type: ignore[import-untyped]

from porter.export.checkout import Checkout

NIGHTLY = (".buildkite/cuda/test-nightly.yml", ".buildkite/test-nightly.yml")
DEPENDENCIES = ".buildkite/common/ci_source_file_dependencies.yml"
# Groups of the nightly file by what a model makes.
_GROUPS = {"image": "X2I", "audio": "X2I", "video": "X2V"}
# What the exported tests are marked with.
MARKS = frozenset({"full_model", "diffusion", "cuda", "gpu", "H100"})
_SAID = "a step"
_SELECTION = re.compile(r"""-m\s+(["'])(.+?)\1""", re.DOTALL)
_KEYS_NOT_SHARED = ("key", "artifact_paths", "if", "env", "source_file_dependencies")


@dataclass(frozen=True)
class Tests:
    """Tests that need a checkpoint, by path.

    Attributes:
        one_card: that have a case for one card.
        two_cards: that have cases for two.
    """

    one_card: Sequence[str]
    two_cards: Sequence[str]


@dataclass(frozen=True)
class Step:
    """A step of a pipeline file.

    Attributes:
        first: number of its first line; ``end``: of the line after its last.
        label: of it.
        commands: joined.
    """

    first: int
    end: int
    label: str
    commands: str


def ci_texts(
    checkout: Checkout, read: Callable[[str], str], name: str, kind: str, folder: str, stem: str, tests: Tests
) -> tuple[dict[str, str], str]:
    """The CI's files with a step for a model's tests, by path, and what there is to say about them.

    Args:
        checkout: what is exported into.
        read: the text of a file as it is to be so far.
        name: of the model.
        kind: ``image``, ``video`` or ``audio``.
        folder: of the model.
        stem: of its files.
        tests: that need its checkpoint; none, and there is no step.
    """
    nightly = next((file for file in NIGHTLY if checkout.read(file) is not None), None)
    if not tests.one_card:
        return {}, "no step: there is no test that needs a checkpoint, and the CPU tests are selected by their markers"
    if nightly is None:
        return {}, "no step: this tree has no nightly file of the CI (wheels do not); add one in a checkout"
    files: dict[str, str] = {}
    said = []
    for cards, wanted in ((1, tests.one_card), (2, tests.two_cards)):
        if not wanted:
            continue
        text = files.get(nightly) or read(nightly)
        steps = steps_of(text)
        covering = [step for step in steps if all(_runs(step.commands, test, _marks(cards)) for test in wanted)]
        if cards > 1:  # a step that does not ask for them has one card, where the other cases skip themselves
            covering = [step for step in covering if f"cards_{cards}" in step.commands]
        where = " for two cards" if cards == 2 else ""
        if covering:
            mine = f"{name} Function Test" in covering[0].label
            said.append(f"{_SAID}{where}" if mine else f"run{where} by the step {covering[0].label!r}")
            continue
        model = next((step for step in reversed(steps) if _is_like(step, _GROUPS[kind], text, cards)), None)
        if model is None:
            said.append(f"no step{where}: there is no function test of diffusion models to put one beside")
            continue
        lines, dependency = text.split("\n"), ""
        if checkout.read(DEPENDENCIES) is not None and "source_file_dependencies" in "\n".join(_lines(text, model)):
            dependency = f"diffusion_{stem}_function"
            files[DEPENDENCIES] = with_dependency(read(DEPENDENCIES), dependency, folder, tests.one_card)
        made = _step(_lines(text, model), model, name, wanted, dependency, cards)
        after = "\n".join([*lines[: model.end], *made, *lines[model.end :]])
        if not _only_adds(text, after):
            return {}, f"no step: {nightly} is written in a form that porter does not know; add it by hand"
        files[nightly] = after
        said.append(f"{_SAID}{where}")
    return files, f"{', '.join(said)} ({nightly})"


def _marks(cards: int) -> frozenset[str]:
    """What the exported tests are marked with that need so many cards."""
    return MARKS | {f"cards_{cards}"}


def steps_of(text: str) -> list[Step]:
    """The steps of a pipeline file that run commands, in order."""
    root = yaml.compose(text)
    found: list[Step] = []

    def walk(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            fields = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
            if "commands" in fields and "label" in fields:
                commands = yaml.safe_load(yaml.serialize(fields["commands"]))
                joined = "\n".join(commands) if isinstance(commands, list) else str(commands)
                found.append(Step(node.start_mark.line, _end(text, node), str(fields["label"].value), joined))
                return
            for value in fields.values():
                walk(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item)

    if root is not None:
        walk(root)
    return found


def with_dependency(text: str, key: str, folder: str, tests: Sequence[str]) -> str:
    """The table of paths that a step depends on, with a model's in it, after the last one of a diffusion model."""
    if f"\n  {key}:" in text:
        return text
    lines = text.split("\n")
    starts = [at for at, line in enumerate(lines) if re.match(r"  diffusion_\w+:", line)]
    at = starts[-1] + 1 if starts else len(lines)
    while at < len(lines) and lines[at].startswith("    "):
        at += 1
    paths = [f"vllm_omni/diffusion/models/{folder}/", *tests]
    entry = ["", f"  {key}:", *(f"    - {path}" for path in paths)]
    return "\n".join([*lines[:at], *entry, *lines[at:]])


def _end(text: str, node: yaml.MappingNode) -> int:
    """The line after the last of a step; comments and blank lines between it and the next belong to the next."""
    lines = text.split("\n")
    end = node.end_mark.line
    while end > 0 and (not lines[end - 1].strip() or lines[end - 1].strip().startswith("#")):
        end -= 1
    return end


def _lines(text: str, step: Step) -> list[str]:
    return text.split("\n")[step.first : step.end]


def _is_like(step: Step, group: str, text: str, cards: int) -> bool:
    """Whether a step tests what a diffusion model does, on so many GPUs of the kind that the exported tests ask for."""
    if group not in step.label or "Function Test" not in step.label:
        return False
    if not text.split("\n")[step.first].lstrip().startswith("- label:"):
        return False
    selection = _SELECTION.search(step.commands)
    if selection is None or not {"full_model", "H100"} <= _names(selection[2]):
        return False
    # Tests that run on a second kind of GPU too are of the same kind.
    also = frozenset({"B200"})
    if cards == 1:
        return _holds(selection[2], _marks(1) | also)
    return _holds(selection[2], _marks(cards) | also) and not _holds(selection[2], _marks(1) | also)


def _runs(commands: str, test: str, marks: frozenset[str]) -> bool:
    """Whether commands run a test: by its file or a folder above it, and its marks."""
    for command in commands.split("\n"):
        selection = _SELECTION.search(command)
        words = [word.rstrip("/") for word in command.split() if word.startswith("tests")]
        inside = any(test == word or test.startswith(f"{word}/") for word in words)
        ignored = [word.rstrip("/") for word in re.findall(r"--ignore=(\S+)", command)]
        if not inside or any(test == word or test.startswith(f"{word}/") for word in ignored):
            continue
        if "pytest" in command and " -k " not in command and (selection is None or _holds(selection[2], marks)):
            return True
    return False


def _names(expression: str) -> set[str]:
    return set(re.findall(r"\w+", expression)) - {"and", "or", "not"}


def _holds(expression: str, marks: frozenset[str]) -> bool:
    """Whether a selection by markers takes a test that has these."""

    def value(node: ast.expr) -> bool:
        if isinstance(node, ast.BoolOp):
            parts = [value(item) for item in node.values]
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not value(node.operand)
        return isinstance(node, ast.Name) and node.id in marks

    try:
        return value(ast.parse(" ".join(expression.split()), mode="eval").body)
    except SyntaxError:
        return False


def _step(lines: list[str], model: Step, name: str, tests: Sequence[str], dependency: str, cards: int) -> list[str]:
    """The lines of a neighbour, with another label and commands."""
    indent = " " * (len(lines[0]) - len(lines[0].lstrip(" -")))
    selection = _SELECTION.search(model.commands)
    names = _names(selection[2]) if selection else set()
    asked = [mark for mark in ("H100", f"cards_{cards}") if mark in names]
    marks = " and ".join(dict.fromkeys(["full_model", "diffusion", *asked]))
    level = ' --run-level "full_model"' if "--run-level" in model.commands else ""
    made: list[str] = []
    skipping = False
    for number, line in enumerate(lines):
        own = re.match(rf"{indent[:-2]}- (\w+):|{indent}(\w+):", line)
        if own:
            key = own[1] or own[2]
            skipping = key in _KEYS_NOT_SHARED
            if key == "label":
                prefix, _, _ = model.label.rpartition(" · ")
                label = f"{prefix.partition(' · ')[0]} · {name} Function Test" + (" · 2-GPU" if cards == 2 else "")
                made += ["", f"{line[: line.index('label:')]}label: {_quoted(label)}"]
                if dependency:
                    made.append(f"{indent}source_file_dependencies: {dependency}")
                skipping = True
            elif key == "commands":
                made.append(f"{indent}commands:")
                made += [f'{indent}  - pytest -s -v {test} -m "{marks}"{level}' for test in tests]
                skipping = True
        if not skipping and not (number == 0 and own is None):
            made.append(line)
    return made


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'") + '"'


def _only_adds(before: str, after: str) -> bool:
    """Whether the file as a whole still says what it said, and one step more."""
    try:
        old, new = (Counter((step.label, step.commands) for step in steps_of(text)) for text in (before, after))
    except yaml.YAMLError:
        return False
    return not old - new and (new - old).total() == 1
