"""Tiny checkpoints that differ from a pipeline's own in one thing that its code asks for.

Published checkpoints of one pipeline differ: a guidance embedder or none, a second denoiser, another scheduler, a text
encoder left out. What a pipeline does then stands in branches that its tiny checkpoint never takes. So each setting
that its source reads, of itself and of its components, is changed in turn; a checkpoint that diffusers does not run
with the pipeline's small call is left out.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch

from porter.parity.spec import Spec
from porter.parity.variants import variants
from porter.source import SourceTree

_READ = re.compile(
    r"self\.(\w+)\.config(?:\.(?!get\b)(\w+)|\.get\(\s*['\"](\w+)|\[['\"](\w+))"
    r"|getattr\(\s*self\.(\w+)\.config,\s*['\"](\w+)"
)
_SCHEDULERS = re.compile(r"isinstance\(\s*self\.scheduler,\s*(\w+)")
_SECOND = "_2"


def other_specs(spec: Spec, pipeline: Any) -> Iterator[tuple[str, list[Spec]]]:
    """Label of each other checkpoint, and its descriptions: the first with which diffusers runs is meant.

    Args:
        spec: the pipeline's own.
        pipeline: diffusers' pipeline, loaded from it.
    """
    tree = SourceTree()
    source = "\n".join(_sources(type(pipeline)))
    changes = list(_settings(tree, pipeline))
    for label, change in changes:
        yield label, [_indexed(spec, change)]
    yield from ((label, [without]) for label, without in _without(spec, pipeline))
    for name, added in _doubled(spec):
        yield f"a {name}", [added]
        yield from ((f"a {name}, {label}", [_indexed(added, change)]) for label, change in changes)
    for found in dict.fromkeys(_SCHEDULERS.findall(source)):
        if "scheduler" in spec.components() and spec.components()["scheduler"][1] != found:
            other = _indexed(spec, {"scheduler": ["diffusers", found]})
            yield f"scheduler={found}", [_configured(other, "scheduler", {})]
    numbers: dict[str, dict[str, Any]] = {}
    for component, keys in _read(source).items():
        part = getattr(pipeline, component, None)
        if _config_file(component) not in spec.files or not type(part).__module__.startswith("diffusers."):
            continue
        read = [(label, change) for label, change in _settings(tree, part) if keys.issuperset(change)]
        read = [(label, change) for label, change in read if None not in change.values() or _may_lack(source, change)]
        sizes = [change for _, change in read if all(type(value) is int for value in change.values())]
        for label, change in read:
            if _is_free(part, change):
                numbers[component] = change | numbers.get(component, {})
            else:
                fitting = [_configured(spec, component, change | size) for size in sizes] if _turns(change) else []
                yield f"{component}.{label}", [_configured(spec, component, change), *fitting]
    if numbers:
        changed = spec
        for component, change in numbers.items():
            changed = _configured(changed, component, change)
        yield "other numbers", [changed]


def _is_free(part: Any, change: dict[str, Any]) -> bool:
    """Whether it changes a number to which nothing has to fit, so that many can be changed at once."""
    kinds = (float,) if isinstance(part, torch.nn.Module) else (float, int)
    return all(type(value) in kinds for value in change.values())


def _may_lack(source: str, change: dict[str, Any]) -> bool:
    """Whether a source asks if there is a value at all."""
    return any(re.search(rf"\b{key}\b[^\n]*\bNone\b", source) for key in change)


def _turns(change: dict[str, Any]) -> bool:
    """Whether it turns something on or off, or chooses another kind; that may ask for another size besides."""
    return all(isinstance(value, bool | str) for value in change.values())


def _sources(cls: type) -> Iterator[str]:
    """The text of the modules of diffusers' pipelines that a pipeline class and its bases are in."""
    modules = dict.fromkeys(
        base.__module__ for base in cls.__mro__ if base.__module__.startswith("diffusers.pipelines")
    )
    for name in modules:
        with open(sys.modules[name].__file__ or "", encoding="utf-8") as file:
            yield file.read()


def _read(source: str) -> dict[str, set[str]]:
    """The settings of components that a source reads, by component."""
    found: dict[str, set[str]] = {}
    for match in _READ.finditer(source):
        component, *keys = (group for group in match.groups() if group)
        found.setdefault(component, set()).update(keys)
    return found


def _settings(tree: SourceTree, owner: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """What can be changed in the configuration of a pipeline or a component, one thing at a time."""
    definition = tree.resolve(type(owner).__module__, type(owner).__name__)
    config = {key: value for key, value in dict(owner.config).items() if key[0] != "_" and not _is_component(value)}
    for label, change in variants(tree, definition, config) if definition is not None else ():
        if config.keys() >= change.keys():
            yield label, change


def _without(spec: Spec, pipeline: Any) -> Iterator[tuple[str, Spec]]:
    """Without each component that may be absent, and what is numbered like it (``text_encoder_3``, ``tokenizer_3``)."""
    optional = [name for name in getattr(pipeline, "_optional_components", ()) if name in spec.components()]
    groups: dict[str, list[str]] = {}
    for name in optional:
        number = re.search(r"_\d+$", name)
        groups.setdefault(number[0] if number else name, []).append(name)
    for gone in groups.values():
        yield f"no {', '.join(gone)}", _indexed(spec, {name: [None, None] for name in gone})


def _doubled(spec: Spec) -> Iterator[tuple[str, Spec]]:
    """With a second one of each component that has a place for it."""
    for name, value in spec.model_index.items():
        first = name.removesuffix(_SECOND)
        if name.endswith(_SECOND) and value == [None, None] and first in spec.components():
            copied = {path: data for path, data in spec.files.items() if path.startswith(f"{first}/")}
            files = {name + path.removeprefix(first): data for path, data in copied.items()}
            added = dataclasses.replace(spec, files=spec.files | files)
            yield name, _indexed(added, {name: list(spec.components()[first])})


def _is_component(value: Any) -> bool:
    """Whether an entry of a pipeline's configuration stands for a component: its library and its class."""
    words = isinstance(value, list | tuple) and len(value) == 2
    return words and all(item is None or isinstance(item, str) for item in value)


def _indexed(spec: Spec, change: dict[str, Any]) -> Spec:
    """With other entries in ``model_index.json``."""
    index = spec.model_index | change
    return dataclasses.replace(spec, model_index=index, files=spec.files | {"model_index.json": _encoded(index)})


def _config_file(component: str) -> str:
    return f"{component}/{'scheduler_config' if component.endswith('scheduler') else 'config'}.json"


def _configured(spec: Spec, component: str, change: dict[str, Any]) -> Spec:
    """With other entries in a component's file."""
    path = _config_file(component)
    config = json.loads(spec.files[path]) | {"_class_name": spec.model_index[component][1]} | change
    return dataclasses.replace(spec, files=spec.files | {path: _encoded(config)})


def _encoded(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()
