"""Make the table of models: every transformer and controlnet class, converted afresh and compared with diffusers.

    python tools/model_table.py [--only CLASS …] [--resume] [--compile BACKEND] [--no-variants]
    python tools/model_table.py --source DIR      residue and undefined names of another diffusers, nothing is run

Each class is built from the small configurations in ``porter/parity/data/models`` and from those with one parameter
changed; original and port get the same weights and the same calls, in float32 and in bfloat16. Writes
``porter/parity/data/model_results.json`` and ``docs/models.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "porter" / "parity" / "data" / "model_results.json"
TABLE = ROOT / "docs" / "models.md"
DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=None, metavar="CLASS")
    parser.add_argument("--resume", action="store_true", help="leave out ports that did not change")
    parser.add_argument(
        "--compile", default="aot_eager", metavar="BACKEND", help="of torch.compile; 'no' leaves it out"
    )
    parser.add_argument("--no-variants", action="store_true", help="the stored configurations only")
    parser.add_argument("--source", default=None, metavar="DIR", help="another diffusers: residue only")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    from porter.source import SourceTree
    from porter.targets import get_target

    tree, target = SourceTree(args.source), get_target("porter")
    if args.source:
        compare_residue(tree, target, args.only)
        return
    import torch

    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for name in args.only or model_classes(tree):
        held = results.get(name, {}) if args.resume else {}
        results[name] = examine(tree, target, name, args.compile, not args.no_variants, held)
        print(name, verdict(results[name]), results[name].get("reason", ""), flush=True)
        args.results.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    if args.results == RESULTS:
        TABLE.write_text(page(results, tree.version))


def model_classes(tree: Any) -> list[str]:
    """Names of the classes of ``models/transformers`` and ``models/controlnets`` that are models, sorted."""
    from porter.model_port import is_model, model_names

    return [name for name in model_names(tree) if is_model(tree, name)]


def examine(
    tree: Any, target: Any, name: str, backend: str, with_variants: bool, held: dict[str, Any]
) -> dict[str, Any]:
    """Convert one class and compare it in all its configurations; a failure is a result, not an error.

    Args:
        held: an earlier result; what it says of the same port and the same configurations is kept.
    """
    from porter.model_port import find_model, load_model, port_model, write_models
    from porter.parity import model_spec

    result: dict[str, Any] = {"folder": find_model(tree, name).module.name.split(".")[2]}
    try:
        port = port_model(tree, target, name)
    except Exception as error:  # noqa: BLE001 - the table says what went wrong with each class
        return {**result, "reason": f"does not convert: {line(error)}"}
    result["residue"] = [str(entry) for entry in port.residue]
    result["fingerprint"] = fingerprint(port.text, name)
    if held.get("fingerprint") == result["fingerprint"]:
        result |= {key: held[key] for key in (*DTYPES, "compile") if key in held}
    with tempfile.TemporaryDirectory() as folder:
        try:
            port_class = load_model(write_models(Path(folder), [port])[name], name)
        except Exception as error:  # noqa: BLE001
            return {**result, "reason": f"does not import: {line(error)}"}
        if name not in model_spec.available():
            return {**result, "reason": "not compared: no small configuration"}
        if DTYPES[0] not in result:
            result |= compare(tree, name, port_class, with_variants)
        if "compile" not in result and backend != "no":
            result["compile"] = compile_blocks(name, port_class, backend)
    return result


def fingerprint(text: str, name: str) -> str:
    """Of a port (without its header, which names porter's version) and of the configurations it is compared in."""
    from porter.parity import model_spec

    code = text.split("\n\n", 2)[-1] if text.startswith("#") else text
    spec = model_spec.MODELS / f"{name}.json"
    return hashlib.sha256(code.encode() + (spec.read_bytes() if spec.is_file() else b"")).hexdigest()[:16]


def compare(tree: Any, name: str, port_class: Any, with_variants: bool) -> dict[str, Any]:
    """All configurations in all dtypes."""
    from porter.model_port import find_model
    from porter.parity import model_spec
    from porter.parity.models import build_port, check_recipes
    from porter.parity.variants import variants

    found: dict[str, Any] = {}
    original = original_class(tree, name)
    for dtype in DTYPES:
        tally: dict[str, Any] = {"compared": 0, "refused": 0, "largest": 0.0, "failing": {}}
        tried: set[str] = set()  # changes that gave results in an earlier case
        for case in model_spec.read(name):
            changed = list(variants(tree, find_model(tree, name), case.config)) if with_variants else []
            for label, change in [("", {}), *changed]:
                config = {**case.config, **change}
                # Numbers change shapes and factors, which dtypes have no part in.
                is_number = any(type(value) in (int, float) for value in change.values())
                if label in tried or (is_number and dtype != "float32"):
                    continue
                report, _, _ = check_recipes(
                    original,
                    config,
                    lambda c=config: build_port(port_class, c),
                    case.calls,
                    dtype=dtype,
                    attach=attachment(tree, case, dtype),
                )
                where = f"{case.name} {label}".strip()
                unproven = [c for c in report.calls if c.verdict == "not a number"]
                if not label and (unproven or (report.refused and dtype == "float32")):
                    tally["failing"][where] = report.error or report.refused or "not a number on both sides"
                elif report.passed or (unproven and label and not report.error and report.weights.passed):
                    tally["compared" if report.calls and not unproven else "refused"] += 1
                    if label and report.calls:
                        tried.add(label)
                else:
                    tally["failing"][where] = explain(report)
                if report.calls and not unproven:
                    tally["largest"] = max(tally["largest"], min(report.largest_difference, 1e30))
        found[dtype] = tally
    return found


def attachment(tree: Any, case: Any, dtype: str) -> Any:
    """What gives a model the modules that it shares with a transformer; None for a model of its own."""
    import torch

    from porter.parity.models import random_original

    if case.host is None:
        return None
    host = random_original(original_class(tree, case.host["class"]), case.host["config"], 1).to(getattr(torch, dtype))
    return lambda model: type(model).from_transformer(model, host)


def explain(report: Any) -> str:
    """Why a report did not pass, in one line."""
    if report.error:
        return line(report.error)
    if not report.weights.passed or report.unreported:
        return line(
            report.weights.summary() + (f"; not reported: {report.unreported[:5]}" if report.unreported else "")
        )
    first = next(call for call in report.calls if call.failed)
    at = f" at {report.location.path}" if report.location else ""
    size = f" {first.metrics.max_abs:.3g}" if first.metrics else ""
    return line(f"{first.verdict}{size} {first.part} {first.note}{at}")


def original_class(tree: Any, name: str) -> Any:
    import importlib

    from porter.model_port import find_model

    return getattr(importlib.import_module(find_model(tree, name).module.name), name)


def compile_blocks(name: str, port_class: Any, backend: str) -> list[dict[str, str]]:
    from porter.parity import model_spec
    from porter.parity.compiled import check_blocks
    from porter.parity.models import build_port, check_recipes
    from porter.source import SourceTree

    case = model_spec.read(name)[0]
    original = original_class(SourceTree(), name)
    try:
        report, first, second = check_recipes(original, case.config, lambda: build_port(port_class, case.config), [])
        if first is None or second is None:
            return [{"path": "", "original": "", "port": report.error or report.refused}]
        attach = attachment(SourceTree(), case, "float32")
        if attach is not None:
            attach(first)
            attach(second)
        calls = [next(model_spec.decode_calls(case.calls, sys.modules[type(m).__module__])) for m in (first, second)]
        blocks = check_blocks(first, second, (calls[0], calls[1]), backend)
    except Exception as error:  # noqa: BLE001
        return [{"path": "", "original": "", "port": line(error)}]
    return [{**block.model_dump(), "backend": backend} for block in blocks]


def compare_residue(tree: Any, target: Any, only: list[str] | None) -> None:
    """Convert all classes of another diffusers; print residue that the installed one does not have, and bad names."""
    from porter.model_port import is_model, model_names, port_model, write_models
    from porter.source import SourceTree

    installed = SourceTree()
    known = set(model_names(installed))
    ports, worse = [], 0
    for name in only or [n for n in model_names(tree) if is_model(tree, n)]:
        try:
            port = port_model(tree, target, name)
        except Exception as error:  # noqa: BLE001
            print(f"{name}: does not convert: {line(error)}")
            worse += 1
            continue
        ports.append(port)
        reasons = {entry.reason for entry in port.residue}
        held = {entry.reason for entry in port_model(installed, target, name).residue} if name in known else set()
        if reasons - held:
            worse += 1
            print(f"{name}: more residue: {sorted(reasons - held)}")
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), ports)
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F811,E9", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout.strip())
    print(f"{tree.version}: {len(ports)} classes convert, {worse} with more residue than under {installed.version}")


