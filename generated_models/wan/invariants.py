"""Work that every step of a request repeats, done once: its results are held with the request.

What a request hands to all of its steps alike (embeddings of prompts, masks, ids) is known when its first step begins.
``once`` holds the result of a call that is given nothing but such values and results of such calls, and hands it out
when the same call is made with the same values: same place in memory, never written to since.
"""

from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from types import BuiltinMethodType
from typing import Any

import torch
from torch import nn

_PLAIN = (type(None), bool, int, str, bytes, torch.dtype, torch.device, torch.Size, type(...))
_TENSORS = (torch.Tensor, nn.Parameter, nn.Buffer)
_holding: ContextVar["Invariants | None"] = ContextVar("invariants", default=None)


def once(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``, whose result the request at hand may hold from one of its earlier steps.

    Args:
        function: a module, a tensor's method, or a function that computes nothing but its result, and the same from
            the same values.
    """
    if torch.compiler.is_compiling():
        return function(*args, **kwargs)
    held = _holding.get()
    return function(*args, **kwargs) if held is None else held.result(function, args, kwargs)


@torch.compiler.disable
def once_apart(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As :func:`once`, for a function that asks a tensor for its values: the end of a graph wherever it stands.

    Left out of compiled code, it ends the graph in one place, and its result is held there as well.
    """
    return once(function, *args, **kwargs)


class holding:
    """Let ``once`` hold results in ``held`` while the block runs."""

    def __init__(self, held: "Invariants | None") -> None:
        self.held = held

    def __enter__(self) -> None:
        self.token = _holding.set(self.held)

    def __exit__(self, *_: object) -> None:
        _holding.reset(self.token)


class Invariants:
    """The results that one request holds.

    Attributes:
        limit: bytes that it may hold.
        nbytes: bytes that it holds.
        hits: results that were handed out again.
        stale: results that were written to after they were computed, and had to be computed anew.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes, self.hits, self.stale = limit, 0, 0, 0
        self._known: dict[int, torch.Tensor] = {}
        """By storage: a tensor in it, which keeps the place taken, if it is no weight that moves."""
        self._weights: dict[int, torch.Tensor] = {}
        """Those of modules that were handed on, by identity."""
        self._entries: dict[Hashable, tuple[Any, list[tuple[torch.Tensor, int]]] | None] = {}
        self._shortcuts: dict[Hashable, _Shortcut] = {}
        """By function and the identity of its arguments."""
        self._latest: dict[Hashable, Hashable] = {}
        """The one shortcut to an entry, by the entry's key."""

    @property
    def results(self) -> int:
        """How many results are held."""
        return sum(entry is not None for entry in self._entries.values())

    def know(self, values: Any, changing: Any = ()) -> Any:
        """Take tensors for the same in all steps; returns ``values`` with those that are held in their place.

        Tensors of inference mode do not count how often they were written to. They are held as copies that do.

        Args:
            values: tensors in tuples, lists and dictionaries.
            changing: tensors that steps change; what shares memory with them is not known.
        """
        apart = {_place(tensor) for tensor in _tensors(changing)}
        copies: dict[int, torch.Tensor] = {}
        return _mapped(values, lambda tensor: self._knows(tensor, apart, copies))

    def _knows(self, tensor: torch.Tensor, apart: set[int], copies: dict[int, torch.Tensor]) -> torch.Tensor:
        if not _is_plain(tensor) or _place(tensor) in apart:
            return tensor
        if tensor.is_inference():
            with torch.inference_mode(False), torch.no_grad():
                if _place(tensor) not in copies:
                    copies[_place(tensor)] = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
                        tensor.untyped_storage().clone()
                    )
                # Views of one tensor: they count together.
                whole = copies[_place(tensor)]
                typed = whole[: len(whole) // tensor.itemsize * tensor.itemsize].view(tensor.dtype)
                tensor = typed.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        self._known[_place(tensor)] = tensor
        return tensor

    def result(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See :func:`once`."""
        # Most calls are made with the very objects of the step before: looking at them costs less than naming them.
        is_method = type(function) is BuiltinMethodType and isinstance(function.__self__, torch.Tensor)
        owner = (function.__self__,) if is_method else ()
        given = (*owner, *args, *kwargs.values())
        same = (function.__name__ if is_method else function, len(args), *kwargs, *map(id, given))
        known = self._shortcuts.get(same)
        if known is not None and known.holds():
            self.hits += 1
            return known.result if known.is_tensor else _handed_out(known.result)
        try:
            named = ((name, self._key(value)) for name, value in kwargs.items())
            key = (self._key_of_function(function), *map(self._key, args), *named)
        except _Unknown:
            return function(*args, **kwargs)
        entry = self._entries.get(key)
        if entry is None:
            return function(*args, **kwargs) if key in self._entries else self._compute(key, function, args, kwargs)
        result, versions = entry
        if all(tensor._version == version for tensor, version in versions):
            self.hits += 1
            if not any(isinstance(value, (tuple, list)) for value in given):
                self._shortcuts.pop(self._latest.get(key), None)  # objects that are made anew in each step
                self._shortcuts[same], self._latest[key] = _Shortcut(given, result, versions), same
            return _handed_out(result)
        self.stale += 1
        self._entries[key] = None
        return function(*args, **kwargs)

    def _compute(self, key: Hashable, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        self._entries[key] = None
        owners = [
            part for part in (function, getattr(function, "__self__", None), *args) if isinstance(part, nn.Module)
        ]
        if any(map(_is_watched, owners)):
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            result = function(*args, **kwargs)
        tensors = list(_tensors(result))
        fresh = {_place(tensor): tensor for tensor in tensors if self._owner(tensor) is None}
        size = sum(tensor.untyped_storage().nbytes() for tensor in fresh.values())
        # What lies in a module's own memory is not the request's to hold.
        lent = {_place(weight) for owner in owners for weight in (*owner.parameters(), *owner.buffers())}
        if _can_be_held(result) and self.nbytes + size <= self.limit and not fresh.keys() & lent:
            self.nbytes += size
            self._known |= fresh
            self._entries[key] = (_handed_out(result), [(tensor, tensor._version) for tensor in tensors])
        return result

    def _owner(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The known tensor whose memory a tensor lies in; None also where that has gone and its place is taken anew."""
        owner = self._known.get(_place(tensor))
        return owner if owner is not None and _place(owner) == _place(tensor) else None

    def _key_of_function(self, function: Callable[..., Any]) -> Hashable:
        owner = getattr(function, "__self__", None)
        return (function.__name__, self._key(owner)) if isinstance(owner, torch.Tensor) else function

    def _key(self, value: Any) -> Hashable:
        if isinstance(value, torch.Tensor):
            if not _is_plain(value):
                raise _Unknown
            owner = self._owner(value)
            if owner is None:
                # A weight that a module hands on, or a view of it.
                weight = value if isinstance(value, nn.Parameter) else value._base
                if not isinstance(weight, nn.Parameter) or weight.is_inference():
                    raise _Unknown
                owner = self._known[_place(value)] = self._weights[id(weight)] = weight
            # Where a weight lies says little: layer-wise offload takes it away and brings it back to another place.
            offset = value.storage_offset() - owner.storage_offset()
            geometry = (offset, value.shape, value.stride(), value.dtype)
            return id(owner), geometry, value._version, value.is_conj(), value.is_neg()
        if isinstance(value, _PLAIN):
            return type(value), value
        if isinstance(value, float):
            return value.hex()
        if type(value) in (tuple, list):
            return type(value), *map(self._key, value)
        if isinstance(value, nn.Module):
            return value
        raise _Unknown


class _Unknown(Exception):
    """An argument may be another one in each step."""


class _Shortcut:
    """A result, by the very objects that the call was given; tensors among them may have become others since.

    Attributes:
        given: those objects, kept so that no others take their identity.
        result: of the call.
        is_tensor: whether the result is one tensor.
    """

    __slots__ = ("given", "result", "is_tensor", "_tensors", "_written")

    def __init__(self, given: tuple[Any, ...], result: Any, written: list[tuple[torch.Tensor, int]]) -> None:
        self.given, self.result, self._written = given, result, written
        self.is_tensor = isinstance(result, torch.Tensor)
        tensors = [value for value in given if isinstance(value, torch.Tensor)]
        self._tensors = [(t, t._version, t.data_ptr(), t.shape, t.stride()) for t in tensors]

    def holds(self) -> bool:
        """Whether no tensor was written to, or made to show other memory. Plain loops: it is asked in each step."""
        for tensor, version, place, shape, stride in self._tensors:
            if tensor._version != version or tensor.data_ptr() != place:
                return False
            if tensor.shape != shape or tensor.stride() != stride:
                return False
        for tensor, version in self._written:
            if tensor._version != version:
                return False
        return True


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in _TENSORS and tensor.layout is torch.strided


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        if _is_plain(values):
            yield values
    elif isinstance(values, (tuple, list, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _mapped(values: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``values`` with each tensor changed; a container in which nothing changed is still the same one."""
    if isinstance(values, torch.Tensor):
        return change(values)
    if type(values) is dict:
        made = {key: _mapped(value, change) for key, value in values.items()}
        return made if any(made[key] is not value for key, value in values.items()) else values
    if type(values) in (tuple, list):
        items = [_mapped(value, change) for value in values]
        return type(values)(items) if any(new is not old for new, old in zip(items, values)) else values
    return values


def _handed_out(result: Any) -> Any:
    """A result in lists of its own, since whoever gets a list may change it."""
    return type(result)(map(_handed_out, result)) if type(result) in (tuple, list) else result


def _can_be_held(result: Any) -> bool:
    """Whether a result can be handed out again: tensors that count how often they were written to, and plain values."""
    if isinstance(result, torch.Tensor):
        return _is_plain(result) and not result.is_inference()
    if type(result) in (tuple, list):
        return all(map(_can_be_held, result))
    return isinstance(result, (*_PLAIN, float))


def _is_watched(module: nn.Module) -> bool:
    """Whether something wants to be there whenever a module runs: a hook, or what took the place of its forward."""
    return any(m._forward_hooks or m._forward_pre_hooks or _is_replaced(m) for m in module.modules())


def _is_replaced(module: nn.Module) -> bool:
    """Whether a module's forward is another than its class's; compiled, it is still the same one."""
    forward = vars(module).get("forward")
    original = getattr(forward, "_torchdynamo_orig_callable", forward)
    return forward is not None and getattr(original, "__func__", None) is not type(module).forward
