"""What the engine can do with repeated blocks: what a port declares, and what evidence says of it."""

from __future__ import annotations

import libcst as cst
import pytest

from porter.facts import evidence
from porter.facts.pipeline import called_apart, pipeline_facts
from porter.port import Converter
from porter.rules.model.block_features import block_features
from porter.source import SourceTree
from porter.targets import get_target

BLOCKS = """
class Base(nn.Module):
    _repeated_blocks = ["Block"]
    _layerwise_offload_blocks_attrs = ["blocks"]


class Model(Base):
    _hsdp_shard_conditions = [lambda name, module: name.startswith("blocks.")]


class Plain(nn.Module):
    pass
"""


def features(model: str, text: str = BLOCKS):
    return block_features(cst.parse_module(text).body, model)


def test_a_model_has_what_it_declares_or_inherits():
    found = features("Model")
    assert {name: feature.told for name, feature in found.items()} == dict.fromkeys(found, "derived")
    other = features("Model", BLOCKS.replace('["blocks"]', '["layers"]'))
    assert {name for name in found if found[name] != other[name]} == {"regional_compile", "layerwise_offload"}


def test_without_blocks_nothing_applies_and_without_a_declaration_it_is_refused():
    assert all(feature.state == "not applicable" for feature in features("Plain").values())
    found = features("Base")
    assert found["layerwise_offload"].state == "derived" and found["hsdp"].told.startswith("refused: its forward")


@pytest.fixture(scope="module")
def tree() -> SourceTree:
    return SourceTree(None)


def test_a_pipeline_says_what_was_found_of_its_models(tree, monkeypatch):
    converter = Converter(tree, get_target("porter"))
    monkeypatch.setattr(evidence, "_evidence", lambda kind: {})
    port = converter.port("PixArtAlphaPipeline")
    names = ("regional_compile", "layerwise_offload", "hsdp")
    assert {port.features[name] for name in names} == {"derived"}
    [model] = [built for key, (_, built) in converter._models.items() if key.endswith(".PixArtTransformer2DModel")]
    proofs = {name: {"passed": True, "fingerprint": model.features[name].fingerprint} for name in names}
    proofs["hsdp"] |= {"passed": False, "error": "RuntimeError: sizes"}
    monkeypatch.setattr(evidence, "_evidence", lambda kind: {"PixArtTransformer2DModel": proofs})
    found = converter.port("PixArtAlphaPipeline").features
    assert [found[name] for name in names] == ["verified", "verified", "refused: a trial failed: RuntimeError: sizes"]


@pytest.mark.parametrize(
    ("name", "apart"), [("KandinskyV22PriorPipeline", "prior.post_process_latents"), ("FluxPipeline", "")]
)
def test_weights_in_parts_are_not_for_methods_that_a_pipeline_calls(tree, name, apart):
    assert called_apart(pipeline_facts(tree, tree.find_pipeline(name))) == apart
