"""The last step of a model's file: its modules are split over ranks."""

from __future__ import annotations

from porter.rules.build import PortedFile
from porter.rules.model.tensor_parallel import TensorParallel
from porter.rules.trees import code

FEED_FORWARD = ("diffusers.models.attention", "FeedForward")


def split_over_ranks(built: PortedFile) -> None:
    """Split the modules of a file over ranks, in place; see :class:`TensorParallel`."""
    rule = TensorParallel()
    bound = next((name for name, place in built.imports.items() if place == FEED_FORWARD), None)
    if bound is None and _holds_feed_forward(built):
        bound = FEED_FORWARD[1]
    result = rule.apply(built.nodes, bound)
    if not result.changed:
        return
    built.imports |= result.imports
    built.applied[rule.name] = len(set(result.changed))
    for place in sorted(set(result.changed)):
        name = getattr(getattr(result.nodes[place], "name", None), "value", "")
        if name in built.histories:
            built.histories[name].record(rule.name, code(result.nodes[place]))
    built.nodes[:] = _placed(result.nodes, result.helpers, bound)


def _holds_feed_forward(built: PortedFile) -> bool:
    """Whether diffusers' own feed-forward was taken into the file."""
    return any(source.name == FEED_FORWARD[0] for source in built.sources) and any(
        getattr(getattr(node, "name", None), "value", "") == FEED_FORWARD[1] for node in built.nodes
    )


def _placed(nodes: list[object], helpers: list[object], feed_forward: str | None) -> list[object]:
    """Helpers first; one that derives from a class of the file behind it."""
    own = next((i for i, n in enumerate(nodes) if getattr(getattr(n, "name", None), "value", "") == feed_forward), None)
    late = [h for h in helpers if own is not None and h.name.value == "ParallelFeedForward"]  # type: ignore[attr-defined]
    early = [h for h in helpers if h not in late]
    if own is None:
        return [*early, *nodes]
    return [*early, *nodes[: own + 1], *late, *nodes[own + 1 :]]