def line(error: object) -> str:
    return " ".join(str(error).split())[:240]


def verdict(result: dict[str, Any]) -> str:
    if result.get("reason"):
        return "no"
    parts = []
    for dtype in DTYPES:
        tally = result.get(dtype, {})
        parts.append(f"{dtype} {tally.get('compared')}+{tally.get('refused')} bad {len(tally.get('failing', {}))}")
    blocks = result.get("compile", [])
    parts.append("compile " + "/".join(f"{b['original'][:3]}-{b['port'][:3]}" for b in blocks))
    return "; ".join(parts)


def page(results: dict[str, Any], version: str) -> str:
    """The results as a Markdown page."""
    rows = []
    for name, result in sorted(results.items(), key=lambda item: (item[1]["folder"], item[0])):
        cells = [name, result["folder"], *(cell(result.get(dtype)) for dtype in DTYPES)]
        for side in ("original", "port"):
            cells.append(", ".join(dict.fromkeys(block[side][:60] for block in result.get("compile", []))))
        cells += [str(len(result.get("residue", []))), remark(result)]
        rows.append("| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |")
    counted = [r for r in results.values() if r["folder"] == "transformers"]
    zero = {dtype: sum(is_zero(r.get(dtype)) for r in counted) for dtype in DTYPES}
    compiles = sum(bool(r.get("compile")) and all(b["port"] == "yes" for b in r["compile"]) for r in counted)
    return (
        "# Models\n\n"
        f"diffusers {version}: each class and its port from the same small configurations with the same random "
        "weights, none constant, on the CPU.\nMade by `python tools/model_table.py`.\n\n"
        f"Transformers: {zero['float32']} of {len(counted)} at difference 0 in float32 in every configuration, "
        f"{zero['bfloat16']} in bfloat16; the repeated blocks of {compiles} ports compile into one graph.\n\n"
        "Columns float32 and bfloat16: largest absolute difference (configurations compared, and those that both sides "
        "refuse alike).\nConfigurations are the stored ones and those with one parameter changed. Compile: "
        "`torch.compile(fullgraph=True)` of a repeated block.\n\n"
        "| class | folder | float32 | bfloat16 | compile original | compile port | residue | remark |\n"
        "|---|---|---|---|---|---|--:|---|\n" + "\n".join(rows) + "\n"
    )


def is_zero(tally: dict[str, Any] | None) -> bool:
    return bool(tally) and tally["compared"] > 0 and not tally["failing"] and tally["largest"] == 0


def cell(tally: dict[str, Any] | None) -> str:
    if not tally:
        return ""
    if not tally["compared"]:
        return f"original does not run (0, {tally['refused']})" if not tally["failing"] else "fails"
    return f"{tally['largest']:.3g} ({tally['compared']}, {tally['refused']})"


def remark(result: dict[str, Any]) -> str:
    """Why a class is not at 0 everywhere; empty if it is."""
    failing = [
        f"{dtype}, {where}: {why}"
        for dtype in DTYPES
        for where, why in result.get(dtype, {}).get("failing", {}).items()
    ]
    more = f"; and {len(failing) - 2} more" if len(failing) > 2 else ""
    return result.get("reason") or "; ".join(failing[:2]) + more


if __name__ == "__main__":
    main()
