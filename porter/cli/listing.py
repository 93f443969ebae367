"""``porter list``"""

from __future__ import annotations

from typing import TYPE_CHECKING

from porter.cli.common import (
    Jobs,
    Json,
    Quiet,
    Source,
    Verbose,
    bad_input,
    console,
    processes,
    progress_bar,
    rest_collector,
)

if TYPE_CHECKING:
    from porter.listing import Row


def list_(
    source: Source = None, jobs: Jobs = 0, json: Json = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """List pipelines and transformers: do they convert, at which tier, are they at parity, what is left."""
    rest_collector()
    from porter.batch import convert_batch
    from porter.cache import Cache
    from porter.listing import live_pipelines, model_rows, other_pipelines, pipeline_rows
    from porter.source import SourceError, SourceTree
    from porter.targets import get_target

    with bad_input(SourceError):
        tree = SourceTree(source)
        cache = Cache(tree.root, "porter")
        live = live_pipelines(tree, cache)
        others = other_pipelines(tree, cache)
        with progress_bar(len(live) + len(others), "reading", quiet or json) as progress:
            outcomes = convert_batch([*live, *others], tree, "porter", processes(jobs), cache, progress)
        rows = pipeline_rows(outcomes, live)
        pipelines, without = rows[: len(live)], rows[len(live) :]
        models = model_rows(tree, get_target("porter"), live, cache)
    if json:
        from porter.cli.schema import ListOutput, print_model

        print_model(ListOutput(diffusers=tree.version, pipelines=pipelines, models=models, others=without))
    elif not quiet:
        _table(f"Pipelines of diffusers {tree.version} with a transformer", pipelines, verbose)
        _table("Transformers", models, verbose)
        _table("Pipelines without a transformer", without, verbose)


def _table(title: str, rows: list[Row], verbose: bool) -> None:
    from rich.table import Table

    converting = sum(row.converts for row in rows)
    table = Table(title=f"{title}: {converting} of {len(rows)} convert", title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "family", "tier", "parity", "residue", *(["made of, or used by"] if verbose else [])):
        table.add_column(heading, justify="right" if heading == "residue" else "left")
    for row in rows:
        tier = row.tier if row.converts else "[red]does not convert[/red]"
        parity = f"[green]{row.parity}[/green]" if row.parity == "parity" else row.parity
        residue = "" if not row.converts else f"[red]{row.residue}[/red]" if row.affects_results else str(row.residue)
        table.add_row(row.name, row.family, tier, parity, residue, *([", ".join(row.related)] if verbose else []))
    console().print(table)
    for row in rows:
        if row.error and verbose:
            print(f"{row.name}: {row.error}")
