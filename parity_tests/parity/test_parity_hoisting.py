"""What requests hold for their steps, on ports that were made here: the same results, bit for bit, and really held."""

import pytest
import torch

from porter.parity import checkpoint as checkpoints
from porter.parity import spec as specs
from porter.parity.recipes import decode
from porter.parity.sides import Port
from porter.parity.turns import in_turns, same_leaves
from porter.port import convert_all
from porter.runtime.diffusion.worker.utils import StepRequestState

# Text keys and values with two calls a step; a doubled batch; joint attention.
NAMES = ("WanPipeline", "PixArtAlphaPipeline", "FluxPipeline")


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ports")
    for port in convert_all(list(NAMES), output_dir=str(folder)):
        assert port.features["hoisting"] == "verified"
    return folder


@pytest.fixture
def states(monkeypatch):
    """The states of all requests, in order."""
    made, init = [], StepRequestState.__init__

    def kept(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(StepRequestState, "__init__", kept)
    return made


def loaded(name, ports, folder):
    spec = specs.read(name)
    inputs = {**spec.inputs, "num_inference_steps": 3, "output_type": "latent"}
    return Port(checkpoints.build(name, folder), ports, "cpu", "float32"), inputs


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_held_results_change_nothing(name, ports, states, tmp_path, monkeypatch):
    port, inputs = loaded(name, ports, tmp_path)
    calls = [inputs, {**inputs, "prompt": "another prompt", "num_inference_steps": 4}]
    monkeypatch.setenv("PORTER_HOISTING", "0")
    plain = in_turns(port, [decode(dict(call)) for call in calls])
    assert [state.extra["invariants"] for state in states] == [None, None]
    monkeypatch.delenv("PORTER_HOISTING")
    states.clear()
    together = in_turns(port, [decode(dict(call)) for call in calls])
    assert all(map(same_leaves, plain, together))
    held = [state.extra["invariants"] for state in states]
    assert all(item.results and item.nbytes and item.hits >= item.results and not item.stale for item in held)
    states.clear()
    with torch.inference_mode():  # as the engine runs a model
        engine = in_turns(port, [decode(dict(call)) for call in calls])
    assert all(map(same_leaves, plain, engine))
    assert [state.extra["invariants"].hits for state in states] == [item.hits for item in held]


@pytest.mark.slow
def test_a_switch_that_says_nothing_is_refused(ports, tmp_path, monkeypatch):
    port, inputs = loaded("FluxPipeline", ports, tmp_path)
    monkeypatch.setenv("PORTER_HOISTING", "some")
    with pytest.raises(ValueError, match="PORTER_HOISTING is 'some'; set it to the MiB"):
        in_turns(port, [decode(dict(inputs))])
