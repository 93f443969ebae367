"""What the engine can do with a model's repeated blocks, as its port's class says (:class:`LayerwiseBlocks`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import libcst as cst

from porter.facts.evidence import DERIVED, NOT_APPLICABLE, REFUSED, Feature, fingerprint
from porter.rules.engine import bare
from porter.rules.fold import dotted, only

CLASSES, LISTS, CONDITIONS = "_repeated_blocks", "_layerwise_offload_blocks_attrs", "_hsdp_shard_conditions"
# What the engine reads for each feature: it does nothing without the first, and looks at the others as well.
READ = {"regional_compile": (CLASSES, LISTS), "layerwise_offload": (LISTS,), "hsdp": (CONDITIONS,)}


def block_features(nodes: Iterable[Any], model: str) -> dict[str, Feature]:
    """Regional compilation, layer-wise offload and HSDP of a model, by name; a proof counts for what is declared.

    Args:
        nodes: definitions of the model's file.
        model: name of its class.
    """
    classes = {node.name.value: node for node in nodes if isinstance(node, cst.ClassDef)}
    declared = _declared(classes, model)
    missing = {
        "hsdp": Feature(REFUSED, "its forward calls layers of its blocks by themselves"),
        "layerwise_offload": Feature(REFUSED, "settings may leave out its blocks"),
    }
    if CLASSES not in declared:
        missing = dict.fromkeys(READ, Feature(NOT_APPLICABLE, "its constructor makes no list of blocks"))
    return {
        name: Feature(DERIVED, fingerprint=fingerprint([declared.get(part, "") for part in parts]))
        if parts[0] in declared
        else missing[name]
        for name, parts in READ.items()
    }


def _declared(classes: Mapping[str, cst.ClassDef], name: str) -> dict[str, str]:
    """What a class says of its blocks, or inherits from another of its file, by attribute."""
    if name not in classes:
        return {}
    found: dict[str, str] = {}
    for base in reversed(classes[name].bases):
        found |= _declared(classes, dotted(base.value) or "")
    for item in classes[name].body.body:
        assign = only(item)
        attribute = dotted(assign.targets[0].target) if isinstance(assign, cst.Assign) else None
        if attribute in (CLASSES, LISTS, CONDITIONS):
            found[attribute] = "".join(bare(item).split())
    return found
