"""Faults that can be made in any code."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from porter.parity.mutants.context import Change, Context

# The order of their arguments does not matter, or they only ask what something is.
_COMMUTATIVE = frozenset(("max", "min", "torch.equal", "torch.maximum", "torch.minimum", "math.gcd", "isinstance"))
_TEXT = (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString)


def swap_arguments(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """Two neighbouring positional arguments of a call are exchanged."""
    if not isinstance(node, cst.Call) or context.text(node.func) in _COMMUTATIVE:
        return
    if isinstance(node.func, cst.Attribute) and node.func.attr.value in ("transpose", "swapaxes"):
        return  # the same two axes
    plain = [arg.value for arg in node.args if arg.keyword is None and not arg.star]
    for first, second in zip(plain, plain[1:]):
        if context.text(first) != context.text(second):
            yield context.swap(first, second)


def drop_term(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """An operation is left out: only what stood left of it remains."""
    if not isinstance(node, cst.BinaryOperation):
        return
    operators = (cst.Add, cst.Subtract, cst.Multiply, cst.Divide, cst.FloorDivide, cst.MatrixMultiply)
    if isinstance(node.operator, operators) and not isinstance(node.left, _TEXT) and not isinstance(node.right, _TEXT):
        yield context.replace(node, f"({context.text(node.left)})")


def change_constant(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A number is changed: by 1 %, a whole one by 1."""
    if isinstance(context.parents[-2] if len(context.parents) > 1 else None, cst.Param):
        return  # replace-default
    if isinstance(node, cst.Float):
        yield context.replace(node, repr(float(node.value) * 1.01 or 0.01))
    elif isinstance(node, cst.Integer):
        yield context.replace(node, str(int(node.value.replace("_", ""), 0) + 1))


def change_dtype(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A floating type is another one, or a conversion to single precision is one to half."""
    if isinstance(node, cst.Attribute):
        if context.text(node) in ("torch.float32", "torch.float64"):
            yield context.replace(node, "torch.bfloat16")
        elif node.attr.value == "dtype" and isinstance(context.parents[-2], cst.Arg):
            yield context.replace(node, "torch.bfloat16")
    elif isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute) and not node.args:
        if node.func.attr.value == "float":
            yield context.replace(node.func.attr, "bfloat16")


def transpose_axes(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """Two neighbouring axes are exchanged."""
    if not isinstance(node, cst.Call) or not isinstance(node.func, cst.Attribute):
        return
    axes = [arg.value for arg in node.args if arg.keyword is None and not arg.star]
    if node.func.attr.value in ("permute", "view", "reshape") and len(axes) > 2:
        for first, second in zip(axes, axes[1:]):
            if context.text(first) != context.text(second):
                yield context.swap(first, second)
    elif node.func.attr.value == "transpose" and len(axes) == 2:
        yield context.replace(node, f"({context.text(node.func.value)})")


def skip_weight(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A tensor of the checkpoint is passed over though it counts as loaded, or two of one shape change places."""
    if not isinstance(node, cst.For) or not context.function.endswith(".load_weights"):
        return
    items = context.text(node.iter)
    helper = '__import__("porter.parity.mutants.faults", fromlist=["faults"])'
    for number in (0, 7):
        yield context.replace(node.iter, f"{helper}.without_values({items}, {number})")
    yield context.replace(node.iter, f"{helper}.exchanged({items})")


def off_by_one(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A loop passes over its last turn, or over its first."""
    if isinstance(node, cst.For):
        text = context.text(node.iter)
        yield context.replace(node.iter, f"list({text})[:-1]")
        yield context.replace(node.iter, f"list({text})[1:]")


def replace_default(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A parameter that is left out gets another value."""
    if not isinstance(node, cst.Param) or node.default is None:
        return
    default = node.default
    if isinstance(default, cst.Integer):
        yield context.replace(default, str(int(default.value.replace("_", ""), 0) + 1))
    elif isinstance(default, cst.Float):
        yield context.replace(default, repr(float(default.value) * 1.01 or 0.01))
    elif isinstance(default, cst.Name) and default.value in ("True", "False"):
        yield context.replace(default, str(default.value == "False"))


MUTATORS = {
    "swap-arguments": swap_arguments,
    "drop-term": drop_term,
    "change-constant": change_constant,
    "change-dtype": change_dtype,
    "transpose-axes": transpose_axes,
    "skip-weight": skip_weight,
    "off-by-one": off_by_one,
    "replace-default": replace_default,
}
