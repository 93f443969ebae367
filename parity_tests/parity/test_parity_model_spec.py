"""Configurations and calls of single models as data."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from porter.model_port import find_model, is_model, model_names
from porter.parity import model_spec
from porter.parity.spec import SpecError
from porter.parity.variants import variants
from porter.source import SourceError, SourceTree


class Cache:
    """Stands for a cache that a model's file defines."""

    def __init__(self, num_layers):
        self.num_layers, self.mode = num_layers, None

    def set_mode(self, mode):
        self.mode = mode


@pytest.fixture(scope="module")
def tree():
    return SourceTree()


@pytest.mark.parametrize(
    "value",
    [
        None,
        0.5,
        "word",
        torch.tensor([[1, 2], [2, 2]]),
        torch.tensor([True, False]),
        torch.arange(400.0).reshape(200, 2),
        [torch.tensor([0.25]), (1, 2)],
        {"a": {0: torch.tensor([1.5])}},
        torch.complex(torch.tensor([1.0]), torch.tensor([2.0])),
    ],
    ids=str,
)
def test_structured_values_survive_a_round_trip(value):
    recipe = json.loads(json.dumps(model_spec.encode(value)))
    assert str(model_spec.decode(recipe)) == str(value)


def test_large_random_tensors_keep_their_shape_alone():
    recipe = model_spec.encode(torch.randn(10, 20, dtype=torch.bfloat16), seed=3)
    first, second = model_spec.decode(recipe), model_spec.decode(recipe)
    assert first.shape == (10, 20) and first.dtype == torch.bfloat16 and torch.equal(first, second)


def test_a_value_without_a_recipe_is_an_error():
    with pytest.raises(TypeError, match="object"):
        model_spec.encode(object())


def test_an_object_is_shared_by_the_calls_of_one_model_and_changed_when_its_call_comes():
    recipe = {"class": "Cache", "arguments": {"num_layers": 2}}
    calls = [
        {"cache": {"$object": {**recipe, "before": [["set_mode", "write"]]}}},
        {"cache": {"$object": {**recipe, "before": [["set_mode", "read"]]}}},
    ]
    decoded = model_spec.decode_calls(calls, sys.modules[__name__])
    first = next(decoded)["cache"]
    assert (first.num_layers, first.mode) == (2, "write")
    assert next(decoded)["cache"] is first and first.mode == "read"
    assert next(model_spec.decode_calls(calls, sys.modules[__name__]))["cache"] is not first


def test_a_missing_file_is_named():
    with pytest.raises(SpecError, match="Nothing"):
        model_spec.read("Nothing")


def test_every_stored_case_can_be_decoded():
    for name in model_spec.available():
        for case in model_spec.read(name):
            assert case.calls, name
            for call in case.calls:
                model_spec.decode({key: value for key, value in call.items() if "$object" not in str(value)})


def test_every_transformer_has_a_small_configuration(tree):
    models = [n for n in model_names(tree) if is_model(tree, n)]
    missing = set(models) - set(model_spec.available())
    assert not {n for n in missing if ".transformers." in find_model(tree, n).module.name}


def test_an_unknown_model_is_refused_with_the_nearest_names(tree):
    with pytest.raises(SourceError, match="SD3Transformer2DModel"):
        find_model(tree, "SD3Transformer2D")


def test_variants_change_one_parameter_at_a_time(tree):
    config = {"num_layers": 2, "qk_norm": None}
    found = dict(variants(tree, find_model(tree, "SD3Transformer2DModel"), config))
    assert all(len(change) == 1 for change in found.values())
    assert {"qk_norm": "rms_norm"} in found.values() and {"num_layers": 4} in found.values()
    assert not [change for change in found.values() if config.items() >= change.items()]
