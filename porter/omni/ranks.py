"""Models of ports on several ranks of vLLM-Omni on one machine, held against one rank.

    python -m porter.omni.ranks WORK --rank R --world N --mode one|tp|sp

One process a rank. ``WORK/ports/<class>.py`` are ports for vllm-omni; with ``one`` the weights and results of each
are written to ``WORK``, with another mode they are read there and compared. ``WORK/<mode>.<rank>.jsonl`` says how each
went.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from porter.omni.linear import one_product

COLLECTIVES = (
    "all_reduce",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_gather",
    "all_to_all_single",
    "all_to_all",
    "reduce_scatter_tensor",
)
MODES = ("one", "tp", "sp")
# Sizes of the engine's groups that are the number of ranks, by what the ranks share.
SIZES = {"one": (), "tp": ("tensor_parallel_size",), "sp": ("ulysses_degree",), "hsdp": ("hsdp_shard_size",)}


class Rank:
    """This process as one rank of the engine: its configuration and its groups.

    Args:
        rank: number of this process.
        world: number of processes.
        mode: what they share: ``one`` (nothing), ``tp`` (projections), ``sp`` (the sequence, by Ulysses), ``hsdp``
            (weights, which come together block by block).
        port: where the ranks meet.
    """

    def __init__(self, rank: int, world: int, mode: str, port: int) -> None:
        from porter.omni import require_engine

        require_engine()
        os.environ["PORTER_UNVERIFIED"] = "1"
        from vllm_omni.diffusion.data import DiffusionParallelConfig, OmniDiffusionConfig
        from vllm_omni.diffusion.distributed.parallel_state import (
            init_distributed_environment,
            initialize_model_parallel,
        )
        from vllm_omni.diffusion.vllm_config import create_diffusion_vllm_config

        from porter.omni.linear import keep_products_apart, keep_weights

        keep_weights()
        keep_products_apart()
        os.environ |= {
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
        }
        self.rank, self.mode, self.world = rank, mode, world
        sharded = mode == "hsdp"
        sizes = {name: world for name in SIZES[mode]} | ({"use_hsdp": True} if sharded else {})
        self.config = OmniDiffusionConfig(
            model="",
            dtype=torch.float32,
            num_gpus=world,
            enforce_eager=True,
            parallel_config=DiffusionParallelConfig(**sizes),
        )
        self.vllm_config = create_diffusion_vllm_config(torch.device("cpu"), self.config)
        with self.context():
            init_distributed_environment(world_size=world, rank=rank)
            parallel = self.config.parallel_config
            initialize_model_parallel(
                sequence_parallel_size=parallel.sequence_parallel_size,
                ulysses_degree=parallel.ulysses_degree,
                tensor_parallel_size=parallel.tensor_parallel_size,
                fully_shard_degree=parallel.hsdp_shard_size if sharded else 1,
                use_hsdp=sharded,
            )

    @contextlib.contextmanager
    def context(self) -> Iterator[Any]:
        """What the engine sets around building and running a model."""
        from vllm.config import set_current_vllm_config
        from vllm_omni.diffusion.config import set_current_diffusion_config
        from vllm_omni.diffusion.forward_context import get_forward_context, set_forward_context

        with (
            set_forward_context(vllm_config=self.vllm_config, omni_diffusion_config=self.config),
            set_current_vllm_config(self.vllm_config),
            set_current_diffusion_config(self.config),
        ):
            yield get_forward_context()

    def build(self, cls: Any, config: dict[str, Any]) -> torch.nn.Module:
        """A model from its configuration, as the engine hands it over."""
        from porter.runtime.diffusion.data import TransformerConfig
        from porter.runtime.diffusion.utils.tf_utils import get_transformer_config_kwargs

        kwargs = get_transformer_config_kwargs(TransformerConfig.from_dict(config), cls)
        with self.context():
            model: torch.nn.Module = cls(od_config=self.config, **kwargs).eval()
            return model

    def model(self, ports: Path, cls: Any, case: Any) -> torch.nn.Module:
        """A model in the configuration of a case, with the modules of its host where it has one.

        Args:
            ports: the folder with the ports, the host's among them.
            cls: of the model.
            case: a :class:`porter.parity.model_spec.ModelCase`.
        """
        from porter.model_port import load_model

        model = self.build(cls, case.config)
        if case.host is None:
            return model
        host = case.host["class"]
        shared: torch.nn.Module = cls.from_transformer(
            model, self.build(load_model(ports / f"{host}.py", host), case.host["config"])
        )
        return shared

    def load(self, model: Any, state: dict[str, torch.Tensor]) -> None:
        """Fill a model from the tensors of a checkpoint, as the engine's loader does."""
        with self.context():
            model.load_weights(iter(state.items()))
            for module in model.modules():
                method = getattr(module, "quant_method", None)
                if method is not None:
                    method.process_weights_after_loading(module)

    def hooks(self, model: torch.nn.Module) -> bool:
        """Let the engine put its sequence-parallel hooks on a model; whether it did."""
        from vllm_omni.diffusion.registry import _apply_sequence_parallel_if_enabled

        holder = torch.nn.Module()
        holder.transformer = model
        with self.context() as context:
            _apply_sequence_parallel_if_enabled(holder, self.config)
            return bool(context.sp_plan_hooks_applied)

    @torch.no_grad()
    def run(self, model: torch.nn.Module, calls: Iterator[dict[str, Any]], hooked: bool) -> list[dict[str, Any]]:
        """The results of calls, tensors by name."""
        from porter.parity.flatten import flatten

        found = []
        for number, call in enumerate(calls):
            torch.manual_seed(number)
            with self.context() as context:
                context.sp_plan_hooks_applied = hooked
                result = flatten(model(**call), "result")
            found.append({name: value for name, value in result.items() if isinstance(value, torch.Tensor)})
        return found


