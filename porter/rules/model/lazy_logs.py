"""Format log messages where somebody reads them."""

from __future__ import annotations

from typing import Any

import libcst as cst

from porter.rules.engine import SURFACE, Context, Rule
from porter.rules.fold import dotted

_LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


class LazyLogs(Rule):
    """Hand the parts of a log message to the logger, which formats it if it is wanted (asked for by reviewers).

    Messages that say how a value is to be formatted (``{x:.2f}``, ``{x=}``) stay. So do those of the ``*_once``
    methods, which remember their arguments and therefore need ones that can be hashed.
    """

    name = "lazy-logs"
    safety = SURFACE
    VALID = (
        'logger.warning("100% of it")\n',
        'logger.info(f"{loss:.2f}")\n',
        'logger.warning_once(f"{names} are ignored")\n',
        'print(f"{name}")\n',
    )
    INVALID = (
        (
            'logger.warning(f"{name!r} takes 100% of {{it}}")\n',
            'logger.warning("%r takes 100%% of {it}", name)\n',
        ),
        (
            'logger.warning(\n    "cut off after"\n    f" {length} tokens: {text}"\n)\n',
            'logger.warning("cut off after %s tokens: %s", length, text)\n',
        ),
    )

    def leave_Call(self, ctx: Context, original: cst.Call, updated: cst.Call) -> cst.Call:
        owner, _, level = (dotted(updated.func) or "").rpartition(".")
        if owner != "logger" or level not in _LEVELS or not updated.args:
            return updated
        message, *others = updated.args
        if message.keyword is not None or message.star or any(not other.keyword for other in others):
            return updated
        values: list[cst.BaseExpression] = []
        made = _plain(message.value, values)
        if made is None or not values:
            return updated
        arguments = [cst.Arg(made), *map(cst.Arg, values), *others]
        return updated.with_changes(args=arguments, whitespace_before_args=cst.SimpleWhitespace(""))


def _plain(message: Any, values: list[cst.BaseExpression]) -> Any:
    """A message with ``%s`` where it had values, which are added to the list; None if that cannot be said so."""
    if isinstance(message, cst.ConcatenatedString):
        left, right = _plain(message.left, values), _plain(message.right, values)
        if left is None or right is None:
            return None
        return message.with_changes(left=left, right=right, lpar=[], rpar=[])
    if isinstance(message, cst.SimpleString):
        return message.with_changes(value=message.value.replace("%", "%%"), lpar=[], rpar=[])
    if not isinstance(message, cst.FormattedString):
        return None
    text = ""
    for part in message.parts:
        if isinstance(part, cst.FormattedStringText):
            text += part.value.replace("%", "%%").replace("{{", "{").replace("}}", "}")
        elif isinstance(part, cst.FormattedStringExpression):
            if part.format_spec is not None or part.equal is not None:
                return None
            text += f"%{part.conversion or 's'}"
            values.append(part.expression)
    start = message.start.replace("f", "").replace("F", "")
    return cst.SimpleString(f"{start}{text}{message.end}")
