"""Prove the parallel features of the ports on two ranks of vLLM-Omni, and make the table of features.

    python tools/feature_table.py [--python .venv-omni/bin/python] [--only CLASS …] [--work DIR] [--table]

Every transformer and controlnet class with a stored small configuration is converted for vllm-omni. One process runs it
alone; then two ranks (gloo, on the CPU) run the same weights and inputs with tensor parallelism, then with Ulysses, and
compare. Writes ``porter/parity/data/features.json``; what it says decides which ports refuse which parallel sizes.
``--table`` only converts all pipelines that are at parity and writes ``docs/features.md`` from what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from porter.omni.rendezvous import ROOT, run_ranks

EVIDENCE = ROOT / "porter" / "parity" / "data" / "features.json"
RESULTS = ROOT / "porter" / "parity" / "data" / "results.json"
PAGE = ROOT / "docs" / "features.md"
BOUND = 1e-4
# One product for several projections orders its sums otherwise than one for each, and does nothing else.
MERGED, MERGED_BOUND = "merged_projections", 1e-5
MODES = {"tp": "tensor_parallel", "sp": "sequence_parallel"}
BLOCKS = ("regional_compile", "layerwise_offload", "hsdp")
COLUMNS = (
    *(*MODES.values(), MERGED, "cfg_parallel", "step_execution", "request_batch", "cache_dit", "hoisting"),
    *BLOCKS,
)
# What vllm and the engine say where two ranks cannot share a number evenly.
UNEVEN = ("cannot be divided", "is not divisible")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=str(ROOT / ".venv-omni" / "bin" / "python"), help="with vllm-omni")
    parser.add_argument("--only", nargs="+", default=None, metavar="CLASS")
    parser.add_argument("--work", type=Path, default=None, help="kept; left out, a temporary folder")
    parser.add_argument("--table", action="store_true", help="make the page from the evidence that is there")
    args = parser.parse_args()
    if not args.table:
        work = args.work or Path(tempfile.mkdtemp(prefix="porter-features-"))
        try:
            prove(work, args.python, args.only)
        finally:
            if args.work is None:
                shutil.rmtree(work, ignore_errors=True)
    if args.only is None:
        PAGE.write_text(page())


def prove(work: Path, python: str, only: list[str] | None) -> None:
    """Run everything and put it into the evidence."""
    features = convert(work, only)
    names = sorted(features)
    found = run(work, python, names, [])
    uneven = [name for name in names if any(is_uneven(found[mode].get(name, {})) for mode in MODES)]
    if uneven:
        again = run(work, python, uneven, uneven)
        for mode in ("one", *MODES):
            found[mode] |= again[mode]
    held: dict[str, Any] = json.loads(EVIDENCE.read_text()) if EVIDENCE.is_file() else {}
    if not only:  # of classes that are gone, nothing is kept
        held["models"] = {name: entries for name, entries in held.get("models", {}).items() if name in features}
    for name in names:
        entries = held.setdefault("models", {}).setdefault(name, {})
        entries.pop(MERGED, None)
        entries |= {
            feature: proof(feature, features[name].get(feature, {}), found[mode].get(name, {"error": "was not run"}))
            for mode, feature in MODES.items()
        }
        if "merged" in (alone := found["one"].get(name, {})):
            held["models"][name][MERGED] = merged_proof(features[name][MERGED], alone)
    held |= versions(python)
    held["models"] = dict(sorted(held["models"].items()))
    EVIDENCE.write_text(json.dumps(held, indent=1) + "\n")


def convert(work: Path, only: list[str] | None) -> dict[str, Any]:
    """Write the ports; what was derived for each."""
    from porter.facts.evidence import as_if_untried
    from porter.model_port import ModelPort, build_model, find_model, is_model, model_names, write_models
    from porter.parity import model_spec
    from porter.source import SourceTree
    from porter.targets import get_target

    tree, target, features = SourceTree(None), get_target("vllm-omni"), {}
    wanted = set(only or model_spec.available()) & set(model_spec.available())
    hosts = {case.host["class"] for name in wanted for case in model_spec.read(name) if case.host is not None}
    for name in model_names(tree):
        if name in wanted | hosts and is_model(tree, name):
            with as_if_untried("models"):
                text, built = build_model(tree, target, find_model(tree, name))
            write_models(work / "ports", [ModelPort(name, name, text)])
            if name in wanted:
                features[name] = {key: vars(feature) for key, feature in built.features.items()}
    return features


def run(work: Path, python: str, names: list[str], wide: list[str]) -> dict[str, dict[str, Any]]:
    """All modes, one after the other; how each model went, by mode."""
    (work / "jobs.json").write_text(json.dumps({mode: names for mode in ("one", *MODES)} | {"wide": wide}))
    found: dict[str, dict[str, Any]] = {}
    for mode in ("one", *MODES):
        found[mode] = run_mode(work, python, mode)
        print(mode, len(found[mode]), "models", flush=True)
    return found


def run_mode(work: Path, python: str, mode: str) -> dict[str, dict[str, Any]]:
    """How each model went in a mode, by name: alone, or on two ranks."""
    ranks = 1 if mode == "one" else 2
    entries = run_ranks(python, "porter.omni.ranks", work, mode, ranks, "--world", str(ranks))
    return {entry["model"]: entry for entry in entries}


def is_uneven(entry: dict[str, Any]) -> bool:
    return any(text in entry.get("error", "") for text in UNEVEN)


def proof(feature: str, derived: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """What the evidence keeps of a run."""
    kept = {key: entry[key] for key in ("case", "relative", "share", "split", "collectives", "error") if key in entry}
    shared = entry.get("split", 0) > 0 if feature == "tensor_parallel" else bool(entry.get("hooked"))
    passed = entry.get("relative", 1.0) <= BOUND and shared and bool(entry.get("collectives"))
    return {"fingerprint": derived.get("fingerprint", ""), "passed": passed, **kept}


def merged_proof(derived: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """What the evidence keeps of a run with one product for merged projections, held against one for each."""
    passed = entry["merged"] <= MERGED_BOUND
    return {"fingerprint": derived["fingerprint"], "passed": passed, "case": entry["case"], "relative": entry["merged"]}


def versions(python: str) -> dict[str, str]:
    import diffusers

    code = "from importlib.metadata import version; print(version('vllm-omni'))"
    engine = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return {"diffusers": diffusers.__version__, "vllm_omni": engine}


def page() -> str:
    """The table: what each model and each pipeline at parity has."""
    evidence = json.loads(EVIDENCE.read_text())
    rows = pipelines()
    head = [
        "# Features",
        "",
        f"diffusers {evidence['diffusers']}, vLLM-Omni {evidence['vllm_omni']}.",
        "Made by `python tools/feature_table.py`.",
        "",
        "Each model was run by one process and by two ranks of vLLM-Omni on gloo (CPU, float32), with the same weights",
        f"and inputs. A feature is *verified* if the largest difference is at most {BOUND:g} of the result's scale and",
        "the work was really shared: parameters are smaller on the ranks (tensor parallelism), the engine's hooks",
        "were on (sequence parallelism), collectives were called. *derived*: not proven, runs with",
        "`PORTER_UNVERIFIED=1` in the environment.",
        "",
        "Tensor parallelism splits the projections of attention and feed-forwards in repeated blocks. The ranks of",
        "a sequence-parallel group share attention, each with some of the heads, as after the exchange of Ulysses;",
        "projections and feed-forwards then see whole sequences, so activations take as much memory as on one rank.",
        "Where diffusers states a plan for one sequence, that is used, and everything in the blocks is divided.",
        "",
        "Projections of one input are one layer (query, key and value; keys and values; the two of a gated",
        "feed-forward). It is verified if one product for all of them, as on a GPU, gives what one for each gives, to",
        f"{MERGED_BOUND:g} of the result's scale; against diffusers, ports on a CPU make one for each.",
        "",
        "Step execution and CFG parallelism belong to pipelines and are proven by `python tools/pipeline_features.py`:",
        "two requests of different step counts in turns, by the engine's own step scheduler, against each of them",
        "whole; a request with its guidance on two ranks against one. Steps that were not proven run all the same:",
        "they are what `forward` runs. Pipelines whose classes the engine's own diffusers lacks were run with",
        f"{evidence['diffusers']} in its place.",
        "",
        "So are, by the same command, *request_batch* (two requests in one call, each as alone, to 1e-05), *cache_dit*",
        "(a cache that never fills changes nothing, and one that skips lets blocks run less often) and *hoisting* (a",
        "request that holds results over its steps gives, bit for bit, what one does that computes all in each step,",
        "and results were used again).",
        "",
        "What the engine makes of repeated blocks is proven by `python tools/block_features.py`, for each model with",
        "three blocks of a kind at least. *regional_compile*: the engine's `regionally_compile`, with graphs captured",
        "and lowered by AOTAutograd and run operation by operation (`aot_eager`), with the sizes at hand",
        "(`diffusion_compile_dynamic=False`); every call of a block ran a graph, results are within 1e-06 of",
        "eager. Code generation is torch's, and was not tried. *layerwise_offload*: the engine's backend and hooks,",
        "with torch's streams of a CPU, which do nothing: a block's weights were there when it ran, and gone then,",
        "never those of all blocks, and results are the same bit for bit. That copies overlap with computing, and what",
        "that saves, was not tried: it takes an accelerator. *hsdp*: weights on two ranks by the engine's",
        "`apply_hsdp_to_model`, gathered for each block; results are within 1e-06 of one rank's.",
        "",
        f"Of {len(rows)} pipelines at parity with a converted transformer in the port:",
        "",
        *(f"- {name}: {count(rows, name)}" for name in COLUMNS),
        "",
        "## Models",
        "",
        "| class | tensor parallel 2 | parameters of a rank | collectives | Ulysses 2 | collectives |",
        "|---|---|--:|---|---|---|",
    ]
    for name, found in evidence["models"].items():
        tensor, sequence = found["tensor_parallel"], found["sequence_parallel"]
        cells = [name, outcome(tensor), f"{tensor['share']:.0%}" if "share" in tensor else "", traffic(tensor)]
        head.append("| " + " | ".join([*cells, outcome(sequence), traffic(sequence)]) + " |")
    head += [
        "",
        "## Blocks of models",
        "",
        "*compiled*: the difference from eager, and graphs and their breaks where there are any. *offloaded*: the most",
        "blocks in place after one has run, of all. *HSDP 2*: the part of the weights that a rank holds.",
        "",
        "| class | compiled | graphs | breaks | offloaded | in place | HSDP 2 | weights of a rank |",
        "|---|---|--:|--:|---|---|---|--:|",
    ]
    head += [blocks_row(name, found) for name, found in evidence["models"].items()]
    head += ["", "## Pipelines", "", "| pipeline | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name, features in rows.items():
        head.append(f"| {name} | " + " | ".join(features.get(column, "") for column in COLUMNS) + " |")
    return "\n".join(head) + "\n"


def blocks_row(name: str, found: dict[str, Any]) -> str:
    """What the engine made of a model's blocks."""
    compiled, away, sharded = (found.get(feature, {"error": "no blocks"}) for feature in BLOCKS)
    cells = [name, outcome(compiled), *(str(compiled.get(key, "")) for key in ("graphs", "breaks"))]
    place = f"{away['most']} of {away['blocks']}" if "most" in away else ""
    share = f"{sharded['share']:.0%}" if "share" in sharded else ""
    return "| " + " | ".join([*cells, outcome(away), place, outcome(sharded), share]) + " |"


def pipelines() -> dict[str, dict[str, str]]:
    """The features of each pipeline at parity that has a transformer of its own in the port."""
    from porter.port import Converter
    from porter.source import SourceTree
    from porter.targets import get_target

    converter, rows = Converter(SourceTree(None), get_target("porter")), {}
    for name, result in sorted(json.loads(RESULTS.read_text()).items()):
        port = converter.port(name)
        if result["verdict"] == "parity" and any(file.endswith("_transformer.py") for file in port.files):
            rows[name] = {column: port.features[column] for column in COLUMNS}
    return rows


def count(rows: dict[str, dict[str, str]], name: str) -> str:
    states = Counter(features.get(name, "no").partition(":")[0] for features in rows.values())
    return ", ".join(f"{number} {state} ({number / len(rows):.0%})" for state, number in states.most_common())


def outcome(found: dict[str, Any]) -> str:
    if "relative" not in found:
        return found.get("error", "not run").replace("|", "/")[:90]
    return f"{found['relative']:.1e}" + ("" if found["passed"] else ", not done")


def traffic(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(found.get("collectives", {}).items()))


if __name__ == "__main__":
    sys.exit(main())
