"""Differences of committed ports, converted once a session."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from porter.emit.format import formatted
from porter.emit.write import read_registry
from porter.port import Converter, Port
from porter.review.diff import Hunk, diff_port
from porter.source import SourceTree
from porter.targets import get_target

MODELS = Path(__file__).parents[2] / "generated_models"


@cache
def converter() -> Converter:
    return Converter(SourceTree(), get_target("porter"), record=True)


@cache
def reviewed(name: str) -> tuple[Port, dict[str, str], list[Hunk]]:
    """A port, its texts as they are written, and its differences."""
    port = converter().port(name)
    texts = formatted(port.texts)
    return port, texts, diff_port(port, texts)


def committed() -> list[str]:
    """Names of the pipelines in generated_models."""
    return sorted(read_registry(MODELS)["_DIFFUSION_MODELS"])


@pytest.fixture
def flagship():
    return reviewed("QwenImageEditPipeline")


def definitions(text: str) -> set[str]:
    """Names of the classes and functions of a file."""
    return {n.name for n in ast.parse(text).body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
