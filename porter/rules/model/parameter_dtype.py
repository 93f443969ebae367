"""Give parameters that are made in an explicit dtype the dtype that the model is built in."""

from __future__ import annotations

import re

import libcst as cst

from porter.rules.engine import SAME, Context, Rule, code, identifiers, make_call
from porter.rules.fold import bindings, dotted

EXPLICIT = re.compile(r"\bdtype=torch\.(float32|float64|float)\b|\.(float|double)\(\)")


class ParameterDtype(Rule):
    """Cast a parameter whose initial value has a dtype of its own to the default dtype.

    ``from_pretrained`` casts all parameters to the dtype of the model; the engine builds the model under that dtype
    and fills what it finds. Parameters of ``_keep_in_fp32_modules`` are widened again at the end of the constructor.
    """

    name = "parameter-dtype"
    safety = SAME
    VALID = (
        """
        class ExampleBlock(nn.Module):
            def __init__(self, dim):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(dim))
        """,
    )
    INVALID = (
        (
            """
            class ExampleBlock(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    decay = torch.ones(dim, dtype=torch.float32)
                    self.decay = nn.Parameter(torch.log(decay))
            """,
            """
            class ExampleBlock(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    decay = torch.ones(dim, dtype=torch.float32)
                    self.decay = nn.Parameter(torch.log(decay).to(torch.get_default_dtype()))
            """,
        ),
    )

    def __init__(self) -> None:
        self._values: list[dict[str, cst.BaseExpression]] = []

    def visit_FunctionDef(self, ctx: Context, node: cst.FunctionDef) -> None:
        makes_parameters = "Parameter" in identifiers(node.body)
        self._values.append(bindings(node.body).values if makes_parameters else {})

    def leave_FunctionDef(self, ctx: Context, original: cst.FunctionDef, updated: cst.FunctionDef) -> cst.FunctionDef:
        self._values.pop()
        return updated

    def leave_Call(self, ctx: Context, original: cst.Call, updated: cst.Call) -> cst.Call:
        if dotted(updated.func) not in ("nn.Parameter", "torch.nn.Parameter") or not updated.args:
            return updated
        value = updated.args[0].value
        if not self._values or not self._is_explicit(code(value), set()):
            return updated
        if not isinstance(value, cst.Name | cst.Attribute | cst.Call):
            value = value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        ctx.imports["torch"] = ("torch", None)
        cast = make_call(cst.Attribute(value, cst.Name("to")), ["torch.get_default_dtype()"])
        return updated.with_changes(args=[updated.args[0].with_changes(value=cast), *updated.args[1:]])

    def _is_explicit(self, text: str, seen: set[str]) -> bool:
        """Whether an expression states a dtype, itself or through the local names that it reads."""
        if EXPLICIT.search(text):
            return True
        for name in set(re.findall(r"\w+", text)) - seen:
            value = self._values[-1].get(name)
            if value is not None and self._is_explicit(code(value), {*seen, name}):
                return True
        return False
