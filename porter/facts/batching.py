"""Whether requests of a pipeline can be one call over all their prompts, each with what it would get alone."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from porter.source.walk import walk

# What a call needs for prompts of several requests, each with noise of its own.
NEEDED = ("prompt", "generator")
# Reductions that mix samples where they name no dimension.
REDUCTIONS = frozenset({"mean", "std", "var", "norm", "sum", "max", "min", "amax", "amin"})
DIMENSIONS = frozenset({"dim", "axis"})
FIXED = "max_length"


def batch_refusal(functions: Iterable[ast.FunctionDef], parameters: Sequence[str]) -> str:
    """Why requests cannot be put together; empty if they can.

    Prompts that are padded to the longest of a batch are encoded with other padding, and so to other embeddings, than
    each alone. What is reduced over a whole tensor mixes samples. A call may also take one prompt at a time only.

    Args:
        functions: what the pipeline's call runs of its own source.
        parameters: of the call.
    """
    missing = [name for name in NEEDED if name not in parameters]
    if missing:
        return f"its call has no {missing[0]}"
    paddings: list[ast.expr] = []
    for function in functions:
        told = _only_told(function)
        for node in walk(function):
            if isinstance(node, ast.Call) and node not in told:
                paddings += [keyword.value for keyword in node.keywords if keyword.arg == "padding"]
                if _mixes(node):
                    return f"{function.name} reduces over all samples: {ast.unparse(node)}"
            elif isinstance(node, ast.If) and _refuses_batches(node):
                return f"{function.name} takes one prompt at a time"
    if not paddings:
        return "nothing says that prompts get equal lengths"
    other = [value for value in paddings if not (isinstance(value, ast.Constant) and value.value == FIXED)]
    return f"prompts are padded by {ast.unparse(other[0])!r}, not to a length of their own" if other else ""


def _only_told(function: ast.FunctionDef) -> set[ast.AST]:
    """The nodes of assignments whose value is read for a message in the log alone."""
    conditions = [node for node in walk(function) if isinstance(node, ast.If) and _logs(node)]
    inside = {item for condition in conditions for item in walk(condition)}
    reads = [node for node in walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    only = {node.id for node in reads if node in inside} - {node.id for node in reads if node not in inside}
    assigns = [node for node in walk(function) if isinstance(node, ast.Assign)]
    own = [a for a in assigns if isinstance(a.targets[0], ast.Name) and a.targets[0].id in only]
    return {item for assign in own for item in walk(assign.value)}


def _logs(node: ast.If) -> bool:
    """Whether a condition leads to nothing but a message."""
    last = node.body[-1]
    is_message = isinstance(last, ast.Expr) and ast.unparse(last).startswith(("logger.", "warnings."))
    return is_message and all(isinstance(item, ast.Assign | ast.Expr) for item in node.body)


def _mixes(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in REDUCTIONS:
        return False
    of_module = isinstance(call.func.value, ast.Name) and call.func.value.id in ("torch", "np", "numpy", "math")
    named = any(keyword.arg in DIMENSIONS for keyword in call.keywords)
    return not named and len(call.args) <= int(of_module)


def _refuses_batches(node: ast.If) -> bool:
    """``if batch_size > 1: raise``, in whatever form."""
    compared = [item for item in walk(node.test) if isinstance(item, ast.Compare)]
    about = any("batch_size" in ast.unparse(item.left) or "len(prompt)" in ast.unparse(item.left) for item in compared)
    one = any(isinstance(c, ast.Constant) and c.value == 1 for item in compared for c in item.comparators)
    return about and one and any(isinstance(item, ast.Raise) for item in node.body)
