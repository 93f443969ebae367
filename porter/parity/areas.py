"""The sizes that pipelines have hard-coded, made smaller on both sides while tiny models are run."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Some pipelines resize every picture to a megapixel, whatever the call says. Both sides then get this fraction of the
# area, but never less than the least that a vision encoder takes.
_AREA_FRACTION = 1 / 256
_LEAST_AREA = 48 * 48
# Others choose the nearest of a table of sizes. Sides are divided by the first of these that leaves so many sizes to
# choose from, upright, lying and square, where all are as long as the least. They stay multiples of what all sides of
# the table are multiples of: a patch of the model, which must fit.
_SIDE_DIVISORS = (8, 4, 2)
_LEAST_CHOICE = 3
_LEAST_SIDE = 128


@contextlib.contextmanager
def small_areas(*pipelines: Any) -> Iterator[None]:
    """Scale down the target areas and the sizes to choose from that pipelines have hard-coded, on all of them alike."""
    with contextlib.ExitStack() as stack:
        for owner in {id(owner): owner for pipeline in pipelines for owner in _size_owners(pipeline)}.values():
            for name, table in list(vars(owner).items()):
                small = _smaller(table)
                if small is not None and not _is_configured(owner, table):
                    stack.callback(setattr, owner, name, table)
                    setattr(owner, name, small)
        for module in {id(module): module for module in map(_module_of, pipelines)}.values():
            original = getattr(module, "calculate_dimensions", None)
            if callable(original):
                stack.callback(setattr, module, "calculate_dimensions", original)
                module.calculate_dimensions = _scaled(original)
        yield


def _size_owners(pipeline: Any) -> list[Any]:
    """What may hold tables of sizes: a pipeline, its module, and the modules of its processors."""
    processors = [value for name, value in vars(pipeline).items() if name.endswith("processor")]
    return [pipeline, _module_of(pipeline), *map(_module_of, processors)]


def _smaller(table: Any) -> Any:
    """A table of sizes with smaller ones: pairs of at least ``_LEAST_SIDE`` in a list, or lists of them by a key."""
    if isinstance(table, dict) and table:
        found = {key: _smaller(value) for key, value in table.items()}
        return None if any(value is None for value in found.values()) else found
    if not isinstance(table, list | tuple) or len(table) < 2:
        return None
    pairs: list[Any] = [pair for pair in table if isinstance(pair, list | tuple) and len(pair) == 2]
    if len(pairs) < len(table) or not all(isinstance(n, int) and n >= _LEAST_SIDE for pair in pairs for n in pair):
        return None
    unit = math.gcd(*(n for pair in pairs for n in pair))
    for divisor in _SIDE_DIVISORS:
        small = [type(pair)(max(1, n // divisor // unit) * unit for n in pair) for pair in pairs]
        if len({tuple(pair) for pair in small}) >= min(_LEAST_CHOICE, len(pairs)):
            break
    return type(table)(small)


def _is_configured(owner: Any, table: Any) -> bool:
    """Whether a checkpoint brings this table: it is as small as that is."""
    held = vars(owner)
    components = (*held.values(), *held.get("_modules", {}).values())  # of diffusers' pipeline, of a port
    configs = (getattr(component, "config", None) for component in components)
    brought = (value for config in configs if isinstance(config, Mapping) for value in config.values())
    return any(_listed(value) == _listed(table) for value in brought)


def _listed(table: Any) -> Any:
    return [_listed(item) for item in table] if isinstance(table, list | tuple) else table


def _module_of(pipeline: Any) -> Any:
    return sys.modules[type(pipeline).__module__]


def _scaled(original: Callable[..., Any]) -> Callable[..., Any]:
    areas: set[float] = set()

    def calculate_dimensions(target_area: float, *args: Any, **kwargs: Any) -> Any:
        areas.add(float(target_area))
        return original(max(target_area * _AREA_FRACTION, _LEAST_AREA), *args, **kwargs)

    calculate_dimensions.areas = areas  # type: ignore[attr-defined]
    return calculate_dimensions


def asked_areas(pipeline: Any) -> set[float]:
    """The areas that were asked for since the set was emptied, before they were scaled down."""
    function = getattr(_module_of(pipeline), "calculate_dimensions", None)
    found: set[float] = getattr(function, "areas", set())
    return found
