"""Whether the repeated blocks of a model compile into one graph, on the original and on the port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import BaseModel

from porter.parity.flatten import clone_tree


class BlockReport(BaseModel):
    """One repeated block."""

    path: str
    original: str
    """``yes``, or the first line of what ``torch.compile(fullgraph=True)`` raised."""
    port: str

    @property
    def passed(self) -> bool:
        """Whether the port compiles wherever the original does."""
        return self.port == "yes" or self.original != "yes"


def check_blocks(
    original: torch.nn.Module, port: torch.nn.Module, calls: tuple[dict[str, Any], dict[str, Any]], backend: str
) -> list[BlockReport]:
    """Compile one block of each repeated kind, with the arguments that it gets during one call of the model.

    The kinds are those of ``_repeated_blocks``; a model without them repeats what its lists of modules hold.

    Args:
        original, port: the two models; paths of their submodules are the same.
        calls: keyword arguments of forward, for the original and for the port.
        backend: of ``torch.compile``; ``aot_eager`` captures the graphs and leaves out the code generation.
    """
    reports = []
    for path in repeated_blocks(original):
        results = []
        for model, call in zip((original, port), calls, strict=True):
            results.append(_compiles(model, path, call, backend))
        if results[0] != "not called":
            reports.append(BlockReport(path=path, original=results[0], port=results[1]))
    return reports


def repeated_blocks(model: torch.nn.Module) -> list[str]:
    """Paths of the first block of each repeated class."""
    named = set(getattr(model, "_repeated_blocks", None) or ())
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        in_list = path.rpartition(".")[2].isdigit() and path.count(".") == 1
        if type(module).__name__ in named or (not named and in_list):
            found.setdefault(type(module).__name__, path)
    return list(found.values())


@torch.no_grad()
def _compiles(model: torch.nn.Module, path: str, call: dict[str, Any], backend: str) -> str:
    try:
        block = model.get_submodule(path)
    except AttributeError:
        return "no such block"
    with _recorded(block) as seen:
        model(**clone_tree(call))
    if not seen:
        return "not called"
    args, kwargs = seen[0]
    torch._dynamo.reset()
    try:
        # The forward itself: a compiled module would also trace the hooks of its callers.
        torch.compile(block, fullgraph=True, backend=backend)(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - what keeps a block from compiling is the result
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
    finally:
        torch._dynamo.reset()
    return "yes"


@contextlib.contextmanager
def _recorded(block: torch.nn.Module) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The arguments that ``block`` is called with, the first time."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not seen:
            seen.append((clone_tree(args), clone_tree(kwargs)))

    handle = block.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
