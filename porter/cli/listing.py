"""``porter list``"""

from __future__ import annotations

from typing import TYPE_CHECKING

from porter.cli.common import Jobs, Json, Quiet, Source, bad_input, console, print_json, processes, progress_bar

if TYPE_CHECKING:
    from porter.listing import Row


def list_(source: Source = None, jobs: Jobs = 0, json: Json = False, quiet: Quiet = False) -> None:
    """List pipelines and transformers: do they convert, at which tier, are they at parity, what is left."""
    from dataclasses import asdict

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
        with progress_bar(len(live) + len(others), "reading", quiet) as progress:
            outcomes = convert_batch([*live, *others], tree, "porter", processes(jobs), cache, progress)
        rows = pipeline_rows(outcomes, live)
        pipelines, without = rows[: len(live)], rows[len(live) :]
        models = model_rows(tree, get_target("porter"), live, cache)
    if json:
        tables = {"pipelines": pipelines, "models": models, "others": without}
        print_json({"diffusers": tree.version, **{key: [asdict(row) for row in rows] for key, rows in tables.items()}})
        return
    _table(f"Pipelines of diffusers {tree.version} with a transformer", pipelines)
    _table("Transformers", models)
    _table("Pipelines without a transformer", without)


def _table(title: str, rows: list[Row]) -> None:
    from rich.table import Table

    converting = sum(row.converts for row in rows)
    table = Table(title=f"{title}: {converting} of {len(rows)} convert", title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "family", "tier", "parity", "residue"):
        table.add_column(heading, justify="right" if heading == "residue" else "left")
    for row in rows:
        tier = row.tier if row.converts else "[red]does not convert[/red]"
        parity = f"[green]{row.parity}[/green]" if row.parity == "parity" else row.parity
        residue = "" if not row.converts else f"[red]{row.residue}[/red]" if row.affects_results else str(row.residue)
        table.add_row(row.name, row.family, tier, parity, residue)
    console().print(table)
