"""With ``vae_patch_parallel_size`` the ranks share the decoding, and each has all of it."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from porter.emit.templates import fill
from porter.emit.write import write_ports
from porter.omni.forks import in_fork, preload
from porter.omni.ranks import Traffic
from porter.omni.rendezvous import free_port
from porter.omni.turns import prepare, request, results
from porter.omni.worker import OneWorker
from porter.parity.sides import align
from porter.port import Converter
from porter.source import SourceTree
from porter.targets import get_target

PIPELINES = ("FluxPipeline", "WanPipeline")  # the engine's classes leave what they decode on the first rank
TILE, STRIDE, PICTURE = 8, 6, 14  # in latents
MULTIPLE = 32  # of pixels, that pipelines ask for
SECONDS = 200


@pytest.fixture(scope="module")
def support(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The support file of a family of pipelines."""
    file = tmp_path_factory.mktemp("support") / "support.py"
    file.write_text(fill("support.py.j2"))
    spec = importlib.util.spec_from_file_location("port_support", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "AutoencoderKL",
        "AutoencoderKLFlux2",
        "AutoencoderKLHunyuanVideo15",
        "AutoencoderKLLTX2Video",
        "AutoencoderKLQwenImage",
        "AutoencoderKLWan",
    ],
)
def test_the_class_of_the_engine_is_found(support, name):
    assert support.distributed_class(getattr(diffusers, name)).__name__ == f"Distributed{name}"


def test_what_the_engine_has_no_class_for_stays(support):
    assert support.distributed_class(diffusers.AutoencoderDC) is None
    assert support.distributed_class(type("AutoencoderKL", (torch.nn.Module,), {})) is None  # the name alone


def small_tiles(vae: Any) -> int:
    """Cut what ``vae`` decodes into tiles of a few latents; how many pixels a latent is wide."""
    pixels = getattr(vae, "spatial_compression_ratio", None) or 2 ** (len(vae.config.block_out_channels) - 1)
    for name in vars(vae):
        if found := re.fullmatch(r"tile_(sample|latent)_(min|stride)_(size|height|width)", name):
            size = TILE if found[2] == "min" else STRIDE
            setattr(vae, name, size * (pixels if found[1] == "sample" else 1))
    return int(pixels)


def decoded(work: Path, name: str, **rank: Any) -> dict[str, Any]:
    """What a port makes on this rank, the class of its VAE, how often its decoder ran, and the collectives."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        worker = OneWorker(prepare(work, name, folder), settings={"vae_use_tiling": True}, **rank)
        align(worker.pipeline)
        vae, calls, traffic = worker.pipeline.vae, [], Traffic()
        prompt, params = request(name, worker, 0)
        params.height = params.width = -(-PICTURE * small_tiles(vae) // MULTIPLE) * MULTIPLE
        vae.decoder.register_forward_hook(lambda *_: calls.append(1))
        made = {key: value.numpy() for key, value in results(worker.run(prompt, params)[0]).items()}
        worker.close()
    return {"made": made, "class": type(vae).__name__, "calls": len(calls), "collectives": dict(traffic.calls)}


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pipelines' ports."""
    folder = tmp_path_factory.mktemp("vae")
    converter = Converter(SourceTree(None), get_target("vllm-omni"))
    write_ports(folder / "ports", [converter.port(name) for name in PIPELINES])
    preload()
    return folder


def test_ranks_with_requests_of_their_own_do_not_share_one(support, monkeypatch):
    sizes = SimpleNamespace(vae_patch_parallel_size=2, data_parallel_size=2)
    config = SimpleNamespace(model="", revision=None, dtype=torch.float32, parallel_config=sizes)
    monkeypatch.setattr(support, "component_spec", lambda *_: ("diffusers", "AutoencoderKL"))
    with pytest.raises(ValueError, match="vae_patch_parallel_size=1"):
        support.load_component(config, "vae", diffusers.AutoencoderKL)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_two_ranks_decode_what_one_does(ports, name, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("PORTER_UNVERIFIED", "1")
    one = in_fork(partial(decoded, ports, name), SECONDS)
    parallel = {"cfg_parallel_size": 2, "vae_patch_parallel_size": 2}
    together = partial(decoded, ports, name, parallel=parallel, port=free_port())
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda rank: in_fork(partial(together, rank=rank), SECONDS), (0, 1)))
    assert sum(found["calls"] for found in both) == one["calls"]
    for found in both:
        assert found["class"] == f"Distributed{one['class']}"
        assert 0 < found["calls"] < 0.6 * one["calls"]
        assert found["collectives"]["all_gather"]
        assert found["made"].keys() == one["made"].keys()
        for key, expected in one["made"].items():
            np.testing.assert_allclose(found["made"][key], expected, rtol=0, atol=1e-5)
