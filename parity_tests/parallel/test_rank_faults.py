"""The two known bugs that show on several ranks only: their places are there, and two ranks did not pass with them."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from rank_faults import FAULTS, RESULTS, planted  # noqa: E402

FOLDERS = {
    "FluxTransformer2DModel": "flux",
    "ChromaTransformer2DModel": "chroma",
    "HunyuanVideoTransformer3DModel": "hunyuan_video",
    "HunyuanImageTransformer2DModel": "hunyuan_image",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.bug}-{fault.model}")
def test_a_fault_has_one_place_in_a_port(fault):
    folder = ROOT / "generated_models" / FOLDERS[fault.model]
    text = (folder / f"{folder.name}_transformer.py").read_text()
    changed = planted(text, fault)
    assert changed != text and changed.replace(fault.after, fault.before) == text


def test_a_place_that_is_gone_is_said():
    with pytest.raises(SystemExit, match="the place of bug 10 is not there"):
        planted("", FAULTS[0])


def test_two_ranks_saw_every_fault():
    entries = json.loads(RESULTS.read_text())
    assert {(entry["bug"], entry["model"]) for entry in entries} == {(fault.bug, fault.model) for fault in FAULTS}
    assert all(entry["seen"] for entry in entries)
