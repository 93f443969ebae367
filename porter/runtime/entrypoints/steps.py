"""Progress of a denoising loop, and a place to leave it, through the progress bar that every pipeline draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

# Called after each step with the number of steps done and, where it is known, of all.
OnStep = Callable[[int, int | None], None]


@contextlib.contextmanager
def watched_steps(pipeline: Any, on_step: OnStep | None) -> Iterator[None]:
    """Have ``on_step`` called after each step of a pipeline's loop; what it raises ends the loop there.

    Pipelines of diffusers and ports alike draw their loop with ``self.progress_bar``; one that draws none reports
    nothing. Of a pipeline that is made of pipelines, each is watched.
    """
    watched = [] if on_step is None else _drawing(pipeline)
    for owner in watched:
        draw = owner.progress_bar
        object.__setattr__(owner, "progress_bar", _watching(draw, on_step))  # shadows the method
    try:
        yield
    finally:
        for owner in watched:
            vars(owner).pop("progress_bar", None)


def _drawing(pipeline: Any) -> list[Any]:
    parts = [pipeline, *vars(pipeline).values(), *getattr(pipeline, "_modules", {}).values()]
    found = {id(part): part for part in parts if callable(getattr(part, "progress_bar", None))}
    return list(found.values())


def _watching(draw: Callable[..., Any], on_step: Any) -> Callable[..., Any]:
    def progress_bar(iterable: Iterable[Any] | None = None, total: int | None = None) -> _WatchedBar:
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        bar = draw(iterable) if iterable is not None else draw(total=total)
        return _WatchedBar(bar, total, on_step)

    return progress_bar


class _WatchedBar:
    """A progress bar that tells."""

    def __init__(self, bar: Any, total: int | None, on_step: OnStep) -> None:
        self._bar, self._total, self._on_step = bar, total, on_step
        self._done = 0

    def _advance(self, steps: int) -> None:
        self._done += steps
        self._on_step(self._done, self._total)

    def update(self, n: int = 1) -> None:
        self._bar.update(n)
        self._advance(int(n))

    def __iter__(self) -> Iterator[Any]:
        for item in self._bar:
            yield item
            self._advance(1)

    def __len__(self) -> int:
        return len(self._bar)

    def __enter__(self) -> _WatchedBar:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._bar.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
