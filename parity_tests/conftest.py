"""What tests of several folders need."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoint folders of tiny pipelines by name, each built once."""
    from porter.parity import checkpoint

    root, built = tmp_path_factory.mktemp("checkpoints"), {}

    def build(name: str) -> Path:
        if name not in built:
            built[name] = checkpoint.build(name, root / name)
        return built[name]

    return build


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """A command that was run in this process, and asked for less to be said, leaves no test deaf."""
    logger = logging.getLogger("porter")
    level = logger.level
    yield
    logger.setLevel(level)
