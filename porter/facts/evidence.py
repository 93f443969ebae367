"""Which parallel features of models were proven, and on what: ``porter/parity/data/features.json``.

A feature counts as verified for what was derived for a class, not for its text: a fingerprint of the plan says which
projections are split and where values travel. Another plan, from another diffusers say, has to be proven anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import textwrap
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

EVIDENCE = Path(__file__).resolve().parent.parent / "parity" / "data" / "features.json"
# What the reason of a feature begins with that was tried and failed.
FAILED = "a trial failed: "
# How errors begin that say nothing about a plan: a model refuses what its tiny configuration is asked for, or the
# diffusers that the engine pins lacks a class of the pipeline, so that there is no checkpoint to try with.
NOT_TRIED = ("ValueError: ", "AttributeError: module diffusers has no attribute ")
# What a trial says of a plan with which it found nothing to do.
IDLE = "ValueError: nothing was held and used again"
VERIFIED, DERIVED, REFUSED, NOT_APPLICABLE = "verified", "derived", "refused", "not applicable"


@dataclass(frozen=True)
class Feature:
    """What was derived for a model class.

    Attributes:
        state: ``derived``, ``refused`` or ``not applicable``.
        reason: of the last two.
        fingerprint: of the plan, where there is one.
        without: parameters of the model's forward that a pipeline may not use if it wants the feature.
    """

    state: str
    reason: str = ""
    fingerprint: str = ""
    without: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it is refused for what a trial said."""
        return self.state == REFUSED and self.reason.startswith(FAILED)

    @property
    def told(self) -> str:
        """The state in words, whatever evidence there is."""
        return self.state if self.state == DERIVED else f"{self.state}: {self.reason}"


def fingerprint(plan: Any) -> str:
    """A short name for a plan made of plain values."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def _evidence(kind: str) -> dict[str, dict[str, Any]]:
    if not EVIDENCE.is_file():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(EVIDENCE.read_text("utf-8")).get(kind, {})
    return found


_untried: ContextVar[tuple[str, ...]] = ContextVar("untried", default=())


@contextlib.contextmanager
def as_if_untried(*kinds: str) -> Iterator[None]:
    """Let whoever proves features convert what was derived, also where an earlier trial failed.

    Args:
        kinds: whose features: ``models``, ``pipelines``.
    """
    token = _untried.set(kinds)
    try:
        yield
    finally:
        _untried.reset(token)


def state(owner: str, name: str, feature: Feature, kind: str = "models") -> str:
    """``verified``, ``derived``, or why not, for one feature of a class, of a model or of a pipeline (``kind``).

    A plan that was tried and failed is refused, with what went wrong.
    """
    feature = proven(owner, name, feature, kind)
    if feature.state != DERIVED:
        return feature.told
    return VERIFIED if _proof(owner, name, feature, kind).get("passed") else DERIVED


def proven(owner: str, name: str, feature: Feature, kind: str = "models") -> Feature:
    """The feature; refused, if its plan was tried and failed, and not applicable, if there was nothing to do."""
    if feature.state != DERIVED:
        return feature
    if _trial(owner, name, feature, kind).get("error") == IDLE:
        return Feature(NOT_APPLICABLE, "a trial had nothing to hold", feature.fingerprint, feature.without)
    reason = disproof(owner, name, feature, kind)
    told = f"{FAILED}{textwrap.shorten(reason, 80, placeholder=' ...')}"
    return Feature(REFUSED, told, feature.fingerprint, feature.without) if reason else feature


def disproof(owner: str, name: str, feature: Feature, kind: str = "models") -> str:
    """What went wrong when the plan of a feature was tried; empty if nothing did, or if nobody tried.

    A ValueError is how a model refuses what it is asked for: its tiny configuration cannot be divided, say, or it does
    not stand alone. That says nothing about the plan.
    """
    proof = _trial(owner, name, feature, kind)
    if not proof or proof.get("passed"):
        return ""
    error = str(proof.get("error") or "it gave other results").rstrip(".")
    return "" if error.startswith(NOT_TRIED) else error


def _proof(owner: str, name: str, feature: Feature, kind: str) -> dict[str, Any]:
    """What a trial of this very plan noted; nothing if there was none."""
    proof: dict[str, Any] = _evidence(kind).get(owner, {}).get(name, {})
    return proof if proof.get("fingerprint") == feature.fingerprint else {}


def _trial(owner: str, name: str, feature: Feature, kind: str) -> dict[str, Any]:
    """As :func:`_proof`; nothing for whoever tries again."""
    return {} if kind in _untried.get() else _proof(owner, name, feature, kind)


def tier(features: dict[str, str]) -> str:
    """The deepest tier of which something was verified for a port: A to D, as in the guide to tiers.

    Args:
        features: of the port, by name.
    """
    deeper = {"B": ("tensor_parallel",), "C": ("sequence_parallel",), "D": ("cfg_parallel", "step_execution")}
    reached = [letter for letter, names in deeper.items() if any(features.get(name) == VERIFIED for name in names)]
    return max(["A", *reached])


def together(states: dict[str, str], may_stay_whole: bool) -> str:
    """The state of a pipeline, from those of its models.

    Args:
        states: by model class.
        may_stay_whole: a model that is the same on every rank keeps no other from being split.
    """
    refused = [found for found in states.values() if not found.startswith((VERIFIED, DERIVED))]
    left = [found for found in states.values() if found.startswith((VERIFIED, DERIVED))]
    failed = [found for found in refused if found.startswith(f"{REFUSED}: {FAILED}")]
    if not states:
        return f"{NOT_APPLICABLE}: no model of it is converted"
    if failed or not left or (refused and not may_stay_whole):
        return (failed or refused)[0]
    return VERIFIED if set(left) == {VERIFIED} else DERIVED
