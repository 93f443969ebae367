"""Tests of porter beside vLLM-Omni. Those that need the engine are collected where it is: `make omni-test`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

HAVE_ENGINE = importlib.util.find_spec("vllm_omni") is not None
# Set by `make omni-test`: an environment without the engine is a failure there, not a reason to test less.
REQUIRED = "PORTER_REQUIRE_OMNI"

if os.environ.get(REQUIRED) and not HAVE_ENGINE:
    raise RuntimeError("vllm-omni is not installed here, and these tests are for it: run `make omni-env`")

collect_ignore = [] if HAVE_ENGINE else ["engine"]


def pytest_report_header() -> str:
    """Say which tests there are."""
    return "vllm-omni: installed" if HAVE_ENGINE else "vllm-omni: not installed; its tests run with `make omni-test`"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the engine, whatever this one has."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("vllm") else found(name, *rest)
    )


@pytest.fixture
def committed() -> Path:
    """The folder of the committed ports."""
    return Path(__file__).resolve().parents[2] / "generated_models"
