"""Stands in for vLLM-Omni's fixtures: an engine with the tiny checkpoint that the environment names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

import porter.omni

porter.omni.start()


@pytest.fixture
def omni_runner(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The engine, with the model class that the test names."""
    from vllm_omni.entrypoints.omni import Omni

    _, options = request.param
    omni = Omni(model=os.environ["TINY_CHECKPOINT"], dtype="float32", enforce_eager=True, **options)
    yield omni
    omni.close()


@pytest.fixture
def omni_runner_handler(omni_runner: Any) -> Any:
    """Who asks it."""
    from tests.helpers.runtime import OmniRunnerHandler

    return OmniRunnerHandler(omni_runner)
