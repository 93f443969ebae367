"""What vLLM-Omni makes of a model's repeated blocks: it compiles them, holds few at a time, and spreads them (HSDP).

    python -m porter.omni.blocks WORK --mode blocks|hsdp [--rank R --world N --port P]

``WORK/jobs.json`` names the models by mode, ``WORK/ports/<class>.py`` are their ports. ``blocks`` runs each on one
rank: as it is, layer-wise offloaded, compiled region by region. ``hsdp``, started once for each rank, runs the same
weights and inputs with each rank holding its part. All of it is done by the engine's own functions.
``WORK/<mode>.<rank>.jsonl`` says how each went.

Each model is run by a fork of this process: groups of ranks and compilers start afresh, and one that waits for ever
costs itself only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from porter.omni.forks import Stopped, in_fork
from porter.omni.linear import one_product
from porter.omni.ranks import Rank, Traffic, again, difference, fill, noted

MODES = ("blocks", "hsdp")
SECONDS = 300  # that a model may take: most need five
# Blocks of a kind that a tiny model is given: one that computes, one that is on its way, one that is away.
DEPTH = 3
FEW = 2  # without another to fetch meanwhile, a block cannot be away

Run = Callable[[], list[dict[str, Any]]]


def offloaded(rank: Rank, model: Any, run: Run, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """Run with the weights of few blocks in place, those of the others away; how far that is from all in place.

    Streams of a CPU are torch's own, which do nothing: copies are done when the call returns. So what is seen is that
    each block's weights are there when it needs them and gone thereafter, and not that copies and computing overlap.
    """
    from vllm_omni.diffusion.offloader.base import OffloadConfig
    from vllm_omni.diffusion.offloader.config import DIT_COMPONENT, OffloadStrategy
    from vllm_omni.diffusion.offloader.layerwise_backend import LayerWiseOffloadBackend

    settings = OffloadConfig(OffloadStrategy.LAYER_WISE, pin_cpu_memory=False, components=frozenset({DIT_COMPONENT}))
    backend = LayerWiseOffloadBackend(settings, torch.device("cpu"))
    with rank.context():
        backend.enable(holder(model))
    blocks = [block for ring in backend._blocks for block in ring]
    calls = emptied = most = 0

    def after(block: Any, *_: Any) -> None:
        nonlocal calls, emptied, most
        there = sum(map(is_there, blocks))
        calls, emptied, most = calls + 1, emptied + (not is_there(block)), max(most, there)

    handles = [block.register_forward_hook(after) for block in blocks]
    try:
        relative = difference(run(), expected)
    finally:
        for handle in handles:
            handle.remove()
        backend.disable()
    kinds = set(map(type, blocks))
    inside = {id(part) for block in blocks for part in block.modules()}
    left = sum(type(part) in kinds and id(part) not in inside for part in model.modules())
    return {
        "relative": relative,
        "blocks": len(blocks),
        "left": left,  # blocks of the same kinds that stay in place
        "calls": calls,
        "emptied": emptied,
        "most": most,  # blocks whose weights were there when another had just run
    }


def is_there(block: torch.nn.Module) -> bool:
    """Whether any weight of a block holds values."""
    return any(parameter.numel() for parameter in block.parameters())


def holder(model: Any) -> torch.nn.Module:
    """A pipeline with nothing but a denoiser, as the engine looks for it."""

    class Pipeline(torch.nn.Module):
        _dit_modules = ("transformer",)
        _encoder_modules = _vae_modules = _resident_modules = ()

    pipeline = Pipeline()
    pipeline.transformer = model
    return pipeline


def compiled(rank: Rank, model: Any, run: Run, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """Run with each block compiled; how far that is from eager, and how many of the blocks' calls ran a graph.

    Graphs are captured and lowered as for any backend and then run operation by operation: code generation is torch's.
    Sizes are taken as they are (``diffusion_compile_dynamic=False`` of the engine): as symbols they take torch five
    times as long, and the engine's SDPA breaks graphs over them, which backends of a GPU do not.
    """
    from torch._dynamo.backends.registry import lookup_backend
    from torch._dynamo.utils import counters
    from vllm_omni.diffusion.compile import regionally_compile

    lower = lookup_backend("aot_eager")
    graphs = runs = calls = in_graph = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        made, graphs = lower(graph, inputs), graphs + 1

        def counted(*args: Any) -> Any:
            nonlocal runs
            runs += 1
            return made(*args)

        return counted

    def watch(forward: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls, in_graph
            before = runs
            result = forward(*args, **kwargs)
            calls, in_graph = calls + 1, in_graph + (runs > before)
            return result

        return watched

    with one_product():  # as on a GPU
        expected = run()
    torch._dynamo.reset()
    counters.clear()
    regionally_compile(model, dynamic=False, backend=backend)
    blocks = [part for part in model.modules() if "forward" in vars(part)]
    inside = {id(part) for block in blocks for part in block.modules() if part is not block}
    for block in blocks:
        if id(block) not in inside:  # those within another are part of its graph
            block.forward = watch(block.forward)
    with one_product():
        found = run()
    return {
        "relative": difference(found, expected),
        "blocks": len(blocks),
        "calls": calls,
        "in_graph": in_graph,
        "graphs": graphs,
        "breaks": sum(counters["graph_break"].values()),
    }


def sharded(rank: Rank, model: Any, run: Run, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """Run with a part of each weight on each rank; how far that is from one rank with all."""
    from vllm_omni.diffusion.distributed.hsdp import HSDPInferenceConfig, apply_hsdp_to_model

    parallel = rank.config.parallel_config
    settings = HSDPInferenceConfig(
        enabled=True,
        hsdp_replicate_size=parallel.hsdp_replicate_size,
        hsdp_shard_size=parallel.hsdp_shard_size,
        param_dtype=rank.config.dtype,
    )
    traffic = Traffic()
    with rank.context():
        apply_hsdp_to_model(model, settings, target_device=torch.device("cpu"))
    traffic.calls.clear()
    relative = difference(run(), expected)
    parameters = list(model.parameters())
    own = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in parameters)
    return {
        "relative": relative,
        "share": round(own / max(1, sum(p.numel() for p in parameters)), 4),
        "collectives": dict(traffic.calls),
    }


def on_one_rank(work: Path, name: str, port: int) -> dict[str, Any]:
    """The trials of one process, in the first configuration that runs; its weights and results are left in ``work``."""
    from safetensors.torch import load_file, save_file

    from porter.model_port import load_model
    from porter.omni.ranks import apart

    rank = Rank(0, 1, "one", port)
    cls = load_model(work / "ports" / f"{name}.py", name)
    weights = work / f"{name}.safetensors"
    error, tried = "no configuration", None
    for case in candidates(name):
        try:
            model = rank.model(work / "ports", cls, case)
            fill(model, 1)
            state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
            save_file(apart(model, state), weights)
            rank.load(model, load_file(weights))
            run = partial(results, rank, model, case, sys.modules[cls.__module__])
            expected = run()
        except Exception as failure:  # noqa: BLE001 - the next configuration is tried
            error = said(failure)
            continue
        tried = case, model, run, expected
        torch.save(expected, work / f"{name}.results.pt")
        (work / f"{name}.json").write_text(json.dumps(noted(case)))
        if blocks_of(model) >= FEW:
            break
    if tried is None:
        return {"error": error}
    case, model, run, expected = tried
    away = [went(partial(offloaded, rank, model, run, expected))]
    away += [offloaded_alone(rank, work, cls, other) for other in others(name, case)]
    worst = next((found for found in away if "error" in found), None) or max(away, key=lambda f: f["relative"])
    together = went(partial(compiled, rank, model, run, expected))
    return {"case": case.name, "layerwise_offload": worst | {"cases": len(away)}, "regional_compile": together}


def blocks_of(model: Any) -> int:
    """How many blocks a model has where its class says that it has them."""
    lists = (getattr(model, name, None) for name in getattr(model, "_layerwise_offload_blocks_attrs", ()))
    return sum(len(blocks) for blocks in lists if isinstance(blocks, torch.nn.ModuleList))


def others(name: str, case: Any) -> list[Any]:
    """Further cases, one for each way that settings switch modules of the model on and off."""
    from porter.parity import model_spec

    def switches(config: dict[str, Any]) -> str:
        return json.dumps({key: type(value).__name__ if value else value for key, value in sorted(config.items())})

    found = {switches(other.config): other for other in model_spec.read(name)}
    found.pop(switches(case.config), None)
    return list(found.values())


def offloaded_alone(rank: Rank, work: Path, cls: Any, case: Any) -> dict[str, Any]:
    """As :func:`offloaded`, of another configuration; equal by definition where it does not run at all."""
    try:
        model = rank.model(work / "ports", cls, case)
        fill(model, 1)
        run = partial(results, rank, model, case, sys.modules[cls.__module__])
        expected = run()
    except Exception:  # noqa: BLE001 - not what is tried here
        return {"relative": 0.0}
    return went(partial(offloaded, rank, model, run, expected))


def on_ranks(work: Path, name: str, number: int, world: int, port: int) -> dict[str, Any]:
    """The same weights and inputs as :func:`on_one_rank`, with the weights on several ranks."""
    from safetensors.torch import load_file

    from porter.model_port import load_model

    if not (work / f"{name}.json").is_file():
        return {"error": "ValueError: it did not run on one rank"}
    case = again(candidates(name), json.loads((work / f"{name}.json").read_text()))
    rank = Rank(number, world, "hsdp", port)
    cls = load_model(work / "ports" / f"{name}.py", name)
    model = rank.model(work / "ports", cls, case)
    rank.load(model, load_file(work / f"{name}.safetensors"))
    expected = torch.load(work / f"{name}.results.pt")
    run = partial(results, rank, model, case, sys.modules[cls.__module__])
    return {"case": case.name, "hsdp": went(partial(sharded, rank, model, run, expected))}


def results(rank: Rank, model: Any, case: Any, module: Any) -> list[dict[str, Any]]:
    """What the calls of a case give; ``module`` holds the model's class."""
    from porter.parity.model_spec import decode_calls

    return rank.run(model, decode_calls(case.calls, module), False)


