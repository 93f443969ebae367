"""What needs no engine: import lines, cards, messages, a torchaudio that does not load."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
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


@pytest.fixture
def no_sound(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No torchaudio has been imported, and what a test imports of it is forgotten."""
    from porter.omni.sound import StandIns

    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if not isinstance(finder, StandIns)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    held = dict(sys.modules)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio" and name not in held]:
        del sys.modules[name]


def test_without_torchaudio_what_needs_it_says_so(no_sound, monkeypatch):
    from transformers.utils import is_torchaudio_available

    from porter.omni.sound import StandIns, make_torchaudio_importable

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchaudio" else found(name))
    make_torchaudio_importable()
    make_torchaudio_importable()
    assert sum(isinstance(finder, StandIns) for finder in sys.meta_path) == 1
    import torchaudio.compliance.kaldi as kaldi
    from torchaudio.functional import melscale_fbanks
    from torchaudio.transforms import Resample

    for call in (melscale_fbanks, Resample, kaldi.fbank):
        with pytest.raises(RuntimeError, match="needs torchaudio, which is not installed"):
            call(16000, 8000)
    assert not is_torchaudio_available()


def test_beside_another_torch_the_python_of_torchaudio_works(no_sound, monkeypatch, tmp_path):
    from porter.omni.sound import make_torchaudio_importable

    package = tmp_path / "torchaudio"
    (package / "lib").mkdir(parents=True)
    (package / "lib/_torchaudio.abi3.so").write_bytes(b"no library")
    (package / "__init__.py").write_text("from . import _extension\n")
    (package / "_extension.py").write_text("raise OSError('libc10_cuda.so')\n")
    (package / "functional.py").write_text(
        "from torchaudio._extension import fail_if_no_align\n\ndef resample():\n    return 1\n\n\n"
        "@fail_if_no_align\ndef forced_align():\n    return 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    make_torchaudio_importable()
    import torchaudio.functional as functional

    assert functional.resample() == 1
    with pytest.raises(RuntimeError, match="forced_align needs its library"):
        functional.forced_align()
