"""Replace diffusers' logger."""

from __future__ import annotations

import libcst as cst
import libcst.matchers as m

from porter.rules.engine import SURFACE, Context, Rule


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
        pattern = m.Assign(value=m.Call(func=m.Attribute(value=m.Name("logging"), attr=m.Name("get_logger"))))
        if not m.matches(updated, m.SimpleStatementLine(body=[pattern])):
            return updated
        ctx.need("vllm.logger", "init_logger")
        assign = updated.body[0].with_changes(value=cst.parse_expression("init_logger(__name__)"))
        return updated.with_changes(body=[assign], trailing_whitespace=cst.TrailingWhitespace())
