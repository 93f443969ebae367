"""The call that gives embeddings instead of prompts: what ``encode_prompt`` returned, handed back in.

Which result is which argument is read from the source of ``__call__``, where a caller's ``prompt_embeds`` and the
results of ``encode_prompt`` go by the same names.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import torch

from porter.parity.cases import Case
from porter.parity.recipes import decode
from porter.parity.sides import Side, restored

_METHOD = "encode_prompt"


def embeddings_case(side: Side, inputs: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Case | None:
    """The case of the reference's own embeddings, which are added to ``tensors``; None if the pipeline has none.

    The pipeline is run up to its first prediction, and left as it was.
    """
    pipeline = side.pipeline
    call = inspect.unwrap(type(pipeline).__call__)
    parameters = inspect.signature(call).parameters
    texts = [name for name in inputs if "prompt" in name and not name.endswith(("embeds", "mask"))]
    required = any(parameters[name].default is inspect.Parameter.empty for name in texts if name in parameters)
    if not {"prompt", "prompt_embeds"} <= set(parameters) or required or not hasattr(pipeline, _METHOD):
        return None
    found: dict[str, Any] = {}
    before = dict(vars(pipeline))
    with restored(pipeline, before):
        vars(pipeline)[_METHOD] = _recorder(getattr(pipeline, _METHOD), _targets(call), found)
        side.run(decode(dict(inputs), tensors), set(), True)
    changes = {}
    for name, value in found.items():
        recipe = _stored(name, value, tensors) if name in parameters and name not in texts else None
        if recipe is not None:
            changes[name] = recipe
    if "prompt_embeds" not in changes:
        return None
    for name in parameters:  # a text that is not None by itself would stand beside the embeddings
        if name.endswith("prompt") and f"{name}_embeds" in changes and parameters[name].default is not None:
            changes[name] = None
    return Case(name="embeddings instead of prompts", changes=changes, omitted=texts)


def _targets(call: Callable[..., Any]) -> dict[int, list[str]]:
    """Line in the file to the names that a call of ``encode_prompt`` on it is assigned to."""
    lines, first = inspect.getsourcelines(call)
    found: dict[int, list[str]] = {}
    for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
        if not isinstance(node, ast.Assign) or f"self.{_METHOD}(" not in ast.unparse(node.value):
            continue
        if not isinstance(node.value, ast.Call):
            continue
        target = node.targets[0]
        elements = target.elts if isinstance(target, ast.Tuple) else [target]
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            found[line + first - 1] = [ast.unparse(element) for element in elements]
    return found


def _recorder(original: Callable[..., Any], targets: dict[int, list[str]], found: dict[str, Any]) -> Callable[..., Any]:
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        names = targets.get(sys._getframe(1).f_lineno, [])
        values = list(result) if isinstance(result, (tuple, list)) and len(names) > 1 else [result]
        found.update(zip(names, values, strict=False))
        return result

    return encode_prompt


def _stored(name: str, value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The recipe of a tensor, or of a list of tensors, that is kept under ``name``; None for anything else."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().clone()
        return {"$tensor": name}
    if isinstance(value, list) and value and all(isinstance(item, torch.Tensor) for item in value):
        return [_stored(f"{name}.{index}", item, tensors) for index, item in enumerate(value)]
    return None
