"""When a pipeline may run on several ranks: what was proven, and for which plan."""

from __future__ import annotations

import ast
import os
from types import SimpleNamespace
from typing import Any

import pytest

from porter.emit.templates import fill
from porter.facts import evidence
from porter.facts.evidence import Feature, state, together
from porter.model_port import build_model, find_model
from porter.source import SourceTree
from porter.targets import get_target


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "A": {"tensor_parallel": {"passed": True, "fingerprint": "1"}},
        "B": {"tensor_parallel": {"passed": False}},
    }
    monkeypatch.setattr(evidence, "_evidence", lambda kind: found)


def test_a_proof_holds_for_the_plan_it_was_made_with(proven):
    assert state("A", "tensor_parallel", Feature("derived", fingerprint="1")) == "verified"
    assert state("A", "tensor_parallel", Feature("derived", fingerprint="2")) == "derived"
    assert state("B", "tensor_parallel", Feature("derived", fingerprint="1")) == "derived"
    assert state("A", "tensor_parallel", Feature("refused", "no heads")) == "refused: no heads"


def test_a_pipeline_is_as_proven_as_its_models():
    assert together({"A": "verified", "B": "verified"}, True) == "verified"
    assert together({"A": "verified", "B": "derived"}, True) == "derived"
    assert together({"A": "verified", "B": "refused: nothing"}, True) == "verified"
    assert together({"A": "verified", "B": "refused: nothing"}, False) == "refused: nothing"
    assert together({"B": "refused: nothing"}, True) == "refused: nothing"
    assert together({}, True).startswith("not applicable")


def refuse(states: dict[str, str] | None, **sizes: int) -> None:
    """The port's own check, as it is written into the support file of a family."""
    tree = ast.parse(fill("support.py.j2"))
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "refuse_parallelism")
    names: dict[str, Any] = {"os": os, "OmniDiffusionConfig": object}
    exec(compile(ast.Module([function], []), "support", "exec"), names)
    names["refuse_parallelism"](SimpleNamespace(parallel_config=SimpleNamespace(**sizes)), "XPipeline", states)


def test_what_was_verified_runs_and_what_was_not_says_how(monkeypatch):
    monkeypatch.delenv("PORTER_UNVERIFIED", raising=False)
    refuse(None, tensor_parallel_size=1)
    refuse({"tensor_parallel_size": "verified"}, tensor_parallel_size=2)
    with pytest.raises(ValueError, match="PORTER_UNVERIFIED=1"):
        refuse({"tensor_parallel_size": "derived"}, tensor_parallel_size=2)
    with pytest.raises(ValueError, match="no heads"):
        refuse({"tensor_parallel_size": "refused: no heads"}, tensor_parallel_size=2)
    with pytest.raises(ValueError, match="sequence_parallel_size=2"):
        refuse({"tensor_parallel_size": "verified"}, tensor_parallel_size=2, sequence_parallel_size=2)
    monkeypatch.setenv("PORTER_UNVERIFIED", "1")
    refuse({"tensor_parallel_size": "derived"}, tensor_parallel_size=2)
    with pytest.raises(ValueError, match="no heads"):
        refuse({"tensor_parallel_size": "refused: no heads"}, tensor_parallel_size=2)


def test_a_plan_that_failed_says_what_went_wrong(monkeypatch):
    found = {"A": {"request_batch": {"passed": False, "fingerprint": "1", "error": "no batches"}}}
    monkeypatch.setattr(evidence, "_evidence", lambda kind: found)
    assert evidence.disproof("A", "request_batch", Feature("derived", fingerprint="1"), "pipelines") == "no batches"
    assert evidence.disproof("A", "request_batch", Feature("derived", fingerprint="2"), "pipelines") == ""
    assert evidence.disproof("B", "request_batch", Feature("derived", fingerprint="1"), "pipelines") == ""
    told = state("A", "request_batch", Feature("derived", fingerprint="1"), "pipelines")
    assert told == "refused: a trial failed: no batches"
    with evidence.as_if_untried("pipelines"):  # whoever tries again
        assert state("A", "request_batch", Feature("derived", fingerprint="1"), "pipelines") == "derived"
    with evidence.as_if_untried("models"):
        assert state("A", "request_batch", Feature("derived", fingerprint="1"), "pipelines") == told


def test_a_plan_with_which_a_trial_found_nothing_to_do_is_not_applicable(monkeypatch):
    found = {"A": {"hoisting": {"passed": False, "fingerprint": "1", "error": evidence.IDLE}}}
    monkeypatch.setattr(evidence, "_evidence", lambda kind: found)
    told = state("A", "hoisting", Feature("derived", fingerprint="1"), "pipelines")
    assert told == "not applicable: a trial had nothing to hold"
    assert state("A", "hoisting", Feature("derived", fingerprint="2"), "pipelines") == "derived"


@pytest.mark.parametrize(
    "error",
    [
        "ValueError: heads = 3 cannot be divided by tensor_parallel_size = 2.",
        "AttributeError: module diffusers has no attribute NewTransformer2DModel",
    ],
)
def test_a_trial_that_could_not_be_made_refutes_nothing(monkeypatch, error):
    found = {"A": {"tensor_parallel": {"passed": False, "fingerprint": "1", "error": error}}}
    monkeypatch.setattr(evidence, "_evidence", lambda kind: found)
    assert state("A", "tensor_parallel", Feature("derived", fingerprint="1")) == "derived"


def test_a_model_that_failed_on_ranks_is_not_taken_for_one_that_stays_whole():
    failed = "refused: a trial failed: RuntimeError: sizes"
    assert together({"A": "verified", "B": failed}, True) == failed


def test_what_failed_on_ranks_is_not_in_a_port(monkeypatch):
    tree, target = SourceTree(None), get_target("vllm-omni")
    model = find_model(tree, "PixArtTransformer2DModel")
    monkeypatch.setattr(evidence, "_evidence", lambda kind: {})
    text, built = build_model(tree, target, model)
    plans = {name: built.features[name].fingerprint for name in ("tensor_parallel", "sequence_parallel")}
    assert "RowParallelLinear(" in text and "rank_share(" in text
    failed = {name: {"passed": False, "fingerprint": plan, "error": "sizes."} for name, plan in plans.items()}
    monkeypatch.setattr(evidence, "_evidence", lambda kind: {model.name: failed})
    text, built = build_model(tree, target, model)
    assert "ParallelLinear" not in text and "sequence_parallel" not in text
    assert built.features["tensor_parallel"].told == "refused: a trial failed: sizes"
    assert built.features["merged_projections"].told == "refused: a trial failed: that of tensor parallelism"
    assert built.features["sequence_parallel"].told == "refused: a trial failed: sizes"
