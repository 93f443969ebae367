"""Arguments of several calls as those of one, and back."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from porter.serve import rows


def test_what_has_an_entry_a_sample_is_put_together():
    calls = [
        {"x": torch.full((2, 3), float(n)), "ids": torch.arange(5), "sizes": [(1, 2), (1, 2)], "t": [0.5], "none": None}
        for n in range(3)
    ]
    merged = rows.merge(calls, 2)
    assert merged["x"].shape == (6, 3) and merged["ids"].shape == (5,) and merged["none"] is None
    assert merged["sizes"] == [(1, 2)] * 6 and merged["t"] == [0.5]


@pytest.mark.parametrize(
    "values",
    [
        (torch.zeros(5), torch.ones(5)),
        (torch.zeros(()), torch.ones(())),
        (1.0, 2.0),
        (SimpleNamespace(), object()),
        ([torch.zeros(3)], [torch.ones(3)]),
    ],
)
def test_what_differs_besides_is_refused(values):
    with pytest.raises(rows.Unmergeable):
        rows.merge(values, 2)


def test_outputs_are_divided():
    output = torch.arange(6).view(6, 1)
    assert [part.flatten().tolist() for part in rows.split(output, 3, 2)] == [[0, 1], [2, 3], [4, 5]]
    assert [part[0].flatten().tolist() for part in rows.split((output, None), 3, 2)] == [[0, 1], [2, 3], [4, 5]]
    assert [part["sample"].shape for part in rows.split(OrderedDict(sample=output), 2, 3)] == [(3, 1), (3, 1)]
    assert rows.split(list(output), 3, 2)[1] == [output[2], output[3]]
    assert (rows.samples_of(output), rows.samples_of((output,)), rows.samples_of([output] * 2)) == (6, 6, 2)
    for wrong in (output[:5], torch.zeros(()), "x"):
        with pytest.raises(rows.Unmergeable):
            rows.split(wrong, 3, 2)


def test_what_looks_alike_may_be_put_together():
    a = {"x": torch.zeros(2, 3), "scale": 1.0}
    assert rows.structure(a) == rows.structure({"x": torch.ones(2, 3), "scale": 1.0})
    for other in (
        {"x": torch.zeros(2, 4), "scale": 1.0},
        {"x": torch.zeros(2, 3).double(), "scale": 1.0},
        {"x": torch.zeros(2, 3), "scale": 2.0},
        {"x": torch.zeros(2, 3), "scale": True},
        {"x": None, "scale": 1.0},
    ):
        assert rows.structure(a) != rows.structure(other)


def test_differences_are_relative_to_what_was_expected():
    expected = (torch.tensor([100.0, -200.0]), [torch.zeros(0)])
    assert rows.difference((torch.tensor([101.0, -200.0]), [torch.zeros(0)]), expected) == pytest.approx(0.005)
    assert rows.difference(torch.zeros(3), torch.zeros(4)) == float("inf")
