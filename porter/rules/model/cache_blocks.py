"""Tell Cache-DiT how to run a model's blocks."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst

from porter.facts.block_loops import BlockLoops, block_loops
from porter.facts.evidence import DERIVED, NOT_APPLICABLE, REFUSED, Feature, fingerprint
from porter.facts.tiers import DEEPEST, left_out
from porter.rules.build import PortedFile
from porter.rules.engine import code, statements, to_ast
from porter.rules.fold import Facts, fold_function

NAME = "cache-blocks"
CONFIG = "vllm_omni.diffusion.cache.cachedit.config"
NAMES = ("CacheDiTAdapterConfig", "ForwardPattern")


def cache_blocks(built: PortedFile, model: str, tier: str = DEEPEST) -> None:
    """Declare ``_cache_dit_adapter_config`` on a model's class, in place, where a cache can run its loops.

    The pattern of a list of blocks says which states a block takes and returns, and in which order
    (:mod:`porter.facts.block_loops`). The engine's other caches (TeaCache, MagCache …) need coefficients that were
    calibrated with the model's weights; nothing is declared for them.
    """
    classes = {node.name.value: node for node in built.nodes if isinstance(node, cst.ClassDef)}
    if model not in classes or tier != DEEPEST:
        built.features["cache_dit"] = Feature(REFUSED, left_out(tier) if model in classes else "it is no class")
        return
    trees = {name: _tree(node) for name, node in classes.items()}
    found = block_loops(trees[model], trees, _folded)
    built.features["cache_dit"] = _feature(found)
    if not found.patterns:
        return
    place = built.nodes.index(classes[model])
    built.nodes[place] = _declared(classes[model], found)
    built.imports |= {name: (CONFIG, name) for name in NAMES}
    built.applied[NAME] = 1
    if model in built.histories:
        built.histories[model].record(NAME, code(built.nodes[place]))


def _feature(found: BlockLoops) -> Feature:
    if found.patterns:
        return Feature(DERIVED, fingerprint=fingerprint([found.patterns, found.absent]), without=tuple(found.absent))
    if found.reasons:
        return Feature(REFUSED, "; ".join(f"{name}: {reason}" for name, reason in sorted(found.reasons.items())))
    return Feature(NOT_APPLICABLE, "its forward has no loop over blocks")


def _declared(node: cst.ClassDef, found: BlockLoops) -> cst.ClassDef:
    patterns = ", ".join(f'"{name}": ForwardPattern.Pattern_{number}' for name, number in found.patterns.items())
    checked = "" if found.named else ", check_forward_pattern=False"
    added = statements(
        f"_cache_dit_adapter_config = CacheDiTAdapterConfig(block_forward_patterns={{{patterns}}}{checked})\n"
    )
    body = list(node.body.body)
    at = next((i for i, item in enumerate(body) if isinstance(item, cst.FunctionDef)), len(body))
    body[at:at] = added
    return node.with_changes(body=node.body.with_changes(body=body))


def _tree(node: cst.ClassDef) -> ast.ClassDef:
    [tree] = to_ast(node).body
    assert isinstance(tree, ast.ClassDef)
    return tree


def _folded(function: ast.FunctionDef, absent: list[str]) -> ast.FunctionDef:
    """A function without what it does only if these parameters are given."""
    node: Any = cst.parse_statement(ast.unparse(function))
    [tree] = ast.parse(code(fold_function(node, Facts(dict.fromkeys(absent))))).body
    assert isinstance(tree, ast.FunctionDef)
    return tree
