"""What another diffusers changes: pipelines, their ports, and what is known of these."""

from __future__ import annotations

import ast
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

import porter
from porter.batch import Outcome, Progress, convert_batch
from porter.cache import Cache
from porter.emit.write import write_ports
from porter.facts.tiers import DEEPEST
from porter.listing import NOT_TESTED, live_pipelines, measured_with, other_pipelines, parity_results
from porter.source import SourceTree

if TYPE_CHECKING:
    from porter.port import Port

PARITY = "parity"
RULES = re.compile(r"^# Rules: (.*)$", re.MULTILINE)


class DefinitionChange(BaseModel):
    """A function, class or method of a port that another diffusers changes.

    Attributes:
        name: ``Class.method``; ``Class`` for what stands in a class outside of its methods.
        kind: ``added``, ``gone`` or ``changed``.
        rules: rules and steps that shape the top-level definition that it belongs to, in the new port.
    """

    file: str
    name: str
    kind: str
    added: int
    removed: int
    rules: list[str] = []


class PortChange(BaseModel):
    """A port that another diffusers changes.

    Attributes:
        rules_added: rules that apply now and did not; ``rules_gone``: the other way round.
        residue_added: constructs that no rule translates now and that were not there, or were translated.
        parity_before: verdict of the committed results, if they were measured with the old diffusers.
        parity_after: verdict with the new diffusers: of a run, or of the committed results if they were measured with
            it; empty if nobody knows.
        reason: why a run is not at parity, in one line.
    """

    name: str
    definitions: list[DefinitionChange] = []
    rules_added: list[str] = []
    rules_gone: list[str] = []
    residue_added: list[str] = []
    residue_gone: list[str] = []
    parity_before: str = NOT_TESTED
    parity_after: str = ""
    reason: str = ""

    @property
    def lost_parity(self) -> bool:
        """It is not at parity with the new diffusers, and was, or nobody knows."""
        return self.parity_after not in ("", PARITY) and self.parity_before in (PARITY, NOT_TESTED)


class Upgrade(BaseModel):
    """What another diffusers changes.

    Attributes:
        tier: of the ports.
        added: pipelines that there were not; ``gone``: that there are no more (or are deprecated).
        failing: ports that do not convert any more, with the reason.
        changed: ports whose code changes.
        same: ports whose code stays.
    """

    schema_version: int = 1
    before: str
    after: str
    target: str
    tier: str = DEEPEST
    added: list[str]
    gone: list[str]
    failing: dict[str, str] = {}
    changed: list[PortChange] = []
    same: list[str] = []

    @property
    def good(self) -> bool:
        """Nothing is lost: no port fails, gains residue or loses parity, and no registered one is gone."""
        return not self.failing and not any(change.residue_added or change.lost_parity for change in self.changed)


Bar = Callable[[int, str], Progress]


def compare(
    old: SourceTree,
    new: SourceTree,
    names: Iterable[str] | None,
    target: str,
    jobs: int,
    bar: Bar,
    tier: str = DEEPEST,
) -> tuple[Upgrade, list[Outcome]]:
    """Convert from both sources and compare; returns also the new ports.

    Args:
        old: the sources that the ports were made from.
        new: the other ones.
        names: of ports; None: of every pipeline that ``old`` has and that converts.
        target: name of the target.
        jobs: number of processes.
        bar: given a number of pipelines and a label, returns what is called with each outcome.
        tier: of the ports.
    """
    caches = Cache(old.root, target, tier=tier), Cache(new.root, target, tier=tier)
    before, after = (set(live_pipelines(t, c)) | set(other_pipelines(t, c)) for t, c in zip((old, new), caches))
    there = set(new.pipelines())
    wanted = sorted(before if names is None else names)
    kept = [name for name in wanted if name in there]
    known = set(old.pipelines())
    first = {
        outcome.name: outcome
        for outcome in convert_batch(
            [name for name in kept if name in known],
            old,
            target,
            jobs,
            caches[0],
            bar(len(kept), f"{old.version}:"),
            tier,
        )
    }
    second = convert_batch(kept, new, target, jobs, caches[1], bar(len(kept), f"{new.version}:"), tier)
    found = Upgrade(
        before=old.version,
        after=new.version,
        target=target,
        tier=tier,
        added=sorted(after - before),
        gone=sorted((before - after) | {name for name in wanted if name not in there}),
    )
    verdicts = parity_results()
    for outcome in second:
        earlier = first.get(outcome.name)
        if not outcome.converted:
            if earlier is not None and earlier.converted:
                found.failing[outcome.name] = outcome.error
            continue
        change = _change(earlier, outcome)
        if change is None:
            found.same.append(outcome.name)
            continue
        verdict = str(verdicts.get(outcome.name, {}).get("verdict", NOT_TESTED))
        if measured_with() == old.version:
            change.parity_before = verdict
        if measured_with() == new.version and verdict != NOT_TESTED:
            change.parity_after = verdict
        found.changed.append(change)
    return found, [outcome for outcome in second if outcome.converted]


