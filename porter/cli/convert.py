"""``porter convert``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from porter.cli.common import (
    Conflicts,
    Failure,
    Jobs,
    Json,
    NoCache,
    Quiet,
    Source,
    Verbose,
    bad_input,
    check_conflicts,
    complete_pipeline,
    console,
    describe,
    processes,
    progress_bar,
    rest_collector,
)
from porter.facts.tiers import DEEPEST, check_tier

if TYPE_CHECKING:
    from porter.batch import Outcome
    from porter.cache import Cache
    from porter.emit.edits import Plan
    from porter.source import SourceTree

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="diffusers.XPipeline or XPipeline", autocompletion=complete_pipeline),
]
All = Annotated[bool, typer.Option("--all", help="every pipeline that diffusers maintains and that has a transformer")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="folder of the ports")]
TargetName = Annotated[str, typer.Option("--target", metavar="porter|vllm-omni", help="what the ports import")]
Tier = Annotated[
    str,
    typer.Option(
        "--tier",
        metavar="A|B|C|D",
        help="depth: A keeps diffusers' structure, B adds tensor and C sequence parallelism, D all",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="exit 1 if anything was left untranslated")]


def convert(
    names: Names = None,
    everything: All = False,
    output: Output = Path("out"),
    target: TargetName = "porter",
    source: Source = None,
    tier: Tier = DEEPEST,
    strict: Strict = False,
    conflicts: Conflicts = "fail",
    jobs: Jobs = 0,
    no_cache: NoCache = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert pipelines and register them in DIR/registry.py."""
    rest_collector()
    if bool(names) == everything:
        raise Failure(
            "name pipelines (`porter list` shows them), or say --all"
            if not names
            else "either name pipelines or say --all, not both"
        )
    check_conflicts(conflicts)
    from porter.batch import convert_batch
    from porter.cache import Cache
    from porter.emit.format import FormatError
    from porter.emit.write import OutputError, check_folder, read_registry
    from porter.source import SourceError, SourceTree
    from porter.targets import get_target

    with bad_input(SourceError, OutputError, ValueError):
        get_target(target)
        check_tier(tier)
        check_folder(output)
        read_registry(output)
        tree = SourceTree(source)
        cache = None if no_cache else Cache(tree.root, target, tier=tier)
        wanted = _wanted(names, tree, cache)
    with bad_input(SourceError), progress_bar(len(wanted), "converting", quiet or json) as progress:
        outcomes = convert_batch(wanted, tree, target, processes(jobs), cache, progress, tier)
    if not everything:
        for outcome in outcomes:
            if outcome.bad_input:
                raise Failure(outcome.error)
    good = [outcome for outcome in outcomes if outcome.converted]
    with bad_input(OutputError, OSError):
        try:
            plan = _write(output, good, conflicts)
        except FormatError as error:
            raise Failure(f"{output / 'registry.py'}: {error}") from error
    if json:
        from porter.cli.schema import Converted, ConvertOutput, print_model

        found = ConvertOutput(
            target=target,
            tier=tier,
            diffusers=tree.version,
            output=str(output),
            pipelines=[Converted(**outcome.describe()) for outcome in outcomes],
            edits=[describe(output / edit.file, edit) for edit in plan.edits],
        )
        print_model(found)
    elif not quiet:
        _report(outcomes, output, plan, everything, verbose)
    if len(good) < len(outcomes) or (strict and any(outcome.residue for outcome in good)):
        raise typer.Exit(1)


def _wanted(names: list[str] | None, tree: SourceTree, cache: Cache | None) -> list[str]:
    """Class names, each known to be a pipeline."""
    from porter.listing import find_pipeline, live_pipelines

    if not names:
        return list(live_pipelines(tree, cache))
    short = list(dict.fromkeys(name.removeprefix("diffusers.") for name in names))
    for name in short:
        if cache is None or not cache.has(f"port-{name}"):
            find_pipeline(tree, name)
    return short


def _write(folder: Path, outcomes: list[Outcome], conflicts: str) -> Plan:
    """Write what is not there yet; what was done, edits that were kept among it."""
    from porter.emit.edits import BASE, Plan
    from porter.emit.overrides import override_of
    from porter.emit.write import read_registry

    known = read_registry(folder)["_DIFFUSION_MODELS"]

    def is_there(outcome: Outcome) -> bool:
        paths = {folder / file: text for file, text in outcome.texts.items()}
        by_hand = any(p.with_name(p.name + BASE).exists() or override_of(p).exists() for p in paths)
        written = all(p.is_file() and p.read_bytes() == text.encode() for p, text in paths.items())
        return outcome.name in known and written and not by_hand

    stale = [outcome for outcome in outcomes if not is_there(outcome)]
    if not stale:
        return Plan()
    from porter.emit.write import write_ports

    return write_ports(folder, stale, conflicts)


def _report(outcomes: list[Outcome], output: Path, plan: Plan, everything: bool, verbose: bool) -> None:
    from porter.emit.edits import BASE

    changed = bool(plan.differing)
    if everything:
        _table(outcomes, verbose)
    else:
        for outcome in outcomes:
            _details(outcome, output)
    good = sum(outcome.converted for outcome in outcomes)
    clean = sum(outcome.converted and not outcome.residue for outcome in outcomes)
    state = "written to" if changed else "up to date in"
    if everything or len(outcomes) > 1:
        print(f"{good} of {len(outcomes)} pipelines {state} {output}; {clean} without residue")
    elif good and not changed:
        print(f"up to date in {output}")
    for edit in plan.edits:
        added, removed = edit.counts
        print(f"edit by hand kept: {output / edit.file} (+{added} -{removed})")
    for place in plan.aside:
        if not place.endswith(BASE):
            print(f"what was there is now in {output / place}")
    for outcome in outcomes:
        if outcome.trace and verbose:
            print(f"{outcome.name}: {outcome.trace}")


def _details(outcome: Outcome, output: Path) -> None:
    if not outcome.converted:
        print(f"{outcome.name}: does not convert: {outcome.error}")
        return
    print(outcome.name)
    for file in outcome.files:
        print(f"  {output / file}")
    if outcome.dropped:
        print(f"  dropped: {', '.join(outcome.dropped)}")
    for entry in outcome.residue:
        print(f"  left as it was: {_place(entry)}{' (results can depend on it)' if entry['affects_results'] else ''}")


def _place(entry: dict[str, Any]) -> str:
    return f"{entry['file']}:{entry['line']}: {entry['reason']}"


def _table(outcomes: list[Outcome], verbose: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("pipeline", "family", "residue", "dropped"):
        table.add_column(heading, justify="right" if heading == "residue" else "left", overflow="fold")
    for outcome in outcomes:
        if not outcome.converted:
            table.add_row(outcome.name, "", "[red]failed[/red]", "")
            continue
        style = "red" if not outcome.clean else "yellow" if outcome.residue else "green"
        dropped = ", ".join(outcome.dropped) if verbose else str(len(outcome.dropped) or "")
        table.add_row(outcome.name, outcome.family, f"[{style}]{len(outcome.residue)}[/{style}]", dropped)
    console().print(table)
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if not outcome.converted:
            print(f"{outcome.name}: {outcome.error}")
        for entry in outcome.residue:
            reasons.setdefault(_place(entry), []).append(outcome.name)
    if reasons:
        print("left as it was:")
    for reason, names in reasons.items():
        users = ", ".join(names) if verbose or len(names) < 4 else f"{len(names)} pipelines"
        print(f"  {reason} ({users})")
