"""The calls that a pipeline is tried with, derived from its signature and its spec.

A case is a change to the spec's call, kept as a recipe, so that it can be printed, stored and rebuilt. Cases need not
be legal: where the reference refuses a call, the port must refuse it in the same words.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, Field

from porter.parity.request import PER_PROMPT

UNTIDY_PROMPT = "  A  Caf\u00e9 &amp;amp;amp; the\n\ncat\u2019s \u00e2\u0080\u0099mat\u00a0 <b>in red</b> "
SECOND_PROMPT = "a cat on a mat, in red and blue"
GUIDANCE = ("guidance_scale", "true_cfg_scale")
_OTHER_GUIDANCE = ("prior_guidance_scale", "decoder_guidance_scale", "audio_guidance_scale")
ON, OFF = 3.5, 1.0
HALF = "half precision"
# The calls that are tried in half precision too: where a value is widened or not shows only there.
_IN_HALF = ("plain", "two prompts", "guidance on", "wider", "long prompt")

# What bounds the cost of a call stays, whatever else is left out.
COST = re.compile(
    r"(num_\w*steps|height|width|\w*num_frames|\w*frame_size|resolution|\w*length|decode_chunk_size|generator|audio_duration"
    r"|min_\w+|max_\w+|processing_resolution|batch_size|\w*_grid|size)"
)


class Case(BaseModel):
    """A named change to the call of a spec."""

    name: str
    changes: dict[str, Any] = Field(default_factory=dict)
    """Arguments set, as recipes (see :mod:`porter.parity.recipes`)."""
    omitted: list[str] = Field(default_factory=list)
    """Arguments left out."""
    first_call_only: bool = False
    """Whether the run ends before the first prediction, whose arguments are compared: for calls that would be long."""
    dtype: str = ""
    """Of the weights on both sides; empty: that of the run."""
    again: bool = False
    """Whether the call was made before: what a request leaves behind shows at the next."""

    def recipe(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of the whole call."""
        kept = {name: value for name, value in inputs.items() if name not in self.omitted}
        return {**kept, **self.changes}

    def describe(self) -> str:
        """The change in words."""
        parts = [f"{name}={value!r}" for name, value in self.changes.items()]
        if self.omitted:
            parts.append("without " + ", ".join(self.omitted))
        if self.first_call_only:
            parts.append("up to the first prediction")
        if self.dtype:
            parts.append(f"weights in {self.dtype}")
        if self.again:
            parts.append("once more, after all others")
        return ", ".join(parts) or "the call as it is"


def build_cases(
    call: Callable[..., Any],
    inputs: Mapping[str, Any],
    default_size: tuple[int, int] | None = None,
    own: Iterable[Case] = (),
) -> list[Case]:
    """All cases that apply to a pipeline's ``__call__``; the plain call first, no two the same.

    Args:
        call: the pipeline's ``__call__``.
        inputs: recipe of the plain call.
        default_size: (height, width) of an output when neither is given; None: unknown.
        own: cases that do not follow from the signature.
    """
    parameters = inspect.signature(call).parameters
    build = _Builder(inputs, set(parameters) - {"self"}, default_size)
    required = {name for name, item in parameters.items() if item.default is item.empty}
    candidates = [
        Case(name="plain"),
        *build.batches(),
        *build.unlike(),
        *build.untidy(),
        *build.guidance(),
        *build.sizes(),
        *build.output_types(),
        *build.repeats(),
        *build.steps(),
        *build.strength(),
        *own,
        build.minimal(required),
        build.bare(required),
    ]
    unique: dict[str, Case] = {}
    for case in candidates:
        key = repr((sorted(case.recipe(inputs).items()), case.first_call_only, case.dtype))
        unique.setdefault(key, case)
    return list(unique.values())


def half_cases(cases: Iterable[Case]) -> list[Case]:
    """Some of the cases once more, with weights in half precision; the plain one in both kinds of it.

    A type that is written down where that of another value was meant shows in the kind that it is not.
    """
    names = {name: f"{HALF}, {name}" for name in _IN_HALF} | {"plain": HALF}
    chosen = [case for case in cases if case.name in names and not case.dtype]
    found = [case.model_copy(update={"name": names[case.name], "dtype": "bfloat16"}) for case in chosen]
    other = {"name": f"{HALF}, float16", "dtype": "float16"}
    return found + [case.model_copy(update=other) for case in chosen if case.name == "plain"]


