"""What every comparison asks of a port whose requests run beside others: they do not reach into each other."""

import shutil
from pathlib import Path

import pytest

from porter.parity import run_parity
from porter.parity.relations import BATCH, HELD, TURNS

ROOT = Path(__file__).parents[2] / "generated_models"
SHARED = "own[name] = copy.deepcopy(getattr(pipeline, name))"


def compared(tmp_path, file, change):
    """Verdicts on Sana's port with a change in one file of its family."""
    folder = tmp_path / "models"
    shutil.copytree(ROOT / "sana", folder / "sana")
    for name in ("registry.py", "__init__.py"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder)
    path = folder / "sana" / file
    text = path.read_text()
    path.write_text(change(text))
    assert change is str or path.read_text() != text
    report = run_parity("SanaPipeline", models_dir=folder, cases=[TURNS, HELD, BATCH])
    return {case.name: case.verdict for case in report.cases}


def without_attributes(text):
    head, _, rest = text.partition("request_attributes: ClassVar[tuple[str, ...]] = (")
    return f"{head}request_attributes: ClassVar[tuple[str, ...]] = (){rest[rest.index(')') + 1 :]}"


def test_steps_are_compared_unasked(tmp_path):
    assert compared(tmp_path, "stepwise.py", str) == {TURNS: "parity", HELD: "parity", BATCH: "parity"}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("stepwise.py", lambda text: text.replace(SHARED, "own[name] = getattr(pipeline, name)")),
        ("pipeline_sana.py", without_attributes),
    ],
    ids=["a scheduler for all requests", "settings for all requests"],
)
def test_requests_that_share_are_seen(tmp_path, file, change):
    assert compared(tmp_path, file, change)[TURNS] == "differs"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("predictions[0] if len(predictions) == 1 else torch.cat(predictions)", "predictions[0]"),
        ("else torch.cat(predictions)", "else torch.cat(predictions[::-1])"),
    ],
    ids=["one prediction for all", "each other's predictions"],
)
def test_requests_that_are_predicted_together_are_seen(tmp_path, line, wrong):
    assert compared(tmp_path, "stepwise.py", lambda text: text.replace(line, wrong))[TURNS] == "differs"


def test_a_result_that_is_held_and_wrong_is_seen(tmp_path):
    found = compared(tmp_path, "invariants.py", lambda text: text.replace("self.hits += 1", "result = result * 2"))
    assert found[HELD] == "differs"


def test_requests_that_take_each_others_noise_in_a_batch_are_seen(tmp_path):
    line = "sampling_params.generator = generators"
    found = compared(tmp_path, "stepwise.py", lambda text: text.replace(line, f"{line}[::-1]"))
    assert found[BATCH] == "differs"
