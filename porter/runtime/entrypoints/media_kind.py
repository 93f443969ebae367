"""What a pipeline makes, told before it has run: pictures, a video or sound."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

# Names of outputs, and the kind that each makes; the first that is there decides (a video may carry sound).
_KINDS = (("video", ("video", "frames")), ("audio", ("audio", "audios")))
_OUTPUT_CLASS = re.compile(r"\b(\w+Output)\(")


def kind_of_port(post_process_factory: Callable[..., Any] | None) -> str:
    """``image``, ``video`` or ``audio``, by the keys of what a port's post-processing hook returns."""
    if post_process_factory is None:
        return "image"
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(post_process_factory)))
    except (OSError, TypeError, SyntaxError):
        return "image"
    returned = (node.value for node in ast.walk(tree) if isinstance(node, ast.Return))
    keys = (key for value in returned if isinstance(value, ast.Dict) for key in value.keys)
    return _kind(str(key.value) for key in keys if isinstance(key, ast.Constant))


def kind_of_diffusers(pipeline: Any) -> str:
    """``image``, ``video`` or ``audio``, by the fields of the output class that a diffusers pipeline returns."""
    call = inspect.unwrap(type(pipeline).__call__)
    try:
        names = _OUTPUT_CLASS.findall(inspect.getsource(call))
    except (OSError, TypeError):
        return "image"
    module = vars(sys.modules[call.__module__])
    classes = [found for name in names if dataclasses.is_dataclass(found := module.get(name))]
    return _kind(field.name for cls in classes for field in dataclasses.fields(cls))


def _kind(names: Iterable[str]) -> str:
    held = set(names)
    return next((kind for kind, keys in _KINDS if held & set(keys)), "image")