class _Builder:
    def __init__(self, inputs: Mapping[str, Any], parameters: set[str], default_size: tuple[int, int] | None) -> None:
        self.inputs = inputs
        self.parameters = parameters
        self.default_size = default_size

    def batches(self) -> list[Case]:
        """Two prompts in one call, with one generator and with one each."""
        changes: dict[str, Any] = {}
        for name, value in self.inputs.items():
            if "prompt" in name and isinstance(value, str) and "template" not in name:
                changes[name] = [value, f"{value}, blurry" if "negative" in name else SECOND_PROMPT]
            elif name.endswith("embeds") and isinstance(value, dict) and isinstance(value.get("$tensor"), dict):
                recipe = value["$tensor"]
                changes[name] = {"$tensor": {**recipe, "shape": [2 * recipe["shape"][0], *recipe["shape"][1:]]}}
            elif name == "class_labels" and isinstance(value, list):
                changes[name] = [*value, *value]
        if not changes and "batch_size" in self.parameters:
            changes["batch_size"] = 2
        if not changes:
            return []
        cases = [Case(name="two prompts", changes=changes)]
        media = {name: twice for name, value in self.inputs.items() if (twice := _twice(value)) is not None}
        if media:  # some take one picture for all prompts, some one each; the reference says which
            cases.append(Case(name="two prompts, two inputs", changes={**media, **changes}))
        if "generator" in self.parameters:
            each = {"generator": [{"$generator": 1}, {"$generator": 2}]}
            cases.append(Case(name="two prompts, a generator each", changes={**changes, **each}))
        return cases

    def unlike(self) -> list[Case]:
        """Two pictures of unlike sizes in one call."""
        changes = {name: pair for name, value in self.inputs.items() if (pair := _unlike(value)) is not None}
        return [Case(name="inputs of unlike sizes", changes=changes)] if changes else []

    def untidy(self) -> list[Case]:
        """A prompt that a cleaning step would change: spaces, an entity, quotes, capitals, a broken encoding."""
        if not isinstance(self.inputs.get("prompt"), str):
            return []
        return [Case(name="untidy prompt", changes={"prompt": UNTIDY_PROMPT})]

    def guidance(self) -> list[Case]:
        """Guidance on, off and left to the default; with and without a negative prompt."""
        scales = [name for name in GUIDANCE if name in self.parameters]
        others = [name for name in _OTHER_GUIDANCE if name in self.parameters]
        cases = []
        negative: dict[str, Any] = {}
        if "negative_prompt" in self.parameters and "prompt" in self.inputs:
            negative = {"negative_prompt": self.inputs.get("negative_prompt") or "bad quality"}
        if scales:
            on, off = dict.fromkeys([*scales, *others], ON), dict.fromkeys([*scales, *others], OFF)
            cases.append(Case(name="guidance on", changes={**on, **negative}))
            cases.append(Case(name="guidance off", changes=off))
            cases.append(Case(name="guidance omitted", changes=negative, omitted=[*scales, *others]))
            batch = next(iter(self.batches()), None)
            if negative and batch is not None and isinstance(self.inputs["prompt"], str):
                both = [negative["negative_prompt"], f"{negative['negative_prompt']}, blurry"]  # one of them is padded
                changes = {**batch.changes, **on, "negative_prompt": both}
                cases.append(Case(name="guidance on, two prompts", changes=changes))
                if "guidance_rescale" in self.parameters:  # each prompt by its own spread
                    rescaled = {**changes, "guidance_rescale": 0.7}
                    cases.append(Case(name="guidance rescaled, two prompts", changes=rescaled))
            if negative:
                without = [name for name in self.inputs if name.startswith("negative_prompt")]
                cases.append(Case(name="guidance on, no negative prompt", changes=on, omitted=without))
        elif negative:
            cases.append(Case(name="negative prompt", changes=negative))
        return cases

    def sizes(self) -> list[Case]:
        """Another size, not square, so that no two axes can be mistaken for each other."""
        if not {"height", "width"} <= self.parameters:
            return []
        height, width = self.default_size or (64, 64)
        height, width = self.inputs.get("height") or height, self.inputs.get("width") or width
        return [
            Case(name="taller", changes={"height": 2 * height, "width": width}),
            Case(name="wider", changes={"height": height, "width": 2 * width}),
        ]

    def output_types(self) -> list[Case]:
        if "output_type" not in self.parameters:
            return []
        kinds = [Case(name=f"output {kind}", changes={"output_type": kind}) for kind in ("latent", "pil", "np", "pt")]
        return kinds

    def repeats(self) -> list[Case]:
        """Several outputs per prompt."""
        names = sorted(name for name in self.parameters if PER_PROMPT.fullmatch(name))
        cases = [Case(name="two per prompt", changes=dict.fromkeys(names, 2))] if names else []
        if names and "generator" in self.parameters:
            each = [{"$generator": 3}, {"$generator": 4}]
            changes = {**dict.fromkeys(names, 2), "generator": each}
            cases.append(Case(name="two per prompt, a generator each", changes=changes))
        batch = next(iter(self.batches()), None)
        if names and batch is not None:  # whether outputs lie by prompt or by turn shows only so
            cases.append(Case(name="two prompts, two per prompt", changes=batch.changes | dict.fromkeys(names, 2)))
        return cases

    def steps(self) -> list[Case]:
        """Steps that are neither the first nor the last, nor the first of their order."""
        steps = self.inputs.get("num_inference_steps")
        return [Case(name="more steps", changes={"num_inference_steps": steps + 3})] if isinstance(steps, int) else []

    def strength(self) -> list[Case]:
        """A start in the middle of the schedule."""
        if "strength" not in self.parameters:
            return []
        steps = {"num_inference_steps": 4} if "num_inference_steps" in self.parameters else {}
        return [Case(name="half strength", changes={"strength": 0.5, **steps})]

    def minimal(self, required: set[str]) -> Case:
        """Only what the call needs; every other argument left to its default."""
        inputs = self.inputs
        kept = {name for name in inputs if name in required or name == "prompt" or COST.fullmatch(name)}
        kept |= {name for name, value in inputs.items() if isinstance(value, (dict, list)) and "negative" not in name}
        return Case(name="defaults", omitted=sorted(set(inputs) - kept))

    def bare(self, required: set[str]) -> Case:
        """As little as the call can do with: sizes, steps and frame counts take their defaults too."""
        omitted = set(self.minimal(required).omitted)
        omitted |= {name for name in self.inputs if COST.fullmatch(name) and name != "generator"} - required
        return Case(name="all defaults", omitted=sorted(omitted), first_call_only=True)


def _unlike(value: Any) -> Any:
    """The recipe of pictures as this one, or as these, the last of them wider; None if it is none."""
    pictures = value if isinstance(value, list) else [value, value]
    if len(pictures) < 2 or not all(
        isinstance(item, dict) and isinstance(item.get("$image"), dict) for item in pictures
    ):
        return None
    last = pictures[-1]["$image"]
    width, height = last["size"]
    changed = {"$image": {**last, "size": [width + width // 2, height], "seed": last.get("seed", 0) + 1}}
    return [*pictures[:-1], changed]


def _twice(value: Any) -> Any:
    """The recipe of two inputs like this one; None if it is no picture, video or sound."""
    if not isinstance(value, dict):
        return None
    for key in ("$image", "$images"):
        if isinstance(value.get(key), dict):
            return [value, {key: {**value[key], "seed": value[key].get("seed", 0) + 1}}]
    recipe = value.get("$tensor", value.get("$ndarray"))
    if isinstance(recipe, dict) and len(recipe["shape"]) > 2 and recipe["shape"][0] == 1:
        return {next(iter(value)): {**recipe, "shape": [2, *recipe["shape"][1:]]}}
    return None
