"""The differences between a pipeline of diffusers and its port, hunk by hunk, each with what made it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, computed_field

from porter.emit.format import formatted
from porter.port import Converter, Port
from porter.review.lines import changes
from porter.review.steps import explain, safety_of
from porter.rules.build import PortedFile
from porter.rules.model.parallel_helpers import helper_names
from porter.source import Definition, SourceTree
from porter.targets import get_target

Node = ast.stmt


class Hunk(BaseModel):
    """Lines that differ.

    Attributes:
        file: of the port, relative to its folder.
        line: number of the first line in it (of the one above which something is missing).
        name: the definition that the lines belong to.
        source: file of diffusers; empty where the lines come from a template.
        source_line: number of the first line in it.
        before: lines of diffusers.
        after: lines of the port.
        steps: rules, steps of the rewriting or templates that made the difference, in order.
    """

    file: str
    line: int
    name: str
    source: str = ""
    source_line: int = 0
    before: list[str]
    after: list[str]
    steps: list[str]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def safety(self) -> str:
        """The gravest class of the steps: surface, same arithmetic, changed arithmetic."""
        return safety_of(self.steps)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def why(self) -> list[str]:
        """A line for each of the steps."""
        return explain(self.steps)


class PortDiff(BaseModel):
    """All differences of a port.

    Attributes:
        schema_version: of this form; a field that goes or changes its meaning raises it.
    """

    schema_version: int = 1
    pipeline: str
    diffusers: str
    target: str
    hunks: list[Hunk]

    @property
    def unattributed(self) -> list[Hunk]:
        """Hunks of which nobody knows what made them; there are none, or a step is not recorded."""
        return [hunk for hunk in self.hunks if not hunk.steps]


def diff_pipeline(name: str, tree: SourceTree, target: str = "porter") -> PortDiff:
    """Convert a pipeline of ``tree`` in memory and compare it with its source.

    Raises:
        SourceError: as :func:`porter.convert`.
    """
    port = Converter(tree, get_target(target), record=True).port(name)
    hunks = diff_port(port, formatted(port.texts))
    return PortDiff(pipeline=port.name, diffusers=tree.version, target=target, hunks=hunks)


def diff_port(port: Port, files: dict[str, str]) -> list[Hunk]:
    """All differences of a port, in the order of its files.

    Args:
        port: converted with ``record=True``.
        files: its formatted texts, by the names of ``port.texts``.
    """
    found: list[Hunk] = []
    for file in sorted(files, key=lambda name: (name not in port.built, name)):
        built = port.built.get(file)
        lines = files[file].split("\n")
        found += _written_whole(file, lines) if built is None else _file(file, lines, built)
    return found


def _file(file: str, lines: list[str], built: PortedFile) -> Iterator[Hunk]:
    tree = ast.parse("\n".join(lines))
    first = tree.body[0].lineno if tree.body else len(lines)
    licence = (built.sources[0].license.count("\n") + 1) if built.sources and built.sources[0].license else 0
    yield _hunk(file, licence + 1, "header", lines[licence : first - 1], ["header"])
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    if imports:
        start, end = imports[0].lineno, max(node.end_lineno or node.lineno for node in imports)
        yield _hunk(file, start, "imports", lines[start - 1 : end], ["imports"])
    for node in tree.body:
        name = _name(node)
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        end = node.end_lineno or node.lineno
        history = built.histories.get(name)
        if node in imports:
            continue
        if history is None:
            yield _hunk(file, start, name, lines[start - 1 : end], [_template(name, node)])
            continue
        while start > 1 and lines[start - 2].startswith("#") and history.source.comments:
            start -= 1
        path = _path(history.source)
        for change in changes(history, lines[start - 1 : end]):
            yield Hunk(
                file=file,
                line=start + change.line,
                name=name,
                source=path,
                source_line=change.source,
                before=list(change.before),
                after=list(change.after),
                steps=list(change.steps),
            )
    yield from _left_out(file, len(lines), built)


def _left_out(file: str, end: int, built: PortedFile) -> Iterator[Hunk]:
    """Definitions of the main source file that the port does without."""
    taken = {(h.source.module.name, h.source.name) for h in built.histories.values()}
    module = built.sources[0]
    for name, definition in module.definitions.items():
        if (module.name, name) not in taken and name not in module.guarded:
            yield Hunk(
                file=file,
                line=end,
                name=name,
                source=_path(definition),
                source_line=definition.first_line,
                before=definition.code.rstrip("\n").split("\n"),
                after=[],
                steps=["not-needed"],
            )


def _written_whole(file: str, lines: list[str]) -> list[Hunk]:
    kind = Path(file).stem if Path(file).stem in ("support", "stepwise", "invariants", "__init__") else "example"
    return [_hunk(file, 1, file, lines, [f"template:{kind}"])]


def _hunk(file: str, line: int, name: str, after: list[str], steps: list[str]) -> Hunk:
    return Hunk(file=file, line=line, name=name, before=[], after=after, steps=steps)


def _template(name: str, node: Node) -> str:
    if isinstance(node, ast.If | ast.Try):
        return "fold-conditions"
    if name in helper_names():
        return "template:parallel"
    return "template:pre_process" if name.endswith("_pre_process_func") else "template:post_process"


def _name(node: Node) -> str:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) else ""


def _path(definition: Definition) -> str:
    module = definition.module
    return "/".join(module.path.parts[-len(module.name.split(".")) - module.is_package :])
