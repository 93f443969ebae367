"""Record small configurations and calls of model classes from the tiny pipelines.

    python tools/record_model_inputs.py [--only CLASS …] [--configs N]

Runs the pipelines that hold a class and writes ``porter/parity/data/models/<Class>.json``: one case for each different
configuration, with the calls that differ in the shapes or kinds of their arguments. Cases that were written by hand
(those that are not named after a pipeline) stay.
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

PER_CASE = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=None, metavar="CLASS")
    parser.add_argument("--configs", type=int, default=4, help="how many configurations of a class at most")
    args = parser.parse_args()
    import torch

    from porter.parity import model_spec, spec

    torch.set_num_threads(1)
    taken: dict[str, set[str]] = defaultdict(set)
    for name in spec.available():
        read = spec.read(name)
        wanted = {}
        for component, (library, class_name) in read.components().items():
            config = read.files.get(f"{component}/config.json")
            if library != "diffusers" or config is None or not is_wanted(class_name, args.only):
                continue
            key = json.dumps(plain(json.loads(config)), sort_keys=True)
            if key not in taken[class_name] and len(taken[class_name]) < args.configs:
                taken[class_name].add(key)
                wanted[component] = (class_name, plain(json.loads(config)))
        if not wanted:
            continue
        try:
            recorded = record(name, sorted(wanted))
        except Exception as error:  # noqa: BLE001 - one pipeline that fails does not end the run
            print(name, "failed:", " ".join(str(error).split())[:200], flush=True)
            continue
        for component, calls in recorded.items():
            class_name, config = wanted[component]
            print(name, component, class_name, len(calls), flush=True)
            if calls:
                add(model_spec.MODELS / f"{class_name}.json", {"name": name, "config": config, "calls": calls})


def is_wanted(class_name: str, only: list[str] | None) -> bool:
    """Whether a class is defined among the transformers or controlnets of diffusers."""
    import diffusers

    if only is not None:
        return class_name in only
    module = getattr(getattr(diffusers, class_name, None), "__module__", "")
    return ".models.transformers." in module or ".models.controlnets." in module


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def record(name: str, wanted: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The calls of the wanted components during one run, as recipes."""
    from diffusers import DiffusionPipeline

    from porter.parity.areas import small_areas
    from porter.parity.capture import capture
    from porter.parity.checkpoint import build, load_inputs

    with tempfile.TemporaryDirectory() as folder:
        pipeline = DiffusionPipeline.from_pretrained(build(name, folder))
    pipeline.set_progress_bar_config(disable=True)
    with small_areas(pipeline), capture(pipeline, set()) as events:
        pipeline(**load_inputs(name))
    found = {}
    for component in wanted:
        raw = [event.raw for event in events.events if event.name == component and event.raw is not None]
        forward = getattr(pipeline, component).forward
        found[component] = different([recipe(forward, *call) for call in raw])
    return found


def recipe(forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(forward).bind(*args, **kwargs).arguments
    return {key: argument(forward.__self__, value, index) for index, (key, value) in enumerate(bound.items())}


def argument(model: Any, value: Any, seed: int) -> Any:
    """The recipe of an argument; a cache of the model's own file is made anew, other objects are left out."""
    from porter.parity.model_spec import encode

    try:
        return encode(value, seed)
    except TypeError:
        if type(value).__module__ != type(model).__module__:
            return None
    names = inspect.signature(type(value)).parameters
    return {"$object": {"class": type(value).__name__, "arguments": {name: model.config[name] for name in names}}}


def different(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls whose arguments differ in more than their values."""
    kinds: dict[str, dict[str, Any]] = {}
    for call in calls:
        kinds.setdefault(json.dumps({key: kind(value) for key, value in call.items()}), call)
    return list(kinds.values())[:PER_CASE]


def kind(value: Any) -> Any:
    if isinstance(value, dict):
        for form in ("$values", "$tensor"):
            if form in value:
                return value[form]["shape"]
        return {key: kind(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kind(item) for item in value]
    return type(value).__name__ if isinstance(value, float | int) and not isinstance(value, bool) else value


def add(path: Path, case: dict[str, Any]) -> None:
    held = json.loads(path.read_text()) if path.is_file() else {"cases": []}
    cases = [other for other in held["cases"] if other["name"] != case["name"]] + [case]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps({"cases": cases}) + "\n")


def dumps(value: Any, depth: int = 0) -> str:
    """JSON with a line for each case, call and argument, and none for each number."""
    if depth < 5 and isinstance(value, dict | list) and value and not is_recipe(value):
        pad, end = "\n" + " " * (depth + 1), "\n" + " " * depth
        if isinstance(value, dict):
            return "{" + ",".join(f"{pad}{json.dumps(k)}: {dumps(v, depth + 1)}" for k, v in value.items()) + end + "}"
        return "[" + ",".join(pad + dumps(item, depth + 1) for item in value) + end + "]"
    return json.dumps(value)


def is_recipe(value: Any) -> bool:
    return isinstance(value, dict) and any(key.startswith("$") for key in value)


if __name__ == "__main__":
    main()
