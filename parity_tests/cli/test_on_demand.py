"""``porter run`` where no port is committed: one is made, kept, and computes what diffusers does."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest

from porter import on_demand
from porter.batch import Outcome
from porter.cli import native_port

NAME = "PixArtSigmaPipeline"
REQUEST = (
    "--prompt",
    "a cat",
    "--seed",
    3,
    "--height",
    32,
    "--width",
    32,
    "--steps",
    2,
    "--device",
    "cpu",
    "--set",
    "use_resolution_binning=false",
)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PORTER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_port_is_made_once_and_computes_what_diffusers_does(porter, tiny, cache):
    first = porter("run", tiny(NAME), *REQUEST, "-o", "port.png")
    assert first.code == 0, first.err
    [told] = [line for line in first.err.splitlines() if line.startswith("porter: ")]
    assert f"{NAME}: a port from diffusers" in told and "made in" in told and str(cache) in told
    again = porter("run", tiny(NAME), *REQUEST, "-o", "again.png")
    assert again.code == 0 and "made before" in again.err
    assert porter("run", tiny(NAME), *REQUEST, "-o", "b.png", "--diffusion-load-format", "diffusers").code == 0
    ours, again, theirs = (np.asarray(PIL.Image.open(name)) for name in ("port.png", "again.png", "b.png"))
    assert np.array_equal(ours, theirs) and np.array_equal(ours, again)


def test_a_port_that_is_not_whole_is_refused_in_words(porter, tiny, monkeypatch, cache):
    residue = [{"file": "pipeline.py", "line": 7, "reason": "no rule knows this", "affects_results": True}]
    monkeypatch.setattr(on_demand, "convert_batch", lambda *_, **__: [Outcome(NAME, residue=residue)])
    result = porter("run", tiny(NAME), *REQUEST)
    assert result.code == 2 and not (cache / "ports").exists()
    [line] = result.err.splitlines()
    assert "pipeline.py:7: no rule knows this" in line and "diffusion_load_format='diffusers'" in line


def test_a_port_that_was_seen_to_differ_is_refused(porter, tiny, monkeypatch, tmp_path):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({NAME: {"verdict": "differs"}}))
    monkeypatch.setattr("porter.runtime.entrypoints.load.RESULTS", results)
    result = porter("run", tiny(NAME), *REQUEST)
    assert result.code == 2 and "'differs'" in result.err and "--diffusion-load-format diffusers" in result.err


@pytest.mark.parametrize("given", [{"models_dir": "mine"}, {"load_format": "diffusers"}, {"model": "nowhere/at/all"}])
def test_nothing_is_made_where_no_port_is_asked_for(monkeypatch, tiny, given):
    monkeypatch.setattr(on_demand, "converted", lambda *_: 1 / 0)
    arguments = {
        "model": str(tiny(NAME)), "models_dir": None, "load_format": "default", "model_class": None, "revision": None
    }  # fmt: skip
    assert native_port.ports_for(**{**arguments, **given}, quiet=True) == given.get("models_dir")
