"""What vLLM-Omni's tables say about a port: registry, metadata, arguments that may stand in a request's body."""

from __future__ import annotations

import re
from collections.abc import Callable

from porter.emit.format import formatted
from porter.emit.templates import fill
from porter.export import ExportError
from porter.export.checkout import EXTRAS, PACKAGE, REGISTRY, Checkout
from porter.export.folder import MARK, MODELS
from porter.export.insert import add_import, add_lines, keys_of, remove_entry, set_entry
from porter.export.style import LINE_LENGTH, SPDX
from porter.omni.card import Card
from porter.port import Port

_HOOKS = {"_DIFFUSION_PRE_PROCESS_FUNCS": "pre", "_DIFFUSION_POST_PROCESS_FUNCS": "post"}
# Hooks that ports have none of; those of a model that is replaced go with it.
_OTHER_HOOKS = ("_DIFFUSION_IR_OP_PRIORITY_FUNCS", "_DIFFUSION_PREFIX_CACHE_FUNCS")
_EXTRA_SPECS, _SUFFIX = "_EXTRA_SPECS", "_EXTRA_BODY_PARAMS"
# Arguments that do not travel in the body of a request as they are: the server reads them itself, has
# another name for them, or they are tensors.
_READ_BY_SERVER = frozenset(
    {"prompt", "negative_prompt", "image", "images", "mask_image", "video", "audio", "generator", "latents"}
)
_NOT_SENT = re.compile(
    r"(_|^)(embeds?|latents?|masks?|ids|image|images|video|videos|audio)(_mask|_\d+)?$|^num_[a-z]+_per_prompt$"
)


def replaced(checkout: Checkout, name: str) -> str:
    """The file of vLLM-Omni's own model of a pipeline that it has registered; empty if it has none."""
    if name not in keys_of(checkout.text(REGISTRY), "_DIFFUSION_MODELS"):
        return ""
    for file in sorted((checkout.root / MODELS).rglob("*.py")):
        text = file.read_text("utf-8")
        if f"\nclass {name}(" in text and MARK not in text:
            return file.relative_to(checkout.root).as_posix()
    return ""


def registry_text(text: str, port: Port, folder: str) -> str:
    """``registry.py`` with the port in it, beside the family's models."""
    module = f"pipeline_{port.stem}"
    family = _family_members(text, port.family, folder)
    value = f'(\n        "{folder}",\n        "{module}",\n        "{port.name}",\n    )'
    text = set_entry(text, "_DIFFUSION_MODELS", port.name, value, family)
    pipeline = port.texts[f"{port.family}/{module}.py"]
    for table, kind in _HOOKS.items():
        function = f"get_{port.stem}_{kind}_process_func"
        if f"def {function}(" in pipeline:
            text = set_entry(text, table, port.name, f'"{function}"', family)
        else:
            text = remove_entry(text, table, port.name)
    for table in _OTHER_HOOKS:
        text = remove_entry(text, table, port.name)
    return text


def metadata_text(text: str, card: Card, family: list[str]) -> str:
    """``model_metadata.py``; what it says about a model already stays. Pictures and sound are the engine's default."""
    table = "_DIFFUSION_MODEL_METADATA"
    if card.kind != "video" or card.name in keys_of(text, table):
        return text
    value = f'DiffusionModelMetadata(final_output_type="{card.kind}")'
    if len(f'    "{card.name}": {value},') > LINE_LENGTH:
        value = f'DiffusionModelMetadata(\n        final_output_type="{card.kind}",\n    )'
    return set_entry(text, table, card.name, value, family)


def extra_arguments(checkout: Checkout, card: Card) -> list[str]:
    """Arguments of a pipeline that a request's body may have because the model says so, sorted."""
    known = checkout.sampling_fields() | _READ_BY_SERVER
    return sorted(name for name in card.arguments - known if not _NOT_SENT.search(name))


def extras(checkout: Checkout, read: Callable[[str], str], port: Port, names: list[str]) -> dict[str, str]:
    """The module that declares a pipeline's own arguments, and the registry of these modules with it in it.

    Args:
        checkout: what is exported into.
        read: the text of a file as it is to be so far.
        port: the port.
        names: of the arguments; none, and there is nothing to write.
    """
    if not names:
        return {}
    text = read(EXTRAS)
    module = _extras_module(checkout, text, port.stem)
    constant = f"{module.upper()}{_SUFFIX}"
    declared = SPDX + fill("export/extras.py.j2", pipeline=port.name, constant=constant, names=names)
    line = f"from {PACKAGE}.model_extras.{module} import {constant}\n"
    if len(line) > LINE_LENGTH + 1:
        line = f"from {PACKAGE}.model_extras.{module} import (\n    {constant},\n)\n"
    known = constant in text
    text = add_import(text, line)
    if f'"{port.name}"' not in text:
        family = [key for key in keys_of(text, _EXTRA_SPECS) if key in _family_members(read(REGISTRY), port.family, "")]
        text = set_entry(text, _EXTRA_SPECS, port.name, f'{{\n        "extra_body_params": {constant},\n    }}', family)
    elif not known:
        lines = fill("export/extra_spec.py.j2", pipeline=port.name, constant=constant)
        text = add_lines(text, formatted({"lines.py": lines}, LINE_LENGTH)["lines.py"], _EXTRA_SPECS)
    return {f"{PACKAGE}/model_extras/{module}.py": declared, EXTRAS: text}


def family_of(text: str, port: Port, folder: str) -> list[str]:
    """Models of the registry that a port belongs beside."""
    return _family_members(text, port.family, folder)


def _extras_module(checkout: Checkout, registry: str, stem: str) -> str:
    """A module of porter's own, whose constant nothing else is called; beside one written by hand if need be."""
    for module in (stem, f"{stem}_diffusers"):
        held = checkout.read(f"{PACKAGE}/model_extras/{module}.py")
        mine = held is not None and "Made by porter export" in held
        if mine or (held is None and not re.search(rf"\b{module.upper()}{_SUFFIX}\b", registry)):
            return module
    raise ExportError(f"{PACKAGE}/model_extras has modules {stem} and {stem}_diffusers that porter did not make")


def _family_members(text: str, family: str, folder: str) -> list[str]:
    entries = re.findall(r'^    "(\w+)": \(\s*"(\w+)",', text, re.MULTILINE)
    return [name for name, place in entries if place in (family, folder)]
