"""What a rule does, what was recognised in a pipeline, and what made a line of a port."""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Iterable
from pathlib import Path

from porter.emit.format import formatted
from porter.emit.write import read_registry
from porter.facts.pipeline import pipeline_facts
from porter.port import Converter, Port
from porter.review.diff import Hunk, diff_port
from porter.review.steps import OTHERS, rules, safety_of, summary
from porter.rules.history import STEPS
from porter.source import SourceError, SourceTree
from porter.targets import get_target


class UnknownSubject(ValueError):
    """Neither a rule nor a pipeline nor a line of a port."""


def explain_rule(name: str, verbose: bool = False) -> str:
    """The manual of a rule or step, as Markdown: what it does, its class, what it changes and what it leaves alone.

    Args:
        name: of the rule or step.
        verbose: say in which file the rule stands, too.

    Raises:
        UnknownSubject: there is none of that name.
    """
    if name in STEPS or name in OTHERS:
        return f"# {name}\n\n{summary(name)}\n\nClass: {safety_of([name])}. A step of the conversion, not a rule.\n"
    if name not in rules():
        raise UnknownSubject(f"there is no rule called {name!r}")
    rule = rules()[name]
    parts = [f"# {name}", inspect.cleandoc(rule.__doc__ or ""), f"Class: {rule.safety}."]
    for before, after in rule.INVALID:
        parts += ["Before:", _block(before), "After:", _block(after)]
    if rule.VALID:
        parts += ["Left alone:", *map(_block, rule.VALID)]
    if verbose:
        lines, first = inspect.getsourcelines(rule)
        parts.append(f"Written in `{rule.__module__}`, lines {first} to {first + len(lines) - 1}.")
    return "\n\n".join(parts) + "\n"


def _block(text: str) -> str:
    return f"```python\n{textwrap.dedent(text).strip()}\n```"


def explain_pipeline(name: str, target: str = "porter", source: str | Path | None = None, verbose: bool = False) -> str:
    """What was recognised in a pipeline, what it became and what was dropped or left, as Markdown.

    Args:
        name: of the pipeline.
        target: name of the target.
        source: the diffusers sources.
        verbose: list the places that each rule or step changed, too.

    Raises:
        SourceError: as :func:`porter.convert`.
    """
    tree = SourceTree(source)
    definition = tree.find_pipeline(name)
    facts = pipeline_facts(tree, definition)
    port = Converter(tree, get_target(target), record=verbose).port(name)
    parts = [f"# {port.name}", f"diffusers {tree.version}, `{definition.module.name}`, line {definition.first_line}."]
    rows = []
    for component in facts.components:
        if component.converted:
            what = "ported: " + ", ".join(model.name for model in component.converted)
        else:
            reason = facts.kept.get(component.name)
            what = "diffusers' or transformers' own" + (f": {reason}" if reason else "")
        rows.append(f"`{component.name}`{' (may be absent)' if component.optional else ''}: {what}")
    parts += ["## Components", _list(rows)]
    if facts.settings:
        parts += ["## Settings", _list(f"`{key}` = {value or 'required'}" for key, value in facts.settings.items())]
    kept = [f"`{p.name}` = {p.default or 'required'}" for p in facts.parameters if p.name not in facts.dropped]
    parts += ["## Arguments", _list(kept), "## Dropped", _list(f"`{name}`" for name in port.dropped)]
    parts += ["## Left as it was", _list(map(str, port.residue))]
    parts += ["## Features", _list(f"{key}: {value}" for key, value in port.features.items())]
    parts += ["## Files", _list(f"`{file}`" for file in port.files)]
    if verbose:
        parts += ["## Changes", _list(_changes(port))]
    return "\n\n".join(parts) + "\n"


def _changes(port: Port) -> Iterable[str]:
    """Of each rule or step, in order of its name: its class, and where it changed something."""
    places: dict[str, list[str]] = {}
    for hunk in diff_port(port, formatted(port.texts)):
        for step in hunk.steps:
            places.setdefault(step, []).append(f"{hunk.file}:{hunk.line}")
    for step, found in sorted(places.items()):
        yield f"`{step}` ({safety_of([step])}), {len(found)}: {', '.join(found)}"


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items) or "nothing"


