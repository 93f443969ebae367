"""A VAE that several ranks decode with is the target's own: porter.runtime has none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL

from porter.emit.templates import fill
from porter.targets import get_target


@pytest.fixture(scope="module")
def support(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The support file of ports for porter.runtime."""
    text = fill("support.py.j2")
    for package in ("vllm", "vllm_omni"):
        text = text.replace(f"from {package}.", f"from {get_target('porter').module(package)}.")
    file = tmp_path_factory.mktemp("support") / "support.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("port_support", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_process_has_none(support):
    assert support.distributed_class(AutoencoderKL) is None


def engine_class(folder: Path, monkeypatch: pytest.MonkeyPatch, support: ModuleType, text: str) -> type | None:
    """What is found for AutoencoderKL in an engine whose package of VAEs has one module."""
    (folder / "engine_vaes").mkdir()
    (folder / "engine_vaes" / "__init__.py").touch()
    (folder / "engine_vaes" / "kernels.py").write_text("import no_such_driver\n")
    (folder / "engine_vaes" / "of_one.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    for name in ("engine_vaes", "engine_vaes.of_one"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(support, "autoencoders", importlib.import_module("engine_vaes"))
    return support.distributed_class(AutoencoderKL)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("import diffusers\n\nclass DistributedAutoencoderKL(diffusers.AutoencoderKL): pass\n", True),
        ("class DistributedAutoencoderKL: pass\n", False),
        ("import diffusers\n\nclass DistributedAutoencoderKLNew(diffusers.AutoencoderKL): pass\n", False),
    ],
)
def test_it_has_the_name_and_derives(tmp_path, monkeypatch, support, text, is_found):
    assert bool(engine_class(tmp_path, monkeypatch, support, text)) == is_found


class Vae:
    """A VAE that says whether ranks share it; ``decode`` must be left alone if they do not."""

    distributed_executor = SimpleNamespace(group=None)

    def __init__(self, is_shared: bool, result: torch.Tensor) -> None:
        self.is_distributed_enabled = lambda: is_shared
        self.result = result

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        return (self.result,)


@pytest.mark.parametrize("is_first", [True, False])
def test_each_rank_gets_what_the_first_decoded(monkeypatch, support, is_first):
    picture = torch.arange(12.0).view(1, 3, 2, 2)
    sent = []

    def all_reduce(told, op, group):
        told.copy_(torch.maximum(told, torch.tensor([is_first, *picture.shape])))

    def broadcast(tensor, group, group_src):
        assert group_src == 0
        sent.append(tensor.clone())
        tensor.copy_(picture)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    vae = support.decoding_for_all(Vae(True, picture if is_first else torch.empty(0)))
    [found] = vae.decode(torch.zeros(1, 4, 1, 1), return_dict=False)
    assert torch.equal(found, picture)
    assert [tensor.shape for tensor in sent] == [picture.shape]


def test_a_vae_that_nobody_shares_is_left_alone(support):
    result = torch.zeros(0)
    assert support.decoding_for_all(Vae(False, result)).decode(torch.zeros(1, 4, 1, 1))[0] is result
