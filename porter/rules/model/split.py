"""The last step of a model's file: its modules are split over ranks."""

from __future__ import annotations

import ast
from typing import Any

from porter.facts.evidence import DERIVED, FAILED, NOT_APPLICABLE, REFUSED, Feature, fingerprint, proven
from porter.facts.parallel.sequence import stated_plan
from porter.facts.tiers import DEEPEST, left_out
from porter.rules.build import PortedFile
from porter.rules.model.merged_projections import MergeProjections
from porter.rules.model.parallel_helpers import SP_PLAN
from porter.rules.model.quantization import ThreadQuantization
from porter.rules.model.sequence_parallel import SequenceParallel, helpers, imports
from porter.rules.model.tensor_parallel import SplitFile, TensorParallel
from porter.rules.text import code
from porter.source import Definition

# The plan of sequence parallelism where diffusers states none that fits.
ATTENTION_LEVEL = "attention"
# Tiers from which on ranks share a projection, and a sequence.
TENSOR, SEQUENCE = "B", "C"
FEED_FORWARD = ("diffusers.models.attention", "FeedForward")


def split_over_ranks(built: PortedFile, model: Definition, tier: str = DEEPEST) -> None:
    """Split the modules of a file over ranks, in place, as deep as a tier goes.

    See :class:`TensorParallel` and :class:`SequenceParallel`; :mod:`porter.facts.tiers` for tiers.
    """
    for name in ("tensor_parallel", "merged_projections", "sequence_parallel"):
        built.features[name] = Feature(REFUSED, left_out(tier))
    if tier < TENSOR:
        return
    tensor, sequence = TensorParallel(), SequenceParallel()
    bound = next((name for name, place in built.imports.items() if place == FEED_FORWARD), None)
    if bound is None and _holds_feed_forward(built):
        bound = FEED_FORWARD[1]
    result = tensor.apply(built.nodes, bound)
    apart = list(result.nodes)
    merging = MergeProjections()
    merged, table = merging.apply(result)
    if table:
        result.plan["merged"] = table
    built.features["tensor_parallel"] = proven(model.name, "tensor_parallel", _feature(result))
    built.features["merged_projections"] = _merged(result, table)
    if built.features["tensor_parallel"].failed:
        # What was tried and failed is not in a port.
        built.features["merged_projections"] = Feature(REFUSED, f"{FAILED}that of tensor parallelism")
        result, apart, merged = SplitFile(list(built.nodes)), list(built.nodes), []
    record_all(built, tensor.name, apart, result.changed)
    record_all(built, merging.name, result.nodes, merged)
    built.imports |= result.imports if result.changed else {}
    threaded = ThreadQuantization()
    result.nodes, passing = threaded.apply(result.nodes) if result.changed else (result.nodes, [])
    record_all(built, threaded.name, result.nodes, passing)
    if tier < SEQUENCE:
        built.nodes[:] = _placed(result.nodes, result.helpers, bound)
        return
    plan = stated_plan(model.node) if isinstance(model.node, ast.ClassDef) else None
    nodes, divided = sequence.translate(result.nodes, model.name, plan) if plan else sequence.apply(result.nodes)
    found = Feature(DERIVED, fingerprint=fingerprint(ast.unparse(plan)) if plan else ATTENTION_LEVEL)
    found = proven(model.name, "sequence_parallel", found)
    if divided and found.failed:
        built.features["sequence_parallel"] = found
        nodes, divided = result.nodes, []
    elif plan and divided:
        built.imports |= {name: place for name, place in imports().items() if place[0] == SP_PLAN}
        built.features["sequence_parallel"] = found
    elif divided:
        result.helpers += helpers()
        built.imports |= imports()
        built.features["sequence_parallel"] = found
    else:
        built.features["sequence_parallel"] = Feature(REFUSED, "it has no attention layer of the engine")
    record_all(built, sequence.name, nodes, divided)
    built.nodes[:] = _placed(nodes, result.helpers, bound)


def record_all(built: PortedFile, rule: str, nodes: list[Any], changed: list[int]) -> None:
    """Note that a rule changed definitions, by their places, and what it made of them."""
    if changed:
        built.applied[rule] = len(set(changed))
    for place in sorted(set(changed)):
        name = getattr(getattr(nodes[place], "name", None), "value", "")
        if name in built.histories:
            built.histories[name].record(rule, code(nodes[place]))


def _feature(result: SplitFile) -> Feature:
    if result.plan:
        return Feature(DERIVED, fingerprint=fingerprint(result.plan))
    reasons = sorted({reason for plan in result.whole.values() for reason in plan.values()})
    if not result.whole:
        return Feature(NOT_APPLICABLE, "its blocks have no projections")
    return Feature(REFUSED, "no projection can be split: its output " + "; ".join(reasons[:2]))


def _merged(result: SplitFile, table: list[tuple[Any, ...]]) -> Feature:
    reasons = sorted({f"{names}: {why}" for apart in result.apart.values() for names, why in apart.items()})
    if table:
        return Feature(DERIVED, "; ".join(reasons), fingerprint(table))
    return Feature(REFUSED, "; ".join(reasons)) if reasons else Feature(NOT_APPLICABLE, "no two read the same input")


def _holds_feed_forward(built: PortedFile) -> bool:
    """Whether diffusers' own feed-forward was taken into the file."""
    return any(source.name == FEED_FORWARD[0] for source in built.sources) and any(
        getattr(getattr(node, "name", None), "value", "") == FEED_FORWARD[1] for node in built.nodes
    )


def _placed(nodes: list[Any], added: list[Any], feed_forward: str | None) -> list[Any]:
    """Helpers first; one that derives from a class of the file behind it."""
    own = next((i for i, n in enumerate(nodes) if getattr(getattr(n, "name", None), "value", "") == feed_forward), None)
    late = [h for h in added if own is not None and h.name.value == "ParallelFeedForward"]
    early = [h for h in added if h not in late]
    if own is None:
        return [*early, *nodes]
    return [*early, *nodes[: own + 1], *late, *nodes[own + 1 :]]
