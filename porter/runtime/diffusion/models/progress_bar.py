"""A progress bar for denoising loops."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]


class ProgressBarMixin:
    """Gives a pipeline diffusers' ``progress_bar`` and ``set_progress_bar_config``."""

    _progress_bar_config: dict[str, Any]

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A tqdm bar over ``iterable``, or of length ``total``; silent unless stderr is a terminal.

        Raises:
            ValueError: neither is given.
        """
        if iterable is None and total is None:
            raise ValueError("progress_bar needs an iterable or a total")
        config = dict(getattr(self, "_progress_bar_config", {}))
        config.setdefault("disable", not sys.stderr.isatty())
        return tqdm(iterable, **config) if iterable is not None else tqdm(total=total, **config)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Keyword arguments for every later bar (``disable=False`` shows it anywhere)."""
        self._progress_bar_config = kwargs
