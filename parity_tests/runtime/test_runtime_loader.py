"""The checkpoint loader: strict both ways, whatever the layout of the files."""

from __future__ import annotations

import fnmatch
import json
import shutil
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from porter.runtime import CheckpointError, Omni
from porter.runtime.diffusion.data import OmniDiffusionConfig
from porter.runtime.diffusion.model_loader.checkpoint_files import find_checkpoint_files, iterate_tensors
from porter.runtime.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader, align_storages
from porter.runtime.diffusion.model_loader.hub_prefetch import from_pretrained_with_prefetch, prefetch_subfolders
from porter.runtime.model_executor.layers.linear import QKVParallelLinear
from porter.runtime.model_executor.models.utils import AutoWeightsLoader

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 3)
        self.register_buffer("scale", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


class Transformer(nn.Module):
    """Nested modules, a list, a buffer, and a part with a ``load_weights`` of its own."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])
            self.norm = nn.LayerNorm(4)

        def load_weights(self, weights):
            return AutoWeightsLoader(self).load_weights(weights)

    def __init__(self) -> None:
        super().__init__()
        self.part = self.Part()
        self.head = nn.Linear(2, 2)


class Pipeline(nn.Module):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.transformer = Transformer()
        self.vae = nn.Linear(1, 1)  # Under no source: it brought its own weights.
        self.weights_sources = [
            DiffusersPipelineLoader.ComponentSource(str(folder), "transformer", None, prefix="transformer.")
        ]

    def load_weights(self, weights):
        return AutoWeightsLoader(self).load_weights(weights)


NAMES = sorted(Transformer().state_dict())


def load(pipeline: nn.Module) -> None:
    DiffusersPipelineLoader(OmniDiffusionConfig(dtype="float32")).load_weights(pipeline)


def write(folder: Path, state: dict[str, torch.Tensor], shards: int = 1) -> Path:
    target = folder / "transformer"
    target.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(state, target / WEIGHTS)
        return folder
    weight_map = {name: f"part-{index % shards}.safetensors" for index, name in enumerate(state)}
    for file in set(weight_map.values()):
        save_file({name: state[name] for name in state if weight_map[name] == file}, target / file)
    (target / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def random_state() -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in Transformer().state_dict().items()}


@settings(max_examples=40, deadline=None)
@given(
    missing=st.sets(st.sampled_from(NAMES)),
    misshapen=st.sets(st.sampled_from(NAMES)),
    extra=st.sets(st.from_regex(r"\A(part\.|part\.blocks\.0\.|head\.|)[a-z]{3,8}x(\.[a-z]{1,4}x)?\Z"), max_size=4),
    shards=st.integers(1, 3),
)
def test_every_tensor_that_does_not_fit_is_named(missing, misshapen, extra, shards):
    misshapen = misshapen - missing
    state = {name: tensor for name, tensor in random_state().items() if name not in missing}
    state |= {name: torch.zeros(*state[name].shape, 1) for name in misshapen}
    state |= {name: torch.zeros(1) for name in extra}
    state = state or {"onlyx": torch.zeros(1)}
    extra = set(state) - set(NAMES)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(write(Path(folder), state, shards))
        if not (missing or misshapen or extra):
            load(pipeline)
            assert all(torch.equal(pipeline.transformer.state_dict()[name], state[name]) for name in NAMES)
            return
        with pytest.raises(CheckpointError) as caught:
            load(pipeline)
    error = caught.value
    assert error.missing == sorted(f"transformer.{name}" for name in missing)
    assert error.unexpected == sorted(f"transformer.{name}" for name in extra)
    assert [text.partition(":")[0] for text in error.misshapen] == sorted(f"transformer.{name}" for name in misshapen)
    for name in missing | misshapen | extra:
        assert f"transformer.{name}" in str(error)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_sharded_and_whole_files_are_the_same(tmp_path, shards):
    state = random_state()
    pipeline = Pipeline(write(tmp_path, state, shards))
    load(pipeline)
    loaded = pipeline.transformer.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_an_index_wins_over_a_whole_file(tmp_path):
    write(tmp_path, {"a": torch.ones(1)})
    write(tmp_path, {"b": torch.ones(1), "c": torch.ones(1)}, shards=2)
    assert {name for name, _ in iterate_tensors(find_checkpoint_files(str(tmp_path), "transformer"))} == {"b", "c"}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../elsewhere.safetensors"}, "outside its folder"),
        ({"a": "gone.safetensors"}, r"not there: \['gone.safetensors'\]"),
        ({"a": WEIGHTS, "b": WEIGHTS}, "do not hold.*\n.*: b"),
        ([], "weight_map"),
    ],
)
def test_broken_index(tmp_path, weight_map, message):
    folder = write(tmp_path, {"a": torch.ones(1)}) / "transformer"
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        list(iterate_tensors(find_checkpoint_files(str(tmp_path), "transformer")))


def test_unreadable_and_absent_weights(tmp_path):
    with pytest.raises(CheckpointError, match="has no folder 'transformer'"):
        load(Pipeline(tmp_path))
    (tmp_path / "transformer").mkdir()
    with pytest.raises(CheckpointError, match="no weights here"):
        load(Pipeline(tmp_path))
    (tmp_path / "transformer" / WEIGHTS).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(Pipeline(tmp_path))


def test_pickled_weights_only_as_a_fallback_and_only_tensors(tmp_path):
    pipeline = Pipeline(tmp_path)
    state = random_state()
    (tmp_path / "transformer").mkdir()
    file = tmp_path / "transformer" / "diffusion_pytorch_model.bin"
    torch.save(state, file)
    load(pipeline)
    assert torch.equal(pipeline.transformer.head.weight, state["head.weight"])
    pipeline.weights_sources[0].fall_back_to_pt = False
    with pytest.raises(CheckpointError, match="fall_back_to_pt is off"):
        load(pipeline)
    pipeline.weights_sources[0].fall_back_to_pt = True
    torch.save({"head.weight": Path("an object")}, file)
    with pytest.raises(CheckpointError, match="plain tensors"):
        load(pipeline)


def test_chosen_files_only(tmp_path):
    write(tmp_path, {"a": torch.ones(1)})
    save_file({"b": torch.ones(1)}, tmp_path / "transformer" / "other.safetensors")
    files = find_checkpoint_files(str(tmp_path), "transformer", allow_patterns=["other*"])
    assert [name for name, _ in iterate_tensors(files)] == ["b"]
    with pytest.raises(CheckpointError, match="no weight file matches"):
        find_checkpoint_files(str(tmp_path), "transformer", allow_patterns=["none*"])


class FusedPipeline(nn.Module):
    """Three checkpoint tensors stacked into one parameter, as a tier-B port does it."""

    stacked_params_mapping = [(".to_qkv.", ".to_q.", "q"), (".to_qkv.", ".to_k.", "k"), (".to_qkv.", ".to_v.", "v")]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.to_qkv = QKVParallelLinear(4, 2, 2, bias=False)
        self.weights_sources = Pipeline(folder).weights_sources

    def load_weights(self, weights):
        loaded = set()
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            for fused, single, shard in self.stacked_params_mapping:
                if single in name:
                    target = name.replace(single, fused)
                    parameters[target].weight_loader(parameters[target], tensor, shard)
                    loaded.add(target)
        return loaded


def fused_state() -> dict[str, torch.Tensor]:
    return {f"to_{shard}.weight": torch.randn(4, 4) for shard in "qkv"}


def test_fused_weights(tmp_path):
    state = fused_state()
    pipeline = FusedPipeline(write(tmp_path, state))
    load(pipeline)
    assert torch.equal(pipeline.transformer.to_qkv.weight, torch.cat([state[f"to_{s}.weight"] for s in "qkv"]))


def test_a_missing_shard_is_named(tmp_path):
    state = fused_state()
    del state["to_k.weight"]
    with pytest.raises(CheckpointError, match=r"transformer\.to_k\.weight") as caught:
        load(FusedPipeline(write(tmp_path, state)))
    assert caught.value.missing == ["transformer.to_k.weight"]


def test_a_missing_shard_without_a_mapping_is_named_by_its_layer(tmp_path):
    state = fused_state()
    del state["to_k.weight"]
    pipeline = FusedPipeline(write(tmp_path, state))
    loader = FusedPipeline.load_weights.__get__(pipeline)
    mapping = FusedPipeline.stacked_params_mapping

    def load_weights(weights):
        pipeline.stacked_params_mapping = mapping
        found = loader(weights)
        pipeline.stacked_params_mapping = None
        return found

    pipeline.load_weights = load_weights
    with pytest.raises(CheckpointError, match=r"transformer.to_qkv.weight \(shards k\)"):
        load(pipeline)


@pytest.mark.parametrize("nested", [False, True])
def test_a_loader_that_stops_at_a_tensor_names_it(tmp_path, nested):
    state = fused_state() | {"to_v.weight": torch.zeros(5, 4)}
    pipeline = FusedPipeline(write(tmp_path, state))
    if nested:  # The transformer has the loader, and the pipeline delegates to it.
        outer = FusedPipeline.load_weights.__get__(pipeline)
        cut = len("transformer.")
        pipeline.transformer.load_weights = lambda weights: {
            name[cut:] for name in outer((f"transformer.{name}", tensor) for name, tensor in weights)
        }
        pipeline.load_weights = AutoWeightsLoader(pipeline).load_weights
    with pytest.raises(CheckpointError, match="were not checked") as caught:
        load(pipeline)
    error = caught.value
    assert error.misshapen == ["transformer.to_v.weight: shard 'v': checkpoint [5, 4], model [4, 4]"]
    assert not error.missing and not error.unexpected


def test_a_loader_that_looks_an_unknown_name_up_names_it(tmp_path):
    pipeline = Pipeline(write(tmp_path, random_state() | {"dead": torch.zeros(1)}))
    parameters = dict(pipeline.named_parameters()) | dict(pipeline.named_buffers())
    pipeline.load_weights = lambda weights: {name for name, tensor in weights if parameters[name] is not None}
    with pytest.raises(CheckpointError) as caught:
        load(pipeline)
    assert caught.value.unexpected == ["transformer.dead"]


def test_a_tensor_that_load_weights_passes_over_is_named(tmp_path):
    state = fused_state() | {"dead": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="transformer.dead") as caught:
        load(FusedPipeline(write(tmp_path, state)))
    assert caught.value.unexpected == ["transformer.dead"]


def test_load_weights_must_account_for_what_it_did(tmp_path):
    pipeline = Pipeline(write(tmp_path, random_state()))
    pipeline.load_weights = lambda weights: list(weights) and None
    with pytest.raises(TypeError, match="must return the set of names"):
        load(pipeline)


def test_explicit_lists_leave_names_out(tmp_path):
    pipeline = Pipeline(write(tmp_path, random_state() | {"unused.a": torch.zeros(1), "b.inv_freq": torch.zeros(1)}))
    pipeline.load_weights = AutoWeightsLoader(
        pipeline, skip_prefixes=["transformer.unused."], ignore_unexpected_suffixes=[".inv_freq"]
    ).load_weights
    load(pipeline)


def test_a_tied_parameter_is_filled_under_either_name(tmp_path):
    for present in ("a.weight", "b.weight"):
        pipeline = nn.Module()
        pipeline.transformer = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
        pipeline.transformer["b"].weight = pipeline.transformer["a"].weight
        pipeline.weights_sources = Pipeline(tmp_path).weights_sources
        pipeline.load_weights = AutoWeightsLoader(pipeline).load_weights
        state = {present: torch.randn(2, 2)}
        write(tmp_path, state)
        load(pipeline)
        assert torch.equal(pipeline.transformer["b"].weight, state[present])


def test_storages_are_aligned_and_tied_parameters_stay_tied():
    base = torch.randn(65)
    model = nn.Module()
    model.a = model.b = nn.Parameter(base[1:])
    model.register_buffer("c", base[3:7])
    model.register_buffer("d", torch.zeros(4))
    assert align_storages(model) == 2
    assert model.a is model.b and torch.equal(model.a, base[1:]) and torch.equal(model.c, base[3:7])
    assert all(t.data_ptr() % 64 == 0 for t in (model.a, model.c, model.d))


def test_through_omni_a_missing_buffer_is_named(checkpoint, models_dir, toy_state):
    del toy_state["table"]  # A persistent buffer counts like a parameter.
    save_file(toy_state, checkpoint / "transformer" / WEIGHTS)
    with pytest.raises(CheckpointError, match="transformer.table") as caught:
        Omni(checkpoint, models_dir, "cpu")
    assert caught.value.missing == ["transformer.table"] and "ToyPipeline" in str(caught.value)


class FakeHub:
    """Stands in for huggingface_hub: copies what matches into a cache folder, and notes what was asked for."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache = source, cache
        self.revisions: set[str | None] = set()

    def snapshot_download(self, repo_id, revision=None, allow_patterns=None, ignore_patterns=None, cache_dir=None):
        self.revisions.add(revision)
        for file in self.source.rglob("*"):
            name = file.relative_to(self.source).as_posix()
            if file.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                self._fetch(name)
        return str(self.cache)

    def hf_hub_download(self, repo_id, filename, revision=None):
        self.revisions.add(revision)
        if not (self.source / filename).is_file():
            raise RemoteEntryNotFoundError(filename, response=MagicMock())
        return str(self._fetch(filename))

    def _fetch(self, name: str) -> Path:
        target = self.cache / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.source / name, target)
        return target