class Traffic:
    """Counts the collectives of torch that are called."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        for name in filter(partial(hasattr, torch.distributed), COLLECTIVES):
            setattr(torch.distributed, name, self._counted(name, getattr(torch.distributed, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return function(*args, **kwargs)

        return counted


def fill(model: torch.nn.Module, seed: int) -> None:
    """Random weights, none constant, of a size that keeps values in range."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2:
            parameter.data.copy_(noise / max(1.0, (parameter.numel() / max(1, parameter.shape[0])) ** 0.5))
        else:
            parameter.data.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))


def apart(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as a checkpoint has them: those of layers that hold several projections one by one."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        parts = [part for layer, part, _ in getattr(model, "stacked_params_mapping", ()) if layer in name]
        owner, _, kind = name.rpartition(".")
        sizes = getattr(model.get_submodule(owner), "output_partition_sizes", None)
        if not parts or sizes is None:
            found[name] = tensor
            continue
        held = owner.rpartition(".")[0]
        found |= {f"{held}{part}{kind}": rows.clone() for part, rows in zip(parts, tensor.split(sizes), strict=True)}
    return found


def widened(config: dict[str, Any], heads_only: bool = False) -> dict[str, Any]:
    """A configuration with twice the heads of the same size, and twice what is as wide as all of them."""
    from porter.facts.attention import HEAD_SIZE, HEADS

    numbers = {name: value for name, value in config.items() if type(value) is int}
    heads = next((numbers[name] for name in HEADS if name in numbers), 0)
    size = next((numbers[name] for name in HEAD_SIZE if name in numbers), 0)
    wide = {name for name in numbers if re.search(r"(^|_)n?_?heads", name)}
    if heads_only:
        pass
    elif size:
        wide |= {name for name, value in numbers.items() if value == heads * size}
    else:
        wide |= {name for name in ("hidden_size", "dim", "hidden_dim", "inner_dim", "d_model") if name in numbers}
    return {name: 2 * value if name in wide else value for name, value in config.items()}


def candidates(name: str, only_wide: bool) -> Iterator[Any]:
    """Stored cases of a model whose heads two ranks can share, then those made so."""
    from porter.parity import model_spec

    cases = model_spec.read(name)
    odd = [c for c in cases if any(v % 2 for k, v in c.config.items() if "heads" in k and type(v) is int)]
    if not only_wide:
        yield from (case for case in cases if case not in odd)
    yield from (case.configured(widened) for case in cases)
    yield from (case.configured(partial(widened, heads_only=True)) for case in cases)


def noted(case: Any) -> dict[str, Any]:
    """What says which case ran, and in which configuration."""
    return {"case": case.name, "config": case.config, "host": case.host}


def again(cases: Iterator[Any], held: dict[str, Any]) -> Any:
    """The case that was noted."""
    case = next(case for case in cases if case.name == held["case"])
    return dataclasses.replace(case, config=held["config"], host=held["host"])


def attempt(rank: Rank, work: Path, name: str, case: Any, traffic: Traffic) -> dict[str, Any]:
    """One case of one model: written by one rank, compared by several."""
    from safetensors.torch import load_file, save_file

    from porter.model_port import load_model
    from porter.parity.model_spec import decode_calls

    cls = load_model(work / "ports" / f"{name}.py", name)
    weights, results = work / f"{name}.safetensors", work / f"{name}.results.pt"
    model = rank.model(work / "ports", cls, case)
    entry: dict[str, Any] = {}
    if rank.mode == "one":
        fill(model, 1)
        state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
        save_file(apart(model, state), weights)
        shapes = {key: list(value.shape) for key, value in model.named_parameters()}
        (work / f"{name}.json").write_text(json.dumps({**noted(case), "shapes": shapes}))
    rank.load(model, load_file(weights))
    hooked = rank.mode == "sp" and rank.hooks(model)
    traffic.calls.clear()
    found = rank.run(model, decode_calls(case.calls, sys.modules[cls.__module__]), hooked)
    if rank.mode == "one":
        torch.save(found, results)
        if getattr(model, "stacked_params_mapping", ()):
            with one_product():
                again = rank.run(model, decode_calls(case.calls, sys.modules[cls.__module__]), False)
            entry["merged"] = difference(again, found)
        return entry
    shapes = json.loads((work / f"{name}.json").read_text())["shapes"]
    own = {key: list(value.shape) for key, value in model.named_parameters()}
    entry["split"] = sum(own[key] != shape for key, shape in shapes.items() if key in own)
    entry["parameters"] = len(own)
    entry["share"] = round(sum(map(numel, own.values())) / max(1, sum(map(numel, shapes.values()))), 4)
    entry["collectives"] = dict(traffic.calls)
    entry["hooked"] = hooked
    entry["relative"] = difference(found, torch.load(results))
    return entry


def difference(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> float:
    """The largest difference of results, as a part of the largest value that is expected.

    Raises:
        ValueError: their shapes differ.
    """
    worst = 0.0
    for mine, reference in zip(found, expected, strict=True):
        for key, value in reference.items():
            if mine[key].shape != value.shape:
                raise ValueError(f"{key} is {tuple(mine[key].shape)}, on one rank {tuple(value.shape)}")
            scale = value.abs().max().item() if value.is_floating_point() else 1.0
            if value.numel():
                worst = max(worst, ((mine[key] - value).abs().max() / max(scale, 1e-30)).item())
    return worst


def numel(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--mode", choices=MODES, default="one")
    parser.add_argument("--port", type=int, default=29555)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rank, traffic = Rank(args.rank, args.world, args.mode, args.port), Traffic()
    held = json.loads((args.work / "jobs.json").read_text())
    with (args.work / f"{args.mode}.{args.rank}.jsonl").open("a") as log:
        for name in held[args.mode]:
            entry = one_model(rank, args.work, name, name in held["wide"], traffic)
            log.write(json.dumps({"model": name, **entry}) + "\n")
            log.flush()


def one_model(rank: Rank, work: Path, name: str, wide: bool, traffic: Traffic) -> dict[str, Any]:
    """How a model went: alone, in the first configuration that runs; with others, in the one that ran alone."""
    file = work / f"{name}.json"
    if rank.mode == "one":
        tried = list(candidates(name, wide))
    elif file.is_file():
        tried = [again(candidates(name, wide), json.loads(file.read_text()))]
    else:
        return {"error": "did not run on one rank"}
    entry: dict[str, Any] = {"error": "no configuration"}
    for case in tried:
        try:
            return {"case": case.name, **attempt(rank, work, name, case, traffic)}
        except Exception as error:  # noqa: BLE001 - what goes wrong is a result
            entry = {"case": case.name, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return entry


if __name__ == "__main__":
    main()
