"""Replace diffusers' logger."""

from __future__ import annotations

import libcst as cst

from porter.rules.engine import SURFACE, Context, Rule
from porter.rules.fold import dotted, only


class ReplaceLogger(Rule):
    """Replace diffusers' logger by vLLM's (guide, step 1.1.3)."""

    name = "replace-logger"
    safety = SURFACE
    VALID = ("logger = make_logger(__name__)\n",)
    INVALID = (
        (
            "logger = logging.get_logger(__name__)  # pylint: disable=invalid-name\n",
            "logger = init_logger(__name__)\n",
        ),
    )

    def leave_SimpleStatementLine(
        self, ctx: Context, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        node = only(updated)
        if not isinstance(node, cst.Assign) or not isinstance(node.value, cst.Call):
            return updated
        if dotted(node.value.func) != "logging.get_logger":
            return updated
        ctx.need("vllm.logger", "init_logger")
        assign = node.with_changes(value=cst.parse_expression("init_logger(__name__)"))
        return updated.with_changes(body=[assign], trailing_whitespace=cst.TrailingWhitespace())
