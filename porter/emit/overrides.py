"""Override files: definitions written by hand that take the place of generated ones.

``pipeline_x.override.py`` beside ``pipeline_x.py`` holds imports and definitions. The comment above a definition names
what it replaces, a function, a class or a method, and the hash of what stood there when it was written:

    # replaces: QwenImageEditPipeline.check_inputs 0123456789abcdef
    def check_inputs(self, prompt): ...

porter writes it in the place of its own. When porter's own changes, the hash no longer fits, and the override is
refused until somebody has looked at it. The hash covers what the code says; comments, layout, docstrings and
annotations do not count.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from porter.emit.edits import Conflict, read
from porter.targets.fingerprint import definition_hash

SUFFIX = ".override.py"
MARK = re.compile(r"#\s*replaces:\s*([\w.]+)(?:\s+([0-9a-f]{16}))?\s*$")
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def override_of(path: Path) -> Path:
    """The override file of a generated file."""
    return path.with_name(path.stem + SUFFIX)


def orphans(folder: Path, names: set[str]) -> list[Conflict]:
    """Override files below ``folder`` beside which nothing is generated any more."""
    found = []
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        place = path.relative_to(folder).as_posix()
        if place.removesuffix(SUFFIX) + ".py" not in names:
            found.append(Conflict(place, 1, "there is no generated file beside it any more"))
    return found


def apply_overrides(folder: Path, files: dict[str, str]) -> tuple[dict[str, str], list[Conflict]]:
    """The files that have an override, with it, unformatted; and what is in the way of it.

    Args:
        folder: of ports.
        files: what porter writes, formatted, by relative path.
    """
    found: dict[str, str] = {}
    conflicts: list[Conflict] = []
    for name, text in files.items():
        path = override_of(folder / name)
        override = read(path) if name.endswith(".py") else None
        if override is None:
            continue
        place = path.relative_to(folder).as_posix()
        result, problems = _apply(place, override, text)
        conflicts += problems
        if not problems:
            found[name] = result
    return found, conflicts


def _apply(place: str, override: str, text: str) -> tuple[str, list[Conflict]]:
    try:
        tree = ast.parse(override)
    except SyntaxError as error:
        return text, [Conflict(place, error.lineno or 1, f"is no Python ({error.msg})")]
    lines = override.split("\n")
    imports: list[str] = []
    replaced: dict[str, str] = {}
    problems: list[Conflict] = []
    generated = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(ast.unparse(node))
        elif isinstance(node, Definition):
            target, known, start = _mark(node, lines)
            problem = _problem(place, node, target, known, generated, (override, text))
            problems += [problem] if problem else []
            replaced[target] = "\n".join(lines[start - 1 : node.end_lineno])
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            reason = "an override file holds imports and definitions that name what they replace, and nothing else"
            problems.append(Conflict(place, node.lineno, reason))
    if problems:
        return text, problems
    return _replace(_with_imports(text, generated, imports), replaced, place), []


def _mark(node: Definition, lines: list[str]) -> tuple[str, str, int]:
    """What a definition replaces, the hash it knows, and the definition's first line."""
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    for line in reversed(lines[: start - 1]):
        if not line.startswith("#"):
            break
        if found := MARK.match(line):
            return found[1], found[2] or "", start
    return "", "", start


def _problem(
    place: str, node: Definition, target: str, known: str, generated: ast.Module, texts: tuple[str, str]
) -> Conflict | None:
    mine, line = ast.get_source_segment(texts[0], node) or "", node.lineno
    if not target:
        return Conflict(place, line, f"say above {node.name} what it replaces: # replaces: {node.name}")
    current = _find(generated, target)
    if current is None:
        return Conflict(place, line, f"porter writes no {target} any more; take it out, or name what it replaces", mine)
    if target.rpartition(".")[2] != node.name:
        return Conflict(place, line, f"{node.name} cannot replace {target}: call it the same")
    now = definition_hash(current)
    porter = ast.get_source_segment(texts[1], current) or ""
    if not known:
        return Conflict(place, line, f"add the hash of what it replaces: # replaces: {target} {now}", mine, porter)
    if known != now:
        reason = f"stale: {target} is not what it was; look at both, then write # replaces: {target} {now}"
        return Conflict(place, line, reason, mine, porter)
    return None


def _find(tree: ast.Module, target: str) -> Definition | None:
    node: Any = tree
    for part in target.split("."):
        node = next((n for n in getattr(node, "body", []) if isinstance(n, Definition) and n.name == part), None)
    return node


def _with_imports(text: str, tree: ast.Module, imports: list[str]) -> str:
    if not imports:
        return text
    ends = [node.end_lineno or node.lineno for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = text.split("\n")
    place = max(ends, default=0)
    return "\n".join([*lines[:place], *imports, *lines[place:]])


def _replace(text: str, replaced: dict[str, str], place: str) -> str:
    import libcst as cst  # takes longer than everything else, and few folders have overrides

    comment = cst.EmptyLine(comment=cst.Comment(f"# From {Path(place).name}."))

    class Replace(cst.CSTTransformer):
        def __init__(self) -> None:
            super().__init__()
            self.path: list[str] = []

        def _enter(self, node: Any) -> None:
            self.path.append(node.name.value)

        def _leave(self, original: Any, updated: Any) -> Any:
            source = replaced.get(".".join(self.path))
            self.path.pop()
            if source is None:
                return updated
            new: Any = cst.parse_module(source).body[0]
            blank = [line for line in updated.leading_lines if line.comment is None][:2]
            return new.with_changes(leading_lines=[*blank, comment])

        visit_ClassDef = visit_FunctionDef = _enter
        leave_ClassDef = leave_FunctionDef = _leave  # type: ignore[assignment]

    return cst.parse_module(text).visit(Replace()).code
