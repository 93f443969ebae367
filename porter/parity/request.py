"""A diffusers call as a porter request: the one place that knows which argument goes where."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL.Image
import torch

from porter.runtime import OmniDiffusionSamplingParams

if TYPE_CHECKING:
    from porter.runtime.inputs.data import OmniTextPrompt

PER_PROMPT = re.compile(r"num_[a-z]+_per_prompt")
_MEDIA = frozenset(
    "image images img mask masks video videos frames audio audios hint pose depth_map conditioning reference".split()
)
_NOT_MEDIA = ("latents", "embeds", "embeddings")


def to_request(kwargs: Mapping[str, Any]) -> tuple[OmniTextPrompt, OmniDiffusionSamplingParams]:
    """Map the keyword arguments of a diffusers call to a prompt dict and sampling parameters.

    Every argument arrives, and arrives as given: one whose value could be mistaken for "not given" in the sampling
    parameters (None, or the field's own default) travels in ``extra_args`` instead.
    """
    defaults = _field_defaults()
    prompt: dict[str, Any] = {}
    media: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in kwargs.items():
        target = "num_outputs_per_prompt" if PER_PROMPT.fullmatch(name) else name
        if target in defaults:
            if _says_something(value, defaults[target]):
                fields[target] = value
            else:
                extra[name] = value
        elif "prompt" in name:
            prompt[name] = value
        elif is_media(name, value):
            media[name] = value
        else:
            extra[name] = value
    if media:
        prompt["multi_modal_data"] = media
    return cast("OmniTextPrompt", prompt), OmniDiffusionSamplingParams(**fields, extra_args=extra)


def is_media(name: str, value: Any) -> bool:
    """Whether an argument is a picture, mask, video or sound, by its value and its name."""
    if isinstance(value, PIL.Image.Image):
        return True
    if isinstance(value, (list, tuple)):
        return bool(value) and all(is_media(name, item) for item in value)
    if name.endswith(_NOT_MEDIA) or not _MEDIA & set(name.split("_")):
        return False
    return isinstance(value, (np.ndarray, torch.Tensor))


def _field_defaults() -> dict[str, Any]:
    """Fields that a call argument may fill, with their defaults."""
    found = {}
    for item in dataclasses.fields(OmniDiffusionSamplingParams):
        if item.init and item.name != "extra_args":
            factory = item.default_factory
            found[item.name] = factory() if factory is not dataclasses.MISSING else item.default
    return found


def _says_something(value: Any, default: Any) -> bool:
    if value is None:
        return False
    comparable = isinstance(value, (bool, int, float, str, dict))
    return not (comparable and type(value) is type(default) and value == default)
