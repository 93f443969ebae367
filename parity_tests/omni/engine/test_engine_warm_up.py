"""The engine's start-up request: ports run it, or decline it and serve."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.omni, pytest.mark.slow, pytest.mark.usefixtures("own_tables")]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from porter.omni import warm_up

    lines: list[str] = []
    monkeypatch.setattr(warm_up.logger, "warning", lambda text, *arguments: lines.append(text % arguments))
    return lines


def worker(folder: Path, name: str, steps: int = 0) -> Any:
    from porter.omni.plugin import use_port
    from porter.omni.worker import OneWorker

    logging.getLogger("vllm").setLevel(logging.ERROR)
    use_port(name)
    return OneWorker(folder, step_execution=steps)


def test_what_a_pipeline_works_on_is_made_up(checkpoint, told: list[str]) -> None:
    """A class label, which the request does not have."""
    started = worker(checkpoint("DiTPipeline"), "DiTPipeline")
    started.warm_up(64)
    started.close()
    assert not told


@pytest.mark.parametrize("steps", [0, 2])
def test_a_refused_request_is_told_once_and_the_port_serves(checkpoint, told: list[str], steps: int) -> None:
    """Whole and in steps: its sizes are too large for the tables of the tiny checkpoint."""
    from porter.omni.side import engine_params
    from porter.omni.stepwise import run_interleaved
    from porter.parity import checkpoint as checkpoints
    from porter.parity.request import to_request

    started = worker(checkpoint("AuraFlowPipeline"), "AuraFlowPipeline", steps)
    prompt, params = to_request(checkpoints.load_inputs("AuraFlowPipeline"))
    started.warm_up(512)
    if steps:
        [output], _ = run_interleaved(started, [(prompt, engine_params(params))])
    else:
        output, _ = started.run(prompt, engine_params(params))
    started.close()
    [line] = told
    assert "AuraFlowPipeline does not take the engine's warm-up request and starts cold: " in line
    assert "aura_flow_transformer.py:" in line
    assert output is not None
