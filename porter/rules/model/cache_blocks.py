"""Tell Cache-DiT how to run a model's blocks."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst

from porter.facts.block_loops import BlockLoops, block_loops
from porter.facts.evidence import DERIVED, NOT_APPLICABLE, REFUSED, Feature, fingerprint
from porter.facts.tiers import DEEPEST, left_out
from porter.rules.build import PortedFile
from porter.rules.engine import SURFACE, Rule, code, statements, to_ast

CONFIG = "vllm_omni.diffusion.cache.cachedit.config"
NAMES = ("CacheDiTAdapterConfig", "ForwardPattern")


class CacheBlocks(Rule):
    """Declare ``_cache_dit_adapter_config`` on a model's class: how Cache-DiT may run its loops over blocks.

    The pattern of a list of blocks says which states a block takes and returns, and in which order. It is read from
    the loop; where more than the states changes from block to block, the port refuses ``cache_backend="cache_dit"``
    and says why. The engine's other caches (TeaCache, MagCache) need coefficients that were calibrated with the
    model's weights: nothing is declared for them.
    """

    name = "cache-blocks"
    safety = SURFACE
    VALID = (
        """
        class ExampleBlock(nn.Module):
            def forward(self, hidden_states, scale):
                return hidden_states * scale


        class ExampleTransformer2DModel(nn.Module):
            def __init__(self, num_layers):
                super().__init__()
                self.blocks = nn.ModuleList([ExampleBlock() for _ in range(num_layers)])

            def forward(self, hidden_states, scales):
                for index, block in enumerate(self.blocks):
                    hidden_states = block(hidden_states, scales[index])
                return hidden_states
        """,
    )
    INVALID = (
        (
            """
            class ExampleBlock(nn.Module):
                def forward(self, hidden_states, encoder_hidden_states, temb):
                    return encoder_hidden_states, hidden_states + temb


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, num_layers):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleBlock() for _ in range(num_layers)])

                def forward(self, hidden_states, encoder_hidden_states, temb):
                    for block in self.blocks:
                        encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states, temb)
                    return hidden_states
            """,
            """
            class ExampleBlock(nn.Module):
                def forward(self, hidden_states, encoder_hidden_states, temb):
                    return encoder_hidden_states, hidden_states + temb


            class ExampleTransformer2DModel(nn.Module):
                _cache_dit_adapter_config = CacheDiTAdapterConfig(
                    block_forward_patterns={"blocks": ForwardPattern.Pattern_1}
                )

                def __init__(self, num_layers):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleBlock() for _ in range(num_layers)])

                def forward(self, hidden_states, encoder_hidden_states, temb):
                    for block in self.blocks:
                        encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states, temb)
                    return hidden_states
            """,
        ),
    )

    def apply(self, definitions: list[Any], model: str) -> tuple[list[Any], BlockLoops]:
        """The definitions of a file with the declaration on the class ``model``, and what was found there."""
        classes = {node.name.value: node for node in definitions if isinstance(node, cst.ClassDef)}
        if model not in classes:
            return definitions, BlockLoops()
        found = block_loops(_tree(classes[model]), lambda name: _tree(classes[name]) if name in classes else None)
        if not found.patterns:
            return definitions, found
        return [
            _declared(node, found) if isinstance(node, cst.ClassDef) and node.name.value == model else node
            for node in definitions
        ], found


def cache_blocks(built: PortedFile, model: str, tier: str = DEEPEST) -> None:
    """Apply :class:`CacheBlocks` to a model's file, in place."""
    if tier != DEEPEST:
        built.features["cache_dit"] = Feature(REFUSED, left_out(tier))
        return
    built.nodes[:], found = CacheBlocks().apply(built.nodes, model)
    built.features["cache_dit"] = _feature(found)
    if found.patterns:
        built.imports |= imports()
        built.applied[CacheBlocks.name] = 1
        if model in built.histories:
            [node] = (n for n in built.nodes if isinstance(n, cst.ClassDef) and n.name.value == model)
            built.histories[model].record(CacheBlocks.name, code(node))


def imports() -> dict[str, tuple[str, str | None]]:
    """What the declaration needs."""
    return {name: (CONFIG, name) for name in NAMES}


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
