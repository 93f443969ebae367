"""What a request holds for its steps: handed out again only for the very values that it was computed from."""

import importlib.util
import sys
import threading

import pytest
import torch
from torch import nn

from porter.emit.templates import fill


@pytest.fixture(scope="module")
def invariants(tmp_path_factory):
    file = tmp_path_factory.mktemp("family") / "invariants.py"
    file.write_text(fill("invariants.py.j2"))
    spec = importlib.util.spec_from_file_location("family_invariants", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Counted(nn.Module):
    """A projection that counts its calls."""

    def __init__(self, change=lambda x: x):
        super().__init__()
        self.linear, self.change, self.calls = nn.Linear(4, 4), change, 0

    def forward(self, x):
        self.calls += 1
        return self.change(self.linear(x))


def request(invariants, limit=2**20, **constants):
    held = invariants.Invariants(limit)
    return held, held.know(constants)


def call(invariants, held, function, *args, **kwargs):
    with torch.no_grad(), invariants.holding(held):
        return invariants.once(function, *args, **kwargs)


def test_a_result_is_computed_once_for_the_same_tensor_and_its_views(invariants):
    model, text = Counted(), torch.randn(2, 3, 4)
    held, _ = request(invariants, text=text)
    results = [call(invariants, held, model, text.chunk(2)[half]) for half in (0, 1, 0, 1)]
    assert model.calls == 2 and held.hits == 2 and held.results == 2
    assert torch.equal(results[0], model(text[:1])) and torch.equal(results[3], model(text[1:]))
    assert results[0] is results[2] and not torch.equal(results[0], results[1])
    assert held.nbytes == 2 * 3 * 4 * 4


def test_results_of_results_are_held_and_varying_values_never(invariants):
    first, second, text = Counted(), Counted(), torch.randn(3, 4)
    held, _ = request(invariants, text=text)
    for _ in range(3):
        call(invariants, held, second, call(invariants, held, first, text).unsqueeze(0))
        call(invariants, held, first, text * 2)
    assert (first.calls, second.calls) == (4, 1)
    assert held.results == 2


def test_modules_dtypes_and_numbers_are_told_apart(invariants):
    one, other, text = Counted(), Counted(), torch.randn(3, 4)
    held, _ = request(invariants, text=text)
    assert not torch.equal(call(invariants, held, one, text), call(invariants, held, other, text))
    scaled = [call(invariants, held, torch.mul, text, factor) for factor in (1, True, 1.0, 0.0, -0.0)]
    assert [torch.signbit(x).sum().item() for x in scaled[3:]] == [(text < 0).sum().item(), (text > 0).sum().item()]
    assert call(invariants, held, text.to, dtype=torch.float64).dtype == torch.float64
    assert call(invariants, held, text.to, dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
def test_what_was_written_to_is_computed_anew(invariants, inference):
    with torch.inference_mode(inference):
        model, text = Counted(), torch.randn(3, 4)
        held, known = request(invariants, text=text, rows=text[:2])
        text, rows = known["text"], known["rows"]
        before = call(invariants, held, model, text).clone()
        rows[0] += 1  # a view of what the model is given
        after = call(invariants, held, model, text)
        assert model.calls == 2 and not torch.equal(before, after) and torch.equal(after, model(text))
        after.mul_(2)  # a result that is written to is not handed out again
        assert torch.equal(call(invariants, held, model, text), model(text))
        assert held.stale == 1


def test_inference_tensors_keep_their_geometry(invariants):
    with torch.inference_mode():
        base = torch.randn(4, 6, dtype=torch.bfloat16)
        values = {"a": base.t()[1:3], "b": [base, "text"], "c": base[:1].expand(5, 6)}
        held, known = request(invariants, **values)
    for mine, its in ((known["a"], values["a"]), (known["b"][0], base), (known["c"], values["c"])):
        assert torch.equal(mine, its) and mine.stride() == its.stride() and mine.dtype == its.dtype
        assert mine.storage_offset() == its.storage_offset() and not mine.is_inference()
    assert known["a"].untyped_storage().data_ptr() == known["c"].untyped_storage().data_ptr()
    assert held.nbytes == 0


def test_what_shares_memory_with_what_steps_change_is_not_known(invariants):
    model, latents = Counted(), torch.randn(2, 4)
    held = invariants.Invariants(2**20)
    held.know({"first": latents[:1]}, [latents])
    for _ in range(2):
        call(invariants, held, model, latents[:1])
    assert model.calls == 2 and held.results == 0


def test_a_watched_module_runs_each_time(invariants):
    model, text, seen = nn.Sequential(Counted()), torch.randn(3, 4), []
    model[0].linear.register_forward_hook(lambda *_: seen.append(1))
    held, _ = request(invariants, text=text)
    for _ in range(2):
        call(invariants, held, model, text)
    assert len(seen) == 2 and held.results == 0
    replaced = Counted()
    replaced.forward = lambda x: x + 1  # as the engine's hooks do
    for _ in range(2):
        call(invariants, held, replaced, text)
    assert held.results == 0


def test_a_module_s_own_memory_is_not_held(invariants):
    model, text = Counted(), torch.randn(3, 4)
    model.change = lambda x: model.linear.weight[:1]
    held, _ = request(invariants, text=text)
    call(invariants, held, model, text)
    assert held.results == 0 and held.nbytes == 0


def test_lists_are_handed_out_apart(invariants):
    text = torch.randn(3, 4)
    held, _ = request(invariants, text=text)
    split = lambda x: [x * 1, x * 2]  # noqa: E731
    call(invariants, held, split, text).append("mine")
    again = call(invariants, held, split, text)
    assert held.hits == 1 and len(again) == 2


def test_the_limit_is_kept(invariants):
    models, text = [Counted() for _ in range(3)], torch.randn(4, 4)
    held, _ = request(invariants, limit=2 * 64, text=text)
    for model in models * 2:
        call(invariants, held, model, text)
    assert held.nbytes == 128 and [model.calls for model in models] == [1, 1, 2]


def test_requests_that_take_turns_hold_their_own(invariants):
    model = Counted()
    texts = [torch.randn(3, 4) for _ in range(2)]
    requests = [request(invariants, text=text)[0] for text in texts]
    for _ in range(2):
        for held, text, other in zip(requests, texts, reversed(texts)):
            assert torch.equal(call(invariants, held, model, text), model.linear(text))
            call(invariants, held, model, other)  # not its own: computed, not held
    assert [held.results for held in requests] == [1, 1]


def test_nothing_is_held_outside_of_a_step_or_in_another_thread(invariants):
    model, text = Counted(), torch.randn(3, 4)
    held, _ = request(invariants, text=text)
    invariants.once(model, text)
    with invariants.holding(held):
        thread = threading.Thread(target=lambda: invariants.once(model, text))
        thread.start()
        thread.join()
    with invariants.holding(None):
        invariants.once(model, text)
    assert model.calls == 3 and held.results == 0


def test_a_block_that_asks_compiles_into_one_graph(invariants):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, text):
            return x + invariants.once(self.linear, text)

    block, x, text = Block(), torch.randn(3, 4), torch.randn(3, 4)
    held, _ = request(invariants, text=text)
    with torch.no_grad(), invariants.holding(held):
        result = torch.compile(block, fullgraph=True, backend="eager")(x, text)
        assert torch.equal(result, block(x, text))
    torch._dynamo.reset()
    assert held.results == 1  # of the plain call


def test_a_module_that_is_compiled_is_held_like_any_other(invariants):
    model, text = Counted(), torch.randn(3, 4)
    model.forward = torch.compile(model.forward, backend="eager")  # as the engine's regional compilation does
    other = Counted()
    other.compile(backend="eager")  # as that of diffusers does
    held, _ = request(invariants, text=text)
    results = [call(invariants, held, module, text) for module in (model, model, other, other)]
    torch._dynamo.reset()
    assert results[0] is results[1] and results[2] is results[3] and held.results == 2
    assert torch.equal(results[0], model.linear(text))


def test_what_ends_a_graph_is_held_in_compiled_code_too(invariants):
    calls = []

    def table(mask):
        calls.append(1)
        return torch.arange(int(mask.sum().item()))

    def forward(x, mask):
        return x * 2 + invariants.once_apart(table, mask) * 3

    x, mask = torch.randn(3), torch.ones(3)
    held, _ = request(invariants, mask=mask)
    with torch.no_grad(), invariants.holding(held):
        compiled = torch.compile(forward, backend="eager")
        torch._dynamo.utils.counters.clear()
        results = [compiled(x, mask) for _ in range(3)]
        breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    torch._dynamo.reset()
    assert len(calls) == 1 and held.results == 1 and breaks == 1
    assert all(torch.equal(result, forward(x, mask)) for result in results)


def test_the_objects_of_the_step_before_are_known_until_something_happens_to_them(invariants):
    model, text = Counted(), torch.randn(4, 4)
    held, _ = request(invariants, text=text)
    for _ in range(3):
        call(invariants, held, model, text)
    assert (model.calls, held.hits) == (1, 2)
    text.add_(1)
    assert torch.equal(call(invariants, held, model, text), model.linear(text)) and model.calls == 2
    for changed in (text.detach().t(), torch.randn(4, 4)):
        text.data = changed
        assert torch.equal(call(invariants, held, model, text), model.linear(changed))


def test_views_made_anew_in_each_step_leave_nothing_behind(invariants):
    model, text = Counted(), torch.randn(2, 3, 4)
    held, _ = request(invariants, text=text)
    for _ in range(10):
        call(invariants, held, model, text[:1])
    assert model.calls == 1 and len(held._shortcuts) == 1


def test_a_weight_may_be_handed_on(invariants):
    token, text = nn.Parameter(torch.randn(4)), torch.randn(3, 4)
    held, _ = request(invariants, text=text)
    results = [call(invariants, held, torch.add, text, token) for _ in range(2)]
    assert results[0] is results[1] and torch.equal(results[0], text + token)
    with torch.no_grad():
        token.add_(1)
    assert torch.equal(call(invariants, held, torch.add, text, token), text + token)


def test_a_view_of_a_weight_may_be_handed_on(invariants):
    token, text = nn.Parameter(torch.randn(8)), torch.randn(3, 4)
    held, _ = request(invariants, text=text)
    for half in (slice(0, 4), slice(4, 8)):
        with torch.no_grad():
            results = [call(invariants, held, torch.add, text, token[half].view(1, -1)) for _ in range(2)]
        assert results[0] is results[1] and torch.equal(results[0], text + token[half])
    with torch.no_grad():
        token.add_(1)
        assert torch.equal(call(invariants, held, torch.add, text, token[4:].view(1, -1)), text + token[4:])


def test_a_weight_that_is_offloaded_and_fetched_is_the_same_one_wherever_it_lies(invariants):
    first, second = (nn.Parameter(torch.randn(4)) for _ in range(2))
    text, changing = torch.randn(4), torch.zeros(4)
    held, _ = request(invariants, text=text)
    hosts = {id(weight): weight.detach().clone() for weight in (first, second)}

    def step(weight):
        weight.data = hosts[id(weight)].clone()
        result = call(invariants, held, torch.add, text, weight).clone()
        weight.data = torch.empty(0)
        return result

    for _ in range(3):
        for weight in (first, second):
            assert torch.equal(step(weight), text + hosts[id(weight)])
    assert held.hits == 4 and held.results == 2
    # The place that a weight has left may be that of anything.
    with torch.no_grad():
        held._known[invariants._place(changing)] = first
    for value in (1.0, 2.0):
        changing.data.fill_(value)
        assert torch.equal(call(invariants, held, torch.add, text, changing), text + value)
