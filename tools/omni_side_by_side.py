"""Set porter's ports beside vLLM-Omni's own: same tiny checkpoint, same calls, both compared with diffusers.

    .venv-omni/bin/python tools/omni_side_by_side.py [--only NAME …] [--resume]

For every pipeline that vLLM-Omni has a model of its own for. What is compared is what the VAE decodes (the output
itself where there is none): the largest difference as a fraction of the reference's scale, for the plain call and for
calls that change one argument. An argument counts as honoured if its call stays within the bound. Calls of several
prompts at once are left out (vLLM-Omni takes them as several requests), and what would run at full size. What
vLLM-Omni's port wants of a checkpoint or a call besides is in ``tools/native_forms.py``; all get the same. Writes
``docs/omni_side_by_side.md`` and the figures behind it, ``porter/parity/data/omni_side_by_side.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from native_forms import FORMS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "porter" / "parity" / "data" / "omni_side_by_side.json"
TABLE = ROOT / "docs" / "omni_side_by_side.md"
BOUND = 1e-5
SECONDS = 900  # that a pipeline may take, on a busy machine
MEMORY = 12 << 30
PLAIN = "plain"
# Arguments and a value that makes a difference, tried where a pipeline has them; {} keeps the rest of the call.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "sigmas": {"sigmas": [1.0, 0.4], "num_inference_steps": 2},
    "max_sequence_length": {"max_sequence_length": 8},
    "guidance_rescale": {"guidance_rescale": 0.7},
    "clip_skip": {"clip_skip": 1},
    "eta": {"eta": 0.5},
    "prompt_2": {"prompt_2": "a dog under a tree"},
    "negative_prompt_2": {"negative_prompt_2": "grey"},
    "skip_guidance_layers": {"skip_guidance_layers": [0], "num_inference_steps": 4},
    "cfg_normalization": {"cfg_normalization": True, "guidance_scale": 3.5},
    "guidance_scale_2": {"guidance_scale_2": 2.5},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--resume", action="store_true", help="leave out what the results already hold")
    args = parser.parse_args()
    from porter import omni

    omni.start()
    sys.path.insert(0, str(ROOT / "tools"))
    from omni_table import quiet

    quiet()
    from porter.omni.choice import native_models
    from porter.omni.forks import Stopped, in_fork, preload
    from porter.parity.checkpoint import available

    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    preload()
    for name in args.only or sorted(native_models() & set(available())):
        if args.resume and name in results:
            continue
        try:
            results[name] = in_fork(partial(beside, name), SECONDS, MEMORY)
        except (Stopped, RuntimeError) as error:
            results[name] = {"error": _line(error)}
        print(name, json.dumps(results[name])[:400], flush=True)
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    TABLE.write_text(table(results))
    return 0


def beside(name: str) -> dict[str, Any]:
    """Both ports of one pipeline: by case, the difference to diffusers or the error."""
    import torch
    from native_forms import configs, inputs, lay_out, sized

    from porter.omni.side import EnginePort
    from porter.parity import capture, checkpoint, spec
    from porter.parity.areas import small_areas
    from porter.parity.sides import Reference

    capture._LARGE = capture._TOO_LARGE  # sizes of published models are among those that vLLM-Omni's ports have fixed
    held = spec.read(name)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint.build(name, Path(scratch) / name, configs=configs(name, held.files))
        settings = lay_out(name, folder)
        reference = Reference(folder, "cpu", torch.float32)
        calls = _calls(reference.pipeline, inputs(name, held.inputs))
        with small_areas(reference.pipeline):
            expected = {case: _run(reference, recipe, held) for case, recipe in calls.items()}
        calls = {case: recipe for case, recipe in calls.items() if isinstance(expected[case], np.ndarray)}
        for side, native in (("ours", False), ("theirs", True)):
            try:
                with sized(name, folder) if native else nullcontext([]) as told:
                    port = EnginePort(folder, None, "cpu", "float32", native=native, settings=settings)
            except Exception as error:  # noqa: BLE001
                found[side] = {"error": f"{_line(f'{type(error).__name__}: {error}')} ({place(error)})"}
                continue
            if told:
                found["sizes"] = sorted(set(told))
            with small_areas(reference.pipeline, port.pipeline):
                asked = {case: _counted(recipe) if native else recipe for case, recipe in calls.items()}
                found[side] = {case: _distance(expected[case], _run(port, asked[case], held)) for case in calls}
            port.close()
    return found


def _calls(pipeline: Any, inputs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    import inspect

    from porter.parity.cases import build_cases

    parameters = inspect.signature(type(pipeline).__call__).parameters
    cases = build_cases(type(pipeline).__call__, inputs)
    calls = {
        case.name: case.recipe(inputs)
        for case in cases
        if not case.first_call_only and not case.name.startswith(("two prompts", "output ", "defaults"))
    }
    for argument, changes in ARGUMENTS.items():
        if argument in parameters and all(name in parameters for name in changes):
            calls.setdefault(argument, {**inputs, **changes})
    return calls


def _counted(recipe: dict[str, Any]) -> dict[str, Any]:
    """A call whose number of frames is called what vLLM-Omni calls it."""
    from porter.omni.stand_ins import FRAME_COUNTS

    return {"num_frames" if name in FRAME_COUNTS else name: value for name, value in recipe.items()}


def _run(side: Any, recipe: dict[str, Any], held: Any) -> np.ndarray | str:
    """What the VAE decoded at the end of a call, else its output; the text of the error of one that failed."""
    from safetensors.torch import load_file

    from porter.parity.flatten import to_numpy
    from porter.parity.recipes import decode

    record = side.run(decode(recipe, load_file(held.tensors) if held.tensors else {}))
    if record.error is not None:
        return f"{_line(f'{type(record.error).__name__}: {record.error}')} ({place(record.error)})"
    decoded = [event for event in record.events if event.name.endswith("vae.decode")]
    event = decoded[-1] if decoded else record.events[-1] if record.events[-1].name == "output" else record.events[-2]
    arrays = [to_numpy(leaf) for path, leaf in event.values.items() if path.startswith("result") and _is_array(leaf)]
    return np.concatenate([array.astype(np.float64).ravel() for array in arrays]) if arrays else "no output"


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and len(leaf.shape) > 0


def _distance(expected: Any, found: Any) -> float | str:
    if isinstance(found, str):
        return found
    if found.shape != expected.shape:
        return f"{found.size} values instead of {expected.size}"
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


def place(error: BaseException) -> str:
    """Where an exception was raised: the last line of a model, if there is one, for what it called is everybody's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "diffusion/models/" in frame.filename]
    return next((f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(own or frames)), "")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    from importlib import metadata

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("vllm-omni", "diffusers", "torch"))
    rows = []
    for name, result in sorted(results.items()):
        sides = [result.get(side, {"error": result.get("error", "")}) for side in ("ours", "theirs")]
        cells = [f"{_show(side.get(PLAIN, side.get('error', '')))} | {_count(side)}" for side in sides]
        theirs = {case: value for case, value in sides[1].items() if case != "error"}
        rows.append(f"| {name} | {cells[0]} | {cells[1]} | {_failing(theirs)} | {_given(name, result)} |")
    return (
        "# Ports of porter beside vLLM-Omni's own\n\n"
        f"{versions}; tiny random checkpoints, float32 on the CPU. Difference to diffusers as a fraction of the "
        f"output's scale; a call agrees if it is at most {BOUND:g}.\n"
        "An error of vLLM-Omni's own port may come from a size that it has fixed and a tiny checkpoint has not; it says"
        " nothing about the checkpoint that it was written for.\n"
        "Made by `.venv-omni/bin/python tools/omni_side_by_side.py`, which says what is compared and how; every figure "
        "is in `porter/parity/data/omni_side_by_side.json`.\n\n"
        f"{_summary(results)}\n\n"
        "| pipeline | porter: plain call | porter: calls that agree | vLLM-Omni: plain call | vLLM-Omni: calls that "
        "agree | calls in which vLLM-Omni's differs | what vLLM-Omni's was given |\n|---|---|--:|---|--:|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def _summary(results: dict[str, Any]) -> str:
    """How many of each side's ports agree with diffusers, and in how many calls."""
    said = []
    for side, whose in (("ours", "porter's"), ("theirs", "vLLM-Omni's")):
        calls = [result.get(side, {}) for result in results.values()]
        agreeing = sum(_good(held.get(PLAIN)) for held in calls)
        good = sum(_good(value) for held in calls for value in held.values())
        all_calls = sum(len(held) for held in calls if "error" not in held)
        raising = sum("error" in held or isinstance(held.get(PLAIN), str) for held in calls)
        said.append(
            f"{whose} agree in the plain call of {agreeing}, in {good} of {all_calls} calls; {raising} do not load "
            "the checkpoint, raise, or make something of another size"
        )
    return f"{len(results)} pipelines: {'. '.join(said)}."


def _failing(calls: dict[str, Any]) -> str:
    """The calls that differ and how; those that fail alike together."""
    by_text: dict[str, list[str]] = {}
    for case, value in calls.items():
        if not _good(value):
            by_text.setdefault(_show(value), []).append(case)
    if len(by_text) == 1 and len(calls) > 1 and len(next(iter(by_text.values()))) == len(calls):
        return f"all ({next(iter(by_text))})"
    return "; ".join(f"{', '.join(cases)} ({text})" for text, cases in by_text.items())


def _given(name: str, result: dict[str, Any]) -> str:
    """Why its checkpoint or call has a form of its own, and which sizes its models were handed."""
    sizes = result.get("sizes", [])
    said = [FORMS[name].reason] if name in FORMS else []
    return "; ".join(said + ([f"its model is built without its config and got {', '.join(sizes)}"] if sizes else []))


def _good(value: Any) -> bool:
    return isinstance(value, float) and value <= BOUND


def _count(side: dict[str, Any]) -> str:
    return f"{sum(map(_good, side.values()))} of {len(side)}" if "error" not in side else ""


def _show(value: Any) -> str:
    return (f"{value:.2g}" if isinstance(value, float) else str(value)).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
