"""Guidance on several ranks: what each computes, and that all then hold what one would have computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from porter.runtime.diffusion.distributed.cfg_parallel import CFGParallelMixin


class Pipeline(CFGParallelMixin):
    """Predicts what it is given, in the form that it is told, and counts."""

    def __init__(self, ranks: int, form: Any = lambda **kwargs: kwargs["x"]) -> None:
        self.od_config = SimpleNamespace(parallel_config=SimpleNamespace(cfg_parallel_size=ranks))
        self.form, self.seen = form, []

    def predict_noise(self, **kwargs: Any) -> Any:
        self.seen.append(kwargs)
        return self.form(**kwargs)

    def combine_cfg_noise(self, positive_noise_pred: Any, negative_noise_pred: Any, *args: Any, **kwargs: Any) -> Any:
        return positive_noise_pred, negative_noise_pred


def halves(stepwise: Any, along: dict[str, int | None] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
    """The arguments of both branches."""
    pipeline = Pipeline(2)
    stepwise.predict_halves(pipeline, True, along, **kwargs)
    return pipeline.seen


def test_a_batch_is_divided_by_its_rows(stepwise):
    x, table = torch.arange(8.0).view(4, 2), torch.ones(4, 2)
    first, second = halves(stepwise, x=x, texts=["a", "b", "c", "d"], tables=(torch.arange(4), table[:2]), number=4)
    assert torch.equal(first["x"], x[:2]) and torch.equal(second["x"], x[2:])
    assert (first["texts"], second["texts"]) == (["a", "b"], ["c", "d"])
    assert first["tables"][0].tolist() == [0, 1] and len(first["tables"][1]) == 2 and first["number"] == 4


def test_what_both_share_stays_whole_however_long_it_is(stepwise):
    x, features = torch.zeros(2, 1), [torch.zeros(1), torch.ones(1)]
    for branch in halves(stepwise, {"features": None}, features=features, x=x):
        assert branch["features"] is features and len(branch["x"]) == 1


def test_a_cache_is_divided_where_its_rows_are(stepwise):
    cache = {0: {"keys": torch.arange(8).view(2, 4, 1), "length": 3}}
    first, second = halves(stepwise, {"cache": 1}, x=torch.zeros(4, 1), cache=cache)
    assert torch.equal(first["cache"][0]["keys"], cache[0]["keys"][:, :2]) and second["cache"][0]["length"] == 3


def test_predictions_of_any_parts_come_back_in_their_form(stepwise):
    def form(x: torch.Tensor) -> Any:
        return [x, x + 1], None, (x * 2,)

    pipeline = Pipeline(2, form)
    found = stepwise.predict_branches(pipeline, True, {"x": torch.ones(1)}, {"x": torch.zeros(1)})
    for (pictures, sound, rest), value in zip(found, (1.0, 0.0), strict=True):
        assert [t.item() for t in pictures] == [value, value + 1] and sound is None and rest[0].item() == 2 * value


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_tuple_of_one_stays_a_tuple(stepwise, ranks):
    whole = torch.arange(4.0).view(4, 1)
    found = stepwise.predict_halves(Pipeline(ranks, lambda x: (x,)), True, x=whole)
    assert isinstance(found, tuple) and torch.equal(found[0], whole)


def test_what_ranks_cannot_exchange_is_refused(stepwise):
    with pytest.raises(TypeError, match="holds a dict, which ranks cannot exchange"):
        stepwise.predict_branches(Pipeline(2, lambda x: {"sample": x}), True, {"x": 1}, {"x": 2})


@pytest.mark.parametrize(
    ("branches", "ranks", "calls"),
    [(1, 1, [1]), (3, 1, [3]), (1, 2, [1, 1]), (2, 2, [1, 1]), (3, 2, [2, 1]), (5, 3, [2, 2, 1]), (2, 3, [1, 1, 1])],
)
def test_branches_of_a_loop_are_shared(stepwise, monkeypatch, branches, ranks, calls):
    sent: dict[int, list[torch.Tensor]] = {}

    def run(rank: int) -> list[Any]:
        """One rank: with what the others sent, if they ran before."""
        pipeline, states = Pipeline(ranks), [SimpleNamespace(noise=None) for _ in range(branches)]
        turns: list[torch.Tensor] = []

        def all_gather(tensor: torch.Tensor, separate_tensors: bool) -> list[torch.Tensor]:
            turns.append(tensor)
            return [sent[r][len(turns) - 1] if r in sent else tensor for r in range(ranks)]

        monkeypatch.setattr(stepwise, "get_classifier_free_guidance_rank", lambda: rank)
        monkeypatch.setattr(stepwise, "get_cfg_group", lambda: SimpleNamespace(all_gather=all_gather))
        for number, state in enumerate(states):
            state.noise = stepwise.predict_own(pipeline, states, state, x=torch.tensor(float(number)))
        stepwise.exchange_predictions(pipeline, states, "noise")
        assert len(pipeline.seen) == calls[rank]
        sent[rank] = turns
        return [state.noise.item() for state in states]

    for rank in range(ranks):
        run(rank)
    assert [run(rank) for rank in range(ranks)] == [list(range(branches))] * ranks
