"""What needs no engine: import lines, cards, messages."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from porter.cli import main
from porter.emit.write import read_registry
from porter.omni import EngineMissing, require_engine, warn_untested
from porter.omni.card import read_card
from porter.omni.early import AskingTable
from porter.omni.imports import for_engine


def test_committed_ports_get_the_imports_of_the_engine(committed: Path) -> None:
    files = [path for path in committed.rglob("*.py") if "porter.runtime" in path.read_text("utf-8")]
    assert files
    for path in files:
        text = for_engine(path.read_text("utf-8"))
        assert "porter.runtime" not in text, path
        compile(text, str(path), "exec")


def test_both_packages_of_the_engine_are_told_apart() -> None:
    text = (
        "from porter.runtime.diffusion.data import (\n    DiffusionOutput,\n    OmniDiffusionConfig,\n)\n"
        "from porter.runtime.model_executor.layers.layernorm import RMSNorm as VllmRMSNorm\n"
    )
    assert for_engine(text) == (
        "from vllm_omni.diffusion.data import (\n    DiffusionOutput,\n    OmniDiffusionConfig,\n)\n"
        "from vllm.model_executor.layers.layernorm import RMSNorm as VllmRMSNorm\n"
    )


def test_a_name_that_the_engine_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither vllm_omni nor vllm has Nothing"):
        for_engine("from porter.runtime.diffusion.data import Nothing\n")


@pytest.mark.parametrize(
    ("name", "kind", "image_input", "argument"),
    [
        ("SanaPipeline", "image", False, "complex_human_instruction"),
        ("QwenImageEditPipeline", "image", True, "true_cfg_scale"),
        ("LTXPipeline", "video", False, "decode_timestep"),
        ("StableAudio3Pipeline", "audio", False, "prompt"),
    ],
)
def test_a_card_says_what_a_port_takes_and_makes(
    committed: Path, name: str, kind: str, image_input: bool, argument: str
) -> None:
    card = read_card(committed, name)
    assert (card.kind, card.image_input) == (kind, image_input)
    assert argument in card.arguments
    assert not {"self", "req"} & card.arguments


def test_every_committed_port_has_a_card(committed: Path) -> None:
    for name in read_registry(committed)["_DIFFUSION_MODELS"]:
        assert read_card(committed, name).arguments


def test_the_table_asks_once_and_leaves_what_it_holds() -> None:
    asked: list[str] = []

    def ask(name: str, held: object) -> object:
        asked.append(name)
        return f"{name}, {held}" if name != "Unknown" else None

    table = AskingTable({"Native": 1, "Replaced": 2}, ask, lambda name: name == "Replaced")
    assert table.get("Native") == 1
    assert table.get("Replaced") == table.get("Replaced") == "Replaced, 2"
    assert table.get("Ours") == table.get("Ours") == "Ours, None"
    assert table.get("Unknown", 0) == table.get("Unknown", 0) == 0
    assert asked == ["Replaced", "Ours", "Unknown"]


def test_a_missing_engine_names_the_extra(no_engine: None) -> None:
    with pytest.raises(EngineMissing, match=r"vllm-omni is not installed here.*porter\[omni\]"):
        require_engine()


def test_the_command_line_names_the_extra(no_engine: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "SanaPipeline", "--engine", "vllm-omni"]) == 2
    assert "porter[omni]" in capsys.readouterr().err


def test_an_unknown_engine_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "SanaPipeline", "--engine", "sglang"]) == 2
    assert "there are porter, vllm-omni" in capsys.readouterr().err


def test_an_untested_version_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_untested.cache_clear()
    with caplog.at_level(logging.WARNING, logger="porter.omni"):
        for version in ("0.30.0", "0.30.1", "0.31.0", "0.31.0"):
            warn_untested(version)
    assert [record.getMessage() for record in caplog.records] == [
        "porter was tested with vllm-omni 0.30, this is 0.31.0: run `porter parity NAME --engine vllm-omni` before you "
        "rely on its ports"
    ]
    warn_untested.cache_clear()
