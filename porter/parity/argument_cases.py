"""A call for every argument that nothing else varies.

So an argument that a port ignores shows, and a default that it changed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from porter.parity.cases import COST, GUIDANCE, SECOND_PROMPT, UNTIDY_PROMPT, Case
from porter.parity.recipes import decode
from porter.parity.request import PER_PROMPT
from porter.parity.sides import Side, restored

# Where a list of numbers is asked for, and no default says which.
_SCHEDULES = {"sigmas": [1.0, 0.7, 0.3], "timesteps": [900, 500, 200]}
_SIZE = {"$tuple": [40, 48]}
_ELSEWHERE = frozenset((*GUIDANCE, "strength", "output_type", "return_dict", "generator", "prompt", "negative_prompt"))
_NOT_SCALAR = re.compile(r"list|tuple|dict|tensor|callable|image|ndarray", re.IGNORECASE)
_METHOD = "prepare_latents"


def argument_cases(call: Callable[..., Any], inputs: Mapping[str, Any], dropped: Collection[str] = ()) -> list[Case]:
    """One case an argument: a flag turned over, a number changed, a schedule or second prompt given.

    Args:
        call: the pipeline's ``__call__``.
        inputs: recipe of the plain call.
        dropped: arguments that the port does not take, by its own account.
    """
    cases = []
    parameters = inspect.signature(call).parameters
    for name, parameter in parameters.items():
        if name in _ELSEWHERE or name in dropped or COST.fullmatch(name) or PER_PROMPT.fullmatch(name):
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        held = inputs.get(name, parameter.default)
        value = _another(name, held, "" if parameter.annotation is parameter.empty else str(parameter.annotation))
        if value is not None:
            cases.append(Case(name=f"another {name}", changes={name: value} | _company(name, parameters, inputs)))
    return cases


def _company(name: str, parameters: Collection[str], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What makes an argument count: guidance and a prompt for a negative one, an untidy prompt for cleaning."""
    if "clean" in name and isinstance(inputs.get("prompt"), str):
        return {"prompt": UNTIDY_PROMPT}
    layers = _about_layers(name)
    if not name.startswith("negative_") and not layers:
        return {}
    changes: dict[str, Any] = {scale: 3.5 for scale in GUIDANCE if scale in parameters}
    if layers:  # some layers left out, up to the last step
        about = [each for each in parameters if _about_layers(each) and each != name]
        changes |= {each: [0] for each in about if each.endswith("_layers")}
        changes |= {each: 1.0 for each in about if each.endswith("_stop")}
        steps = inputs.get("num_inference_steps")
        changes |= {"num_inference_steps": steps + 3} if isinstance(steps, int) else {}
    if "negative_prompt" in parameters and isinstance(inputs.get("prompt"), str):
        changes["negative_prompt"] = inputs.get("negative_prompt") or "bad quality"
    return changes


def _about_layers(name: str) -> bool:
    """Whether an argument says which layers guidance leaves out, how much, or in which steps."""
    return "layer" in name and "guidance" in name


def _another(name: str, held: Any, annotation: str) -> Any:
    """Another value of an argument; None if its kind is not known."""
    if isinstance(held, bool):
        return not held
    if isinstance(held, int):
        return held + 1
    if isinstance(held, float):
        return held / 2 if held >= 0.5 else held + 0.25
    if held is None and name.endswith("attention_kwargs"):
        return {"scale": 0.5}
    if held is None and _about_layers(name) and "list[int]" in annotation.lower():
        return [0]
    if held is None:
        return _SCHEDULES.get(name) or _of_kind(name, annotation)
    if isinstance(held, (tuple, dict)) and _is_pair(held):
        return {"$tuple": [3, 5]}
    return None


def _of_kind(name: str, annotation: str) -> Any:
    """A value where the default is None, by what the annotation names."""
    if "tuple[int, int]" in annotation:
        return _SIZE
    if "prompt" in name and "str" in annotation and not name.endswith(("embeds", "mask")):
        return SECOND_PROMPT
    if _NOT_SCALAR.search(annotation):
        return None
    kinds = {"bool": True, "float": 0.5, "int": 1}
    return next((value for word, value in kinds.items() if re.search(rf"\b{word}\b", annotation)), None)


def _is_pair(held: Any) -> bool:
    items = held.get("$tuple", ()) if isinstance(held, dict) else held
    return len(items) == 2 and all(type(item) is int for item in items)


def latents_case(side: Side, inputs: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Case | None:
    """The case in which the caller brings the latents that the pipeline would start from, made smaller.

    They are added to ``tensors``. The pipeline is run up to its first prediction, and left as it was. None if it takes
    no latents, or does not make them in ``prepare_latents``.
    """
    pipeline = side.pipeline
    if "latents" not in inspect.signature(type(pipeline).__call__).parameters or "latents" in inputs:
        return None
    with restored(pipeline, dict(vars(pipeline))):
        capture = side.run(decode(dict(inputs), tensors), {_METHOD}, True)
    event = next((event for event in capture.events if event.name == _METHOD), None)
    found = next((leaf for leaf in event.values.values() if isinstance(leaf, torch.Tensor)), None) if event else None
    if found is None or not found.is_floating_point():
        return None
    tensors["latents"] = found * 0.75
    return Case(name="latents given", changes={"latents": {"$tensor": "latents"}})
