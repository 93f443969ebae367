"""``porter bench``"""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from porter.bench.results import Times
from porter.cli import main


def test_the_spread_is_in_quartiles():
    found = Times.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert found.values == [4.0, 1.0, 2.0, 3.0, 5.0]
    assert Times.of([2.0]).low == Times.of([2.0]).high == 2.0


def test_both_sides_are_measured(tmp_path, capsys):
    picture = tmp_path / "bench.svg"
    arguments = ["--runs", "2", "--steps", "3", "--plot", str(picture), "--pictures", "--json"]
    assert main(["bench", "AuraFlowPipeline", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    shown = report["pictures"]
    assert shown["port"] == shown["reference"] and shown["difference"].startswith("data:image/png;base64,")
    assert report["command"].endswith("--pictures")
    [mode] = report["modes"]
    assert [each["name"] for each in mode["quantities"]] == ["denoiser step", "whole call", "peak memory"]
    step, whole, _ = mode["quantities"]
    for side in ("diffusers", "port"):
        assert len(whole[side]["values"]) == 2
        assert 0 < step[side]["median"] * 3 <= whole[side]["high"]
    assert report["machine"] and report["environment"]["torch"]
    text = picture.read_text("utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert report["machine"] in text and "href" not in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["NoSuchPipeline"], "NoSuchPipeline"),
        (["AuraFlowPipeline", "--checkpoint", "nowhere"], "model_index.json"),
        (["AuraFlowPipeline", "--plot", "nowhere/at/all.svg"], "no folder"),
    ],
)
def test_bad_input_is_told(arguments, told, capsys):
    assert main(["bench", *arguments]) == 2
    assert told in capsys.readouterr().err
