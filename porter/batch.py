"""Convert many pipelines: in several processes, from the cache where nothing changed, each failure on its own.

The converter is imported when something is to be converted: answers from the cache need neither it nor libcst's
matchers, which take a second to import.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porter.cache import Cache
from porter.emit.format import FormatError, formatted
from porter.emit.safety import tree_of
from porter.facts.tiers import DEEPEST
from porter.source import SourceError, SourceTree
from porter.targets import get_target
from porter.workers import end_with_parent

if TYPE_CHECKING:
    from porter.port import Converter


@dataclass
class Outcome:
    """What became of one pipeline: its port as plain data, with the texts as they are written, or an error.

    Attributes:
        bad_input: the error lies in the source (it does not parse, say), not in porter.
    """

    name: str
    family: str = ""
    stem: str = ""
    files: list[str] = field(default_factory=list)
    residue: list[dict[str, Any]] = field(default_factory=list)
    features: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict, repr=False)
    error: str = ""
    trace: str = ""
    bad_input: bool = False

    @property
    def converted(self) -> bool:
        """There is a port."""
        return not self.error

    @property
    def clean(self) -> bool:
        """No residue that results can depend on."""
        return not any(entry["affects_results"] for entry in self.residue)

    def describe(self) -> dict[str, Any]:
        """What is told about it: everything but the texts."""
        told = ("name", "family", "files", "residue", "features", "dropped") if self.converted else ("name", "error")
        return {name: getattr(self, name) for name in told}


_PORT_FIELDS = ("name", "family", "stem", "files", "residue", "features", "dropped", "texts")


Progress = Callable[[Outcome], None]


def convert_batch(
    names: Iterable[str],
    tree: SourceTree,
    target: str = "porter",
    jobs: int = 1,
    cache: Cache | None = None,
    progress: Progress | None = None,
    tier: str = DEEPEST,
) -> list[Outcome]:
    """Convert pipelines; the outcomes are in the order of ``names``, whatever the number of processes.

    Args:
        names: class names of pipelines of ``tree``.
        tree: the diffusers sources.
        target: name of the target.
        jobs: number of processes; pipelines of one folder go to the same one, since they share model files.
        cache: where ports are kept between runs; None: nowhere.
        progress: called with each outcome as it arrives.
        tier: how deep the ports go.
    """
    wanted = list(dict.fromkeys(names))
    done: dict[str, Outcome] = {}

    def take(outcomes: Iterable[Outcome], keep: bool) -> None:
        for outcome in outcomes:
            done[outcome.name] = outcome
            if keep and cache is not None and outcome.converted:
                cache.write(f"port-{outcome.name}", dataclasses.asdict(outcome))
            if progress is not None:
                progress(outcome)

    if cache is not None:
        take((Outcome(**kept) for name in wanted if (kept := cache.read(f"port-{name}")) is not None), keep=False)
    groups = _groups([name for name in wanted if name not in done], tree)
    if jobs == 1 or len(groups) < 2:
        for group in groups:
            take(_convert(group, tree, target, tier), keep=True)
    else:
        # Processes start afresh: a fork would copy the locks of whatever threads draw the progress.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(jobs, len(groups)), mp_context=context, initializer=_start, initargs=(tree.root,)
        ) as pool:
            for future in as_completed([pool.submit(_convert_group, group, target, tier) for group in groups]):
                take(future.result(), keep=True)
    return [done[name] for name in wanted]


def _groups(names: list[str], tree: SourceTree) -> list[list[str]]:
    """Names by the folder of their pipeline, the largest group first: the last one to finish should be a small one."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(tree.pipeline_module(name).rpartition(".")[0], []).append(name)
    return sorted(found.values(), key=lambda group: (-len(group), group))


_tree: SourceTree | None = None


def _start(root: Path) -> None:
    global _tree
    end_with_parent()
    gc.disable()  # see `porter.cli.common.rest_collector`
    _tree = SourceTree(root)


def _convert_group(names: list[str], target: str, tier: str) -> list[Outcome]:
    assert _tree is not None
    return _convert(names, _tree, target, tier)


def _convert(names: list[str], tree: SourceTree, target: str, tier: str) -> list[Outcome]:
    from porter.port import Converter

    converter = Converter(tree, get_target(target), tier=tier)
    outcomes = [_attempt(converter, name) for name in names]
    _format(outcomes)
    return outcomes


def _attempt(converter: Converter, name: str) -> Outcome:
    try:
        port = converter.port(name)
        for file, text in port.texts.items():
            _check_syntax(file, text)
        fields = {name: getattr(port, name) for name in _PORT_FIELDS}
        return Outcome(**fields | {"residue": [dataclasses.asdict(entry) for entry in port.residue]})
    except SourceError as error:
        return Outcome(name, error=str(error), bad_input=True)
    except Exception as error:
        # Whatever a rule stumbles over concerns this pipeline alone; the others go on.
        text = str(error) if isinstance(error, FormatError) else f"{type(error).__name__}: {error}"
        return Outcome(name, error=" ".join(text.split()), trace=traceback.format_exc())


def _check_syntax(file: str, text: str) -> None:
    try:
        tree_of(text)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise FormatError(f"{file}:{error.lineno}: not Python: {error.msg}: {line}") from error


def _format(outcomes: list[Outcome]) -> None:
    """Format the texts as they will be written; one run of the formatter for all."""
    done = formatted(
        {f"{n}/{file}": text for n, outcome in enumerate(outcomes) for file, text in outcome.texts.items()}
    )
    for number, outcome in enumerate(outcomes):
        outcome.texts = {file: done[f"{number}/{file}"] for file in outcome.texts}