def explain_line(place: str, source: str | Path | None = None, verbose: bool = False) -> str:
    """What made a line of a port, as Markdown.

    Args:
        place: ``FILE:LINE``, the file below a folder with a ``registry.py``.
        source: the diffusers sources that the port was made from.
        verbose: show all lines that were made together with it, too.

    Raises:
        UnknownSubject: no such file or line, or no pipeline of the registry writes the file.
    """
    path, _, number = place.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise UnknownSubject(f"there is no file {path}")
    lines = file.read_text("utf-8").split("\n")
    if not number.isdigit() or not 1 <= int(number) <= len(lines):
        raise UnknownSubject(f"{path} has lines 1 to {len(lines)}")
    line = int(number)
    models = next((folder for folder in file.parents if (folder / "registry.py").is_file()), None)
    if models is None:
        raise UnknownSubject(f"{path} stands below no registry.py, so it is no port that porter wrote")
    relative = file.relative_to(models).as_posix()
    target = "vllm-omni" if "from vllm_omni." in "\n".join(lines) else "porter"
    tree = SourceTree(source)
    for name, entry in read_registry(models)["_DIFFUSION_MODELS"].items():
        family = entry[0] if isinstance(entry, tuple) else ""
        if relative.split("/")[0] not in (family, "examples"):
            continue
        port = Converter(tree, get_target(target), record=True).port(name)
        texts = formatted(port.texts)
        hunks = [hunk for hunk in diff_port(port, texts) if hunk.file == relative]
        if hunks:
            generated = _generated_line(lines, line, texts[relative].split("\n"))
            if generated is None:
                code = f"```python\n{lines[line - 1]}\n```"
                return f"# {place}\n\n{code}\n\nWritten by hand; porter writes no such line here.\n"
            made = [hunk for hunk in hunks if hunk.line <= generated < hunk.line + len(hunk.after)]
            return _of_line(place, lines[line - 1], made, verbose)
    raise UnknownSubject(f"no pipeline of {models / 'registry.py'} writes {relative}")


def _generated_line(lines: list[str], line: int, generated: list[str]) -> int | None:
    """The number that a line of a file has in what porter writes; None if somebody else wrote it."""
    for block in difflib.SequenceMatcher(None, lines, generated, autojunk=False).get_matching_blocks():
        if block.a <= line - 1 < block.a + block.size:
            return block.b + line - block.a
    return None


def _of_line(place: str, text: str, hunks: list[Hunk], verbose: bool) -> str:
    parts = [f"# {place}", f"```python\n{text}\n```"]
    if not hunks:
        return "\n\n".join([*parts, "As in diffusers."]) + "\n"
    for hunk in hunks:
        made = [f"`{step}` ({safety_of([step])}): {why}" for step, why in zip(hunk.steps, hunk.why)]
        parts += ["Made by", _list(made)]
        if hunk.source:
            parts.append(f"In the place of {hunk.source}, line {hunk.source_line}:")
            parts.append("```python\n" + "\n".join(hunk.before) + "\n```")
        if verbose:
            parts.append(f"With {hunk.file}, lines {hunk.line} to {hunk.line + len(hunk.after) - 1}:")
            parts.append("```python\n" + "\n".join(hunk.after) + "\n```")
    return "\n\n".join(parts) + "\n"


def explain(subject: str, source: str | Path | None = None, verbose: bool = False) -> str:
    """Any of the three; see :func:`explain_rule`, :func:`explain_pipeline` and :func:`explain_line`.

    Raises:
        UnknownSubject: it is none of them; the nearest names are given.
    """
    if ":" in subject and not subject.startswith("template:"):
        return explain_line(subject, source, verbose)
    if subject in rules() or subject in STEPS or subject in OTHERS:
        return explain_rule(subject, verbose)
    try:
        return explain_pipeline(subject, source=source, verbose=verbose)
    except SourceError as error:
        if subject.endswith("Pipeline"):
            raise
        near = difflib.get_close_matches(subject, [*rules(), *STEPS, *OTHERS, *SourceTree(source).pipelines()], n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise UnknownSubject(f"{subject!r} is no rule, pipeline or FILE:LINE.{hint}") from error
