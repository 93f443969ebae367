"""The engine is loaded before anything imports diffusers (see :func:`porter.omni.start`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import porter.omni

porter.omni.start()

logging.getLogger("vllm").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny checkpoint of a pipeline, built once."""
    from porter.parity import checkpoint as checkpoints

    root = tmp_path_factory.mktemp("checkpoints")

    def build(name: str) -> Path:
        folder = root / name
        return folder if folder.is_dir() else checkpoints.build(name, folder)

    return build


@pytest.fixture
def own_tables() -> Iterator[None]:
    """Gives the engine its own models back after the test."""
    from porter.omni.plugin import _replaced, use_native

    yield
    for name in list(_replaced):
        use_native(name)
