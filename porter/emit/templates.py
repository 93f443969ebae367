"""Jinja2 templates for what is written whole."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

import porter


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    package = Path(porter.__file__).parent
    folders = [package / "templates", package.parent / "templates"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["literal"] = json.dumps  # a text as a Python literal, never as code
    return environment


def fill(name: str, **values: Any) -> str:
    """The template ``name`` filled with ``values``."""
    return _environment().get_template(name).render(**values)