@pytest.fixture
def hub(checkpoint, tmp_path, monkeypatch):
    fake = FakeHub(checkpoint, tmp_path / "cache")
    fake.cache.mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    return fake


def fetched(hub: FakeHub) -> set[str]:
    return {path.relative_to(hub.cache).as_posix() for path in hub.cache.rglob("*") if path.is_file()}


def test_a_hub_model_fetches_only_the_files_it_needs_at_its_revision(hub, models_dir):
    folder = hub.source / "transformer"
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "flax_model.msgpack"):
        (folder / name).write_bytes(b"not to be read")
    Omni("porter-tests/toy", models_dir, "cpu", revision="v1").generate("a")
    assert fetched(hub) == {"model_index.json", "transformer/config.json", f"transformer/{WEIGHTS}"}
    assert hub.revisions == {"v1"}


def test_a_sharded_hub_model_fetches_its_shards(hub, models_dir, toy_state):
    (hub.source / "transformer" / WEIGHTS).unlink()
    write(hub.source, toy_state, shards=2)
    Omni("porter-tests/toy", models_dir, "cpu")
    shards = {f"transformer/part-{index}.safetensors" for index in range(2)}
    assert shards <= fetched(hub) and f"transformer/{WEIGHTS}" not in fetched(hub)


def test_prefetching(hub, checkpoint):
    (hub.source / "transformer" / "nested").mkdir()
    (hub.source / "transformer" / "nested" / "a.txt").write_text("a")
    made = from_pretrained_with_prefetch(
        lambda model, **kwargs: (model, kwargs),
        "porter-tests/toy",
        subfolder="transformer",
        prefetch_list=["transformer"],
    )
    assert made == ("porter-tests/toy", {"subfolder": "transformer", "local_files_only": False})
    assert {"model_index.json", "transformer/nested/a.txt"} <= fetched(hub)
    hub.revisions.clear()
    prefetch_subfolders(str(checkpoint), ["transformer"])
    assert not hub.revisions
