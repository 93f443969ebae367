"""Toy models with and without step execution, and engines that run them."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from step_model import MODELS_DIR, write_checkpoint


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory):
    """Checkpoint folders of the toys by pipeline class."""
    root = tmp_path_factory.mktemp("toys")
    return lambda name: write_checkpoint(root / name, pipeline=name)


@pytest.fixture(scope="session")
def toy(toy_checkpoint):
    """A loaded toy."""
    from porter.runtime import Omni

    return lambda name="ToyPipeline", **more: Omni(
        model=toy_checkpoint(name), models_dir=MODELS_DIR, device="cpu", dtype="float32", **more
    )


@pytest.fixture(scope="session")
def start():
    """Starts servers, and stops them in the end."""
    from serving import Running

    running = []

    def begin(omni, **settings):
        running.append(Running(omni, **settings))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def server(toy, start):
    """A server of the toy that takes steps together."""
    return start(toy("ToyPipeline"))