def attribute(found: Upgrade, new: SourceTree, progress: Progress | None = None) -> None:
    """Name the rules and steps behind each changed definition, by converting the changed ports once more, recorded."""
    from porter.port import Converter
    from porter.targets import get_target

    cache, target = Cache(new.root, found.target, tier=found.tier), get_target(found.target)
    # Pipelines of a family share models; what another family's conversions recorded is let go.
    for _, family in groupby(sorted(found.changed, key=_family), key=_family):
        converter: Converter | None = None
        for change in family:
            steps = cache.read(f"steps-{change.name}")
            if steps is None:
                converter = converter or Converter(new, target, record=True, tier=found.tier)
                steps = _steps(converter.port(change.name))
                cache.write(f"steps-{change.name}", steps)
            for definition in change.definitions:
                made = steps.get(definition.file, {}).get(definition.name.split(".")[0], [])
                definition.rules = list(dict.fromkeys(made))
            if progress is not None:
                progress(Outcome(change.name))


def _family(change: PortChange) -> str:
    folders = [definition.file.partition("/")[0] for definition in change.definitions]
    return next((folder for folder in folders if folder != "examples"), "")


def _steps(port: Port) -> dict[str, dict[str, list[str]]]:
    """The steps behind each definition of each file."""
    return {
        file: {name: [step for step, _ in history.steps] for name, history in built.histories.items()}
        for file, built in port.built.items()
    }


def prove(found: Upgrade, ports: list[Outcome], new: SourceTree, progress: Progress | None = None) -> None:
    """Run the changed ports of which nobody knows against the new diffusers, each in a process of its own."""
    wanted = [change for change in found.changed if not change.parity_after]
    by_name = {outcome.name: outcome for outcome in ports}
    paths = [str(new.root.parent), str(Path(porter.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    with tempfile.TemporaryDirectory(prefix="porter-upgrade-") as scratch:
        write_ports(Path(scratch), [by_name[change.name] for change in wanted])
        for change in wanted:
            command = [sys.executable, "-m", "porter", "parity", change.name, "--models-dir", scratch, "--json"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            try:
                report = json.loads(done.stdout)
                change.parity_after, change.reason = str(report["verdict"]), " ".join(str(report["reason"]).split())
            except (ValueError, KeyError, TypeError):
                change.parity_after = "does not run"
                change.reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            if progress is not None:
                progress(Outcome(change.name))


def _change(old: Outcome | None, new: Outcome) -> PortChange | None:
    """How a port changes; None if its code stays."""
    before = old.texts if old is not None and old.converted else {}
    definitions = [
        change
        for file in sorted({*before, *new.texts})
        for change in _file(file, before.get(file), new.texts.get(file))
    ]
    if not definitions:
        return None
    rules = [_rules(texts) for texts in (before, new.texts)]
    residue = [_reasons(outcome) for outcome in (old, new)]
    return PortChange(
        name=new.name,
        definitions=definitions,
        rules_added=sorted(rules[1] - rules[0]),
        rules_gone=sorted(rules[0] - rules[1]),
        residue_added=[reason for reason in residue[1] if reason not in residue[0]],
        residue_gone=[reason for reason in residue[0] if reason not in residue[1]],
    )


def _rules(texts: dict[str, str]) -> set[str]:
    return {rule for text in texts.values() for line in RULES.findall(text) for rule in line.split(", ") if rule}


def _reasons(outcome: Outcome | None) -> list[str]:
    """Reasons without lines, which move."""
    return [f"{entry['file']}: {entry['reason']}" for entry in outcome.residue] if outcome is not None else []


def _file(file: str, before: str | None, after: str | None) -> list[DefinitionChange]:
    old, new = _definitions(before), _definitions(after)
    found = []
    for name in dict.fromkeys([*new, *old]):
        texts = old.get(name, ""), new.get(name, "")
        if texts[0] == texts[1]:
            continue
        before_lines, after_lines = (text.splitlines() for text in texts)
        lines = [line[:1] for line in list(difflib.unified_diff(before_lines, after_lines, n=0))[2:]]
        kind = "added" if name not in old else "gone" if name not in new else "changed"
        found.append(
            DefinitionChange(file=file, name=name, kind=kind, added=lines.count("+"), removed=lines.count("-"))
        )
    return found


def _definitions(text: str | None) -> dict[str, str]:
    """The text of each definition, methods by themselves; imports and headers do not count."""
    if text is None:
        return {}
    found: dict[str, str] = {}
    lines = text.split("\n")

    def cut(node: ast.AST, name: str) -> None:
        decorators = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(d.lineno for d in decorators)])  # type: ignore[attr-defined]
        body = lines[start - 1 : node.end_lineno]  # type: ignore[attr-defined]
        found[name] = "\n".join([found[name], *body] if name in found else body)

    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = lines[node.lineno - 1]
            for item in node.body:
                method = item.name if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) else ""
                cut(item, f"{node.name}.{method}" if method else node.name)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            cut(node, node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            cut(node, node.targets[0].id)
    return found
