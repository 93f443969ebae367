"""AutoWeightsLoader: fills a module tree from a stream of named tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from porter.runtime.errors import CheckpointError, CheckpointFileError
from porter.runtime.model_executor.model_loader.weight_utils import default_weight_loader


def persistent_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own buffers (not its children's) that belong to its state dict."""
    return {
        name: buffer
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


class TrackedWeights:
    """A stream of named tensors that remembers what went by.

    A ``load_weights`` that is no AutoWeightsLoader stops at the first tensor that does not fit, and its error need
    not name it; the last name that went by is the one.
    """

    def __init__(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._weights = weights
        self.names: list[str] = []
        self.exhausted = False

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._weights:
            self.names.append(name)
            yield name, tensor
        self.exhausted = True

    def feed(self, load_weights: Callable[[TrackedWeights], set[str] | None], owner: str) -> set[str]:
        """Run a ``load_weights`` on the stream and return the names that it says it filled.

        Raises:
            CheckpointError: a tensor does not fit; if the loader stopped at it, the error names it.
            TypeError: the loader returned None, so that nothing could be checked.
        """
        try:
            loaded = load_weights(self)
        except CheckpointFileError:
            raise
        except CheckpointError as error:
            if self.exhausted or not self.names:
                raise
            misshapen = [f"{self.names[-1]}: {text}" for text in error.misshapen]
            raise CheckpointError(
                error.headline, unexpected=error.unexpected, misshapen=misshapen, complete=False
            ) from error
        except KeyError as error:
            # What looking an unknown name up in a dict of parameters raises.
            if self.exhausted or not self.names:
                raise
            raise CheckpointError(unexpected=[self.names[-1]], complete=False) from error
        if loaded is None:
            raise TypeError(f"load_weights of {owner} must return the set of names it filled, not None")
        return set(loaded)


class AutoWeightsLoader:
    """Walks ``(name, tensor)`` pairs down a module tree.

    A child module with its own ``load_weights`` gets its share, with names relative to it; a parameter with a
    ``weight_loader`` attribute is filled by that; everything else is copied. Persistent buffers are filled like
    parameters. A name that nothing takes is an error, unless it stands on one of the explicit lists.

    Args:
        module: root of the tree; names in the stream are relative to it.
        skip_prefixes, skip_substrs: checkpoint names to leave out.
        ignore_unexpected_prefixes, ignore_unexpected_suffixes: checkpoint names that may have no taker.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        skip_prefixes: list[str] | None = None,
        skip_substrs: list[str] | None = None,
        ignore_unexpected_prefixes: list[str] | None = None,
        ignore_unexpected_suffixes: list[str] | None = None,
    ) -> None:
        self.module = module
        self.skip_prefixes = tuple(skip_prefixes or ())
        self.skip_substrs = tuple(skip_substrs or ())
        self.ignore_unexpected_prefixes = tuple(ignore_unexpected_prefixes or ())
        self.ignore_unexpected_suffixes = tuple(ignore_unexpected_suffixes or ())

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Consume the stream; return the full names of what was filled.

        Names that an explicit list left out are returned too: they are accounted for, not lost.

        Raises:
            CheckpointError: names without a taker and tensors of the wrong shape, all of them in one error.
        """
        self._unexpected: list[str] = []
        self._misshapen: list[str] = []
        self._loaded: set[str] = set()
        self._headlines: list[str] = []
        self._complete = True
        self._load_module("", self.module, self._without_skipped(weights), is_root=True)
        if self._unexpected or self._misshapen or self._headlines:
            raise CheckpointError(
                "\n".join(dict.fromkeys(self._headlines)),
                unexpected=self._unexpected,
                misshapen=self._misshapen,
                loaded=self._loaded,
                complete=self._complete,
            )
        return self._loaded

    def _without_skipped(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            if name.startswith(self.skip_prefixes) or any(part in name for part in self.skip_substrs):
                self._loaded.add(name)
            else:
                yield name, tensor

    def _load_module(
        self, prefix: str, module: nn.Module, weights: Iterable[tuple[str, torch.Tensor]], *, is_root: bool = False
    ) -> None:
        own_loader = getattr(module, "load_weights", None)
        if not is_root and callable(own_loader):
            self._delegate(prefix, own_loader, weights)
            return

        children = dict(module.named_children())
        tensors = dict(module._parameters) | persistent_buffers(module)
        for head, group in itertools.groupby(weights, key=lambda item: item[0].partition(".")[0]):
            full = f"{prefix}.{head}" if prefix else head
            if head in children:
                relative = ((name.partition(".")[2], tensor) for name, tensor in group)
                self._load_module(full, children[head], relative)
            elif tensors.get(head) is not None:
                for name, tensor in group:
                    self._load_tensor(full, name.partition(".")[2], tensors[head], tensor)
            else:
                for name, _ in group:
                    self._without_taker(f"{prefix}.{name}" if prefix else name)

    def _delegate(
        self,
        prefix: str,
        own_loader: Callable[..., set[str] | None],
        weights: Iterable[tuple[str, torch.Tensor]],
    ) -> None:
        try:
            loaded = TrackedWeights(weights).feed(own_loader, repr(prefix))
        except CheckpointFileError:
            raise
        except CheckpointError as error:
            # Gather rather than stop, so that one error names every tensor that is wrong.
            error = error.with_prefix(prefix)
            self._complete &= error.complete
            self._loaded |= error.loaded
            self._misshapen += error.misshapen
            for name in error.unexpected:
                self._without_taker(name)
            if error.headline:
                self._headlines.append(f"{prefix}: {error.headline}")
            return
        self._loaded |= {f"{prefix}.{name}" for name in loaded}

    def _load_tensor(self, name: str, rest: str, param: torch.Tensor, tensor: torch.Tensor) -> None:
        if rest:
            self._without_taker(f"{name}.{rest}")
            return
        weight_loader = getattr(param, "weight_loader", default_weight_loader)
        try:
            weight_loader(param, tensor)
        except CheckpointError as error:
            self._misshapen += [f"{name}: {text}" for text in error.misshapen]
            if error.headline:
                self._headlines.append(f"{name}: {error.headline}")
        # A misshapen tensor had a taker: it is reported once, as misshapen, and not again as missing.
        self._loaded.add(name)

    def _without_taker(self, name: str) -> None:
        if name.startswith(self.ignore_unexpected_prefixes) or name.endswith(self.ignore_unexpected_suffixes):
            self._loaded.add(name)
        else:
            self._unexpected.append(name)
