"""Loggers with vLLM's ``*_once`` methods."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

_ROOT = "porter"


@cache
def _emit_once(logger: logging.Logger, level: int, message: str, args: tuple[Any, ...]) -> None:
    logger.log(level, message, *args, stacklevel=3)


class _OnceLogger(logging.LoggerAdapter):
    """A logger whose ``*_once`` methods say each (message, arguments) pair a single time per process."""

    def debug_once(self, message: str, *args: Any, **_: Any) -> None:
        _emit_once(self.logger, logging.DEBUG, message, args)

    def info_once(self, message: str, *args: Any, **_: Any) -> None:
        _emit_once(self.logger, logging.INFO, message, args)

    def warning_once(self, message: str, *args: Any, **_: Any) -> None:
        _emit_once(self.logger, logging.WARNING, message, args)


@cache
def _configure_root() -> None:
    # Messages go to stderr at WARNING unless the application, or PORTER_LOG_LEVEL, asks otherwise.
    level = os.environ.get("PORTER_LOG_LEVEL", "").upper()
    if level:
        root = logging.getLogger(_ROOT)
        root.setLevel(level)
        if not root.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
            root.addHandler(handler)


def init_logger(name: str) -> _OnceLogger:
    """The logger for module ``name``; loggers of ports (any other package) hang below ``porter`` too."""
    _configure_root()
    full = name if name == _ROOT or name.startswith(f"{_ROOT}.") else f"{_ROOT}.{name}"
    return _OnceLogger(logging.getLogger(full), {})
