"""Calls at the edge of what a pipeline takes: long ones, odd ones, and many that are refused.

A port must refuse them in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from inspect import Parameter, getmodule, getsource, signature, unwrap
from typing import Any

import torch

from porter.parity.cases import Case

_TOO_LONG = 1_000_000
_CHECKED = re.compile(r"max_sequence_length\s*>")
_PADDING = 3

# More words than any pipeline takes tokens of, no two neighbours alike, so that where a text is cut shows.
_LONG_PROMPT = " ".join(f"{word} {number}" for number in range(130) for word in ("red", "cat", "on", "the", "mat"))
# More positions than 8 bits of mantissa can count.
_LONG_SIDE = 264


def hard_cases(
    call: Callable[..., Any],
    inputs: Mapping[str, Any],
    embeddings: Case | None,
    tensors: dict[str, torch.Tensor],
    patch: int = 16,
) -> list[Case]:
    """Odd sizes, long texts and sides, limits overstepped, nothing or too much to go by, embeddings that are padded.

    Args:
        call: the pipeline's ``__call__``.
        inputs: recipe of the plain call.
        embeddings: the case that gives embeddings instead of prompts, if there is one.
        tensors: what recipes name; padded embeddings are added.
        patch: pixels a position of the denoiser, along one side.
    """
    parameters = signature(call).parameters
    cases = _long(parameters, inputs, patch)
    for name, extra in (("height", 1), ("width", 3), ("num_frames", 1)):
        if isinstance(inputs.get(name), int):
            cases.append(Case(name=f"odd {name}", changes={name: inputs[name] + extra}))
    for name, what in (("height", "taller"), ("width", "wider")):
        if isinstance(inputs.get(name), int) and patch > 1:
            cases.append(Case(name=f"half a position {what}", changes={name: inputs[name] + patch // 2}))
    if "max_sequence_length" in parameters and _checks_length(call):  # else it would be padded to as many
        changes = {"max_sequence_length": _TOO_LONG}
        cases.append(Case(name="sequence too long", changes=changes, first_call_only=True))
    if "prompt" in inputs and parameters["prompt"].default is not Parameter.empty:
        cases.append(Case(name="no prompt", omitted=["prompt"], first_call_only=True))
    if "prompt" in inputs:
        cases.append(Case(name="prompt of another type", changes={"prompt": 5}, first_call_only=True))
    if embeddings is not None:
        both = {"prompt": inputs.get("prompt")} | embeddings.changes
        cases.append(Case(name="prompt and embeddings", changes=both, first_call_only=True))
        padded = _padded(embeddings, tensors)
        if padded is not None:
            cases.append(padded)
    return cases


def _checks_length(call: Callable[..., Any]) -> bool:
    """Whether the pipeline's module refuses a length."""
    module = getmodule(unwrap(call))
    return module is not None and _CHECKED.search(getsource(module)) is not None


def _long(parameters: Container[str], inputs: Mapping[str, Any], patch: int) -> list[Case]:
    """A text longer than what is taken by default, and a strip with more positions than half precision can count."""
    cases = []
    if isinstance(inputs.get("prompt"), str):
        limits = [name for name in inputs if name.endswith("_length")]
        texts = [name for name in ("prompt", "negative_prompt") if isinstance(inputs.get(name), str)]
        cases.append(Case(name="long prompt", changes=dict.fromkeys(texts, _LONG_PROMPT), omitted=limits))
    if "height" in parameters and "width" in parameters:
        undecoded = {"output_type": "latent"} if "output_type" in parameters else {}
        cases.append(Case(name="long strip", changes={"width": _LONG_SIDE * patch, **undecoded}))
    return cases


def _padded(embeddings: Case, tensors: dict[str, torch.Tensor]) -> Case | None:
    """The embeddings' case with positions behind the text that the masks leave out; None if there are no masks."""
    masks = [name for name in embeddings.changes if "mask" in name and name in tensors and tensors[name].ndim == 2]
    changes = dict(embeddings.changes)
    for mask in masks:
        length = tensors[mask].shape[1]
        for name in embeddings.changes:
            held = tensors.get(name)
            if (
                held is None
                or held.ndim not in (2, 3)
                or held.shape[1] != length
                or (held.ndim == 2) != ("mask" in name)
            ):
                continue
            values = held[:, -1:].repeat(1, _PADDING, *[1] * (held.ndim - 2))
            key = f"padded {name}"
            tensors[key] = torch.cat([held, torch.zeros_like(values) if "mask" in name else values], dim=1)
            changes[name] = {"$tensor": key}
    return embeddings.model_copy(update={"name": "padded embeddings", "changes": changes}) if masks else None
