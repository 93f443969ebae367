"""``make demo``: convert a pipeline, run port and diffusers on the same inputs, compare, leave all of it to look at."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import porter
from porter.cli.common import hush_libraries, hush_warnings
from porter.parity.report import number
from porter.parity.results import CaseResult, ParityReport

PIPELINE = "QwenImageEditPipeline"
FOLDER = Path("demo")
CASES = ("plain", "guidance on", "wider")
SHOWN = "guidance on"


def main(folder: Path = FOLDER) -> int:
    """Run the demo into ``folder``; the exit code is 0 if the port is at parity."""
    out = Console(highlight=False)
    models, checkpoint = folder / "generated_models", folder / "checkpoint"
    out.print(f"[bold]1. Convert[/bold] diffusers.{PIPELINE} from its source text")
    port = porter.convert(PIPELINE, models)
    for file in port.files:
        out.print(f"     {models / file}  [dim]{len((models / file).read_text('utf-8').splitlines())} lines[/dim]")
    out.print(f"     dropped: {', '.join(port.dropped) or 'nothing'}")
    out.print(f"     left as it was: {'; '.join(map(str, port.residue)) or 'nothing'}", soft_wrap=True)

    out.print("\n[bold]2. Make a checkpoint[/bold]: tiny, random, in the layout of the real one")
    from porter.parity import run_parity
    from porter.parity.checkpoint import build

    hush_libraries()
    hush_warnings()
    build(PIPELINE, checkpoint)
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    out.print(f"     {checkpoint}  [dim]{size / 1e6:.0f} MB[/dim]")

    out.print("\n[bold]3. Run[/bold] diffusers and the port on the same inputs, float32 on the CPU")
    report = run_parity(PIPELINE, checkpoint=checkpoint, models_dir=models, cases=CASES, threads=1)
    if not report.cases:
        out.print(f"     {report.verdict}: {report.reason}", style="red", soft_wrap=True)
        return 1
    shown = next(case for case in report.cases if case.name == SHOWN)
    out.print(_stages(shown))
    out.print()
    out.print(_cases(report))

    out.print("\n[bold]4. Look[/bold]")
    for name in _save_pictures(shown, folder):
        out.print(f"     {name}")
    out.print("     [dim]noise, as the weights are; the same noise, as the port is true[/dim]")
    pipeline = models / port.family / f"pipeline_{port.stem}.py"
    out.print(f"     {pipeline}  [dim]the port[/dim]", soft_wrap=True)
    out.print(f"     {models / 'examples' / port.stem}.py  [dim]a script that runs it[/dim]", soft_wrap=True)
    verdict = "[green]at parity[/green]" if report.passed else f"[red]{report.verdict}[/red]"
    out.print(f"\n{PIPELINE} is {verdict}: largest difference {number(report.largest_difference)}")
    return report.exit_code


def _stages(case: CaseResult) -> Table:
    table = Table(title=f"     Call: {case.name}", title_justify="left", box=None, padding=(0, 2, 0, 5))
    for heading in ("stage", "largest difference", ""):
        table.add_column(heading)
    for stage in case.stages:
        difference = number(stage.metrics.max_abs) if stage.metrics else ""
        style = "red" if stage.failed else "green"
        table.add_row(stage.stage, difference, f"[{style}]{stage.verdict}[/{style}]")
    return table


def _cases(report: ParityReport) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 5))
    for heading in ("call", "stages", "difference", "diffusers", "port"):
        table.add_column(heading)
    for case in report.cases:
        seconds = (f"{case.seconds_reference:.1f} s", f"{case.seconds_port:.1f} s")
        table.add_row(case.name, str(len(case.stages)), number(case.largest_difference), *seconds)
    return table


def _save_pictures(case: CaseResult, folder: Path) -> list[Path]:
    if case.pictures is None:
        return []
    written = []
    shown = case.pictures.encode()
    for name, uri in (("port.png", shown.port), ("diffusers.png", shown.reference)):
        if uri:
            (folder / name).write_bytes(base64.b64decode(uri.partition(",")[2]))
            written.append(folder / name)
    return written


if __name__ == "__main__":
    sys.exit(main())