def candidates(name: str) -> Iterator[Any]:
    """Stored cases of a model with several blocks of each kind, then as they are."""
    from porter.omni.cached import deeper
    from porter.parity import model_spec

    cases = model_spec.read(name)
    for depth in (DEPTH, 2 * DEPTH):
        yield from (case.configured(partial(deeper, depth=depth)) for case in cases)
    yield from cases


def went(trial: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a trial found, or what went wrong."""
    try:
        return trial()
    except Exception as error:  # noqa: BLE001 - what goes wrong is a result
        return {"error": said(error)}


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--mode", choices=MODES, default="blocks")
    parser.add_argument("--port", type=int, default=29557, help="of the first model; the next takes the next")
    args = parser.parse_args()
    from porter import omni

    omni.start()
    torch.set_num_threads(1)
    preload()
    with (args.work / f"{args.mode}.{args.rank}.jsonl").open("a") as log:
        for number, name in enumerate(json.loads((args.work / "jobs.json").read_text())[args.mode]):
            port = args.port + number
            if args.mode == "blocks":
                trial = partial(on_one_rank, args.work, name, port)
            else:
                trial = partial(on_ranks, args.work, name, args.rank, args.world, port)
            try:
                entry = in_fork(trial, SECONDS)
            except (Stopped, RuntimeError) as error:
                entry = {"error": str(error)}
            log.write(json.dumps({"model": name, **entry}) + "\n")
            log.flush()


def preload() -> None:
    """Import what every model needs, so that forks have it."""
    import diffusers  # noqa: F401
    import vllm_omni.diffusion.compile
    import vllm_omni.diffusion.distributed.hsdp
    import vllm_omni.diffusion.offloader.layerwise_backend
    import vllm_omni.diffusion.registry  # noqa: F401


if __name__ == "__main__":
    main()
