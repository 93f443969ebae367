"""Make ``docs/performance.md`` from what ``denoiser.py`` and ``hoist.py`` left in ``benchmarks/results``.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
STEPS, HELD = RESULTS / "denoiser.json", RESULTS / "hoist.json"


def write() -> None:
    """Write the page."""
    steps, held = (json.loads(file.read_text("utf-8")) for file in (STEPS, HELD))
    PAGE.write_text("\n".join([*of_steps(steps), "", *of_held(held)]) + "\n", "utf-8")


def of_held(results: dict[str, Any]) -> list[str]:
    """What holding the results of step-invariant work is worth, as lines of the page."""
    versions = ", ".join(f"{name} {results['environment'][name]}" for name in ("torch", "diffusers"))
    lines = [
        "## Work that leaves the loop",
        "",
        "A step (a prediction for each branch of guidance) with what is the same in all steps held, against the same",
        f"step that computes all of it (`python benchmarks/hoist.py`; {versions}): CPU milliseconds, medians of",
        "alternating runs, and operations of matrix products, which a busy machine does not change. Predictions are",
        f"equal bit for bit. {results['layers']} layers, 16 heads of 64, 1,024 image and 128 text tokens.",
        "",
        "| model | computed | held | ratio | operations | results held | MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in results["models"]:
        values = (
            found["model"],
            found["milliseconds_computed"],
            found["milliseconds_held"],
            f"{found['ratio']:.3f}",
            f"{found['ratio_of_operations']:.3f}",
            found["results_held"],
            found["mebibytes_held"],
        )
        lines.append(f"| {' | '.join(map(str, values))} |")
    return lines


def of_steps(results: dict[str, Any]) -> list[str]:
    """Times of denoisers and of whole steps, as lines of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in results["environment"].items())
    lines = [
        "# Speed",
        "",
        "Ports in `porter.runtime` against diffusers, float32, one thread of a CPU, both in one process and by turns",
        f"(`python benchmarks/denoiser.py`; {versions}).",
        "CPU milliseconds, medians; the ratio is the median over runs of port to diffusers: below 1 the port needs",
        "less. Differences under 5 % are noise.",
        "",
        "Medium: 16 heads of 64, 1,024 image and 128 text tokens, Qwen-Image with 4 layers, Flux with 2 + 4. Tiny",
        "models have next to no arithmetic: what is left is the overhead of code; on a machine that is busy with other",
        "things these vary by a tenth from run to run.",
        "",
        *table({label: case for label, case in results["cases"].items() if "compiling" not in case}),
        "",
        "Operations of torch in a prediction, views aside, once what is the same in all steps is held. The last column",
        "says how many of the port's diffusers does not run, by name and shapes.",
        "",
        "| case | diffusers | port | not in diffusers |",
        "|---|--:|--:|--:|",
    ]
    for label, case in results["cases"].items():
        if (found := case.get("operations")) is not None:
            lines.append(f"| {label} | {found['diffusers']} | {found['port']} | {found['more']} |")
    compiled = {label: case for label, case in results["cases"].items() if "compiling" in case}
    if compiled:
        lines += [
            "",
            "## Compiled",
            "",
            "Both sides compiled by inductor in the same way (`--compiled whole`: the denoiser's forward; `--compiled",
            "blocks`: that of each repeated block, as vLLM-Omni does).",
            "",
            *table(compiled),
            "",
            "Graphs that dynamo captured and breaks between them; none was captured in a run that counts, unless said:",
            "",
            "| case | diffusers | port |",
            "|---|---|---|",
        ]
        for label, case in compiled.items():
            lines.append(f"| {label} | {' | '.join(told(case['compiling'][side]) for side in ('diffusers', 'port'))} |")
    return lines


def table(cases: dict[str, Any]) -> list[str]:
    """Times of cases, as lines of a page."""
    lines = ["| case | quantity | diffusers | port | ratio |", "|---|---|---|---|---|"]
    for label, case in cases.items():
        for name, found in case["quantities"].items():
            its, mine = (found[side]["median"] * 1e3 for side in ("diffusers", "port"))
            lines.append(f"| {label} | {name} | {its:.4g} | {mine:.4g} | {found['ratio']:.3f} |")
    return lines


def told(compiling: dict[str, Any]) -> str:
    """What dynamo did for one side, in words."""
    later = f", later graphs: {compiling['later']}" if compiling["later"] else ""
    return f"graphs: {compiling['graphs']}, breaks: {compiling['breaks']}{later}"


if __name__ == "__main__":
    write()
