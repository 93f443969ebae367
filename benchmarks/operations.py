"""Count the operations of torch that a denoiser runs: unlike times, a busy machine does not change them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """The operations of a module's last call, by name and the shapes of their tensors; views compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(alias is not None and not alias.is_write for alias in (r.alias_info for r in func._schema.returns)):
            self.counts[(str(func), *(tuple(a.shape) for a in args if isinstance(a, torch.Tensor)))] += 1
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def of(self, modules: list[torch.nn.Module]) -> Iterator[None]:
        """Count what the modules run in the block; each call starts anew."""

        def begin(*_: Any) -> None:
            self.counts.clear()
            self.__enter__()

        def end(*_: Any) -> None:
            self.__exit__(None, None, None)

        handles = [module.register_forward_pre_hook(begin) for module in modules]
        handles += [module.register_forward_hook(end) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def compared(diffusers: Operations, port: Operations) -> dict[str, int]:
    """How many operations each side ran, and how many of the port's diffusers did not."""
    more = sum((port.counts - diffusers.counts).values())
    return {"diffusers": diffusers.counts.total(), "port": port.counts.total(), "more": more}
