"""Ports, delivered into the source tree of vLLM-Omni as a pull request would: text in, text out."""

from __future__ import annotations


class ExportError(RuntimeError):
    """What was asked for cannot be exported; nothing was written, and the message says what to do."""
