"""``porter export``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from porter.cli.common import Json, Quiet, Source, Verbose, bad_input, complete_pipeline

Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME", help="diffusers.XPipeline or XPipeline", autocompletion=complete_pipeline),
]
Into = Annotated[Path, typer.Option("--into", metavar="CHECKOUT", help="source tree of vLLM-Omni 0.30")]
Force = Annotated[bool, typer.Option("--force", help="write over what differs, and keep it beside as FILE.orig")]
Evidence = Annotated[
    list[Path] | None,
    typer.Option("--evidence", metavar="FILE", help="what `porter bench --json` or `porter parity --json` printed"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be written, and write nothing")]


def export(
    names: Names,
    into: Into,
    source: Source = None,
    force: Force = False,
    dry_run: DryRun = False,
    evidence: Evidence = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Deliver ports into a source tree of vLLM-Omni: model, tables, tests, examples, recipe, PULL_REQUEST.md."""
    from porter.emit.format import FormatError
    from porter.emit.write import OutputError
    from porter.export import ExportError
    from porter.export.checkout import open_checkout
    from porter.export.plan import check_plan, plan_export, write_plan
    from porter.port import Converter
    from porter.source import SourceError, SourceTree
    from porter.targets import get_target

    short = list(dict.fromkeys(name.removeprefix("diffusers.") for name in names))
    with bad_input(ExportError, SourceError, OutputError, FormatError, OSError):
        checkout = open_checkout(into)
        plan = plan_export(Converter(SourceTree(source), get_target("vllm-omni")), short, checkout, evidence or ())
        check_plan(plan, force)
        differing = plan.differing
        if not dry_run:
            write_plan(plan)
    if json:
        from porter.cli.schema import ExportedModel, ExportOutput, print_model

        models = [
            ExportedModel(
                name=model.port.name,
                folder=model.folder,
                replaces=model.replaces,
                extra_arguments=model.extra_arguments,
                features=model.port.features,
                dropped=model.port.dropped,
            )
            for model in plan.models
        ]
        print_model(
            ExportOutput(
                checkout=str(into),
                vllm_omni=checkout.version,
                written=differing,
                backups=sorted(plan.backups),
                dry_run=dry_run,
                models=models,
            )
        )
    elif not quiet:
        for model in plan.models:
            instead = f", in the place of {model.replaces}" if model.replaces else ""
            print(f"{model.port.name}: vllm_omni/diffusion/models/{model.folder}{instead}")
            for name, state in sorted(model.port.features.items()) if verbose else ():
                print(f"  {name}: {state}")
        for name in differing:
            print(f"  {into / name}")
        if verbose and (diff := plan.diff()):
            print(diff)
        for name in sorted(plan.backups):
            print(f"  what was there is now in {into / name}")
        if not differing:
            print(f"up to date in {into}")
