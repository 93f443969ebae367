"""Parameters of a model that hold something for each head: where heads are split over ranks, each takes its own."""

from __future__ import annotations

import ast

import libcst as cst

from porter.facts.attention import HEADS, method
from porter.rules.engine import make_call
from porter.rules.fold import dotted
from porter.rules.trees import visit
from porter.source.walk import walk

PART = "rank_part"


def head_axes(model: ast.ClassDef) -> dict[str, int]:
    """Parameters of a class with an axis for heads, and that axis.

    ``self.frequencies = nn.Parameter(torch.zeros((3, num_attention_heads, size)))``, by what the constructor calls the
    number of heads.
    """
    init = method(model, "__init__")
    counts = {a.arg for a in (*init.args.args, *init.args.kwonlyargs)} & set(HEADS) if init is not None else set()
    found: dict[str, int] = {}
    for node in walk(init) if counts and init is not None else ():
        match node:
            case ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)],
                value=ast.Call(func=ast.Attribute(attr="Parameter") | ast.Name(id="Parameter")) as made,
            ):
                shapes = [n.elts for n in walk(made) if isinstance(n, ast.Tuple | ast.List)]
                axes = [
                    axis
                    for shape in shapes
                    for axis, size in enumerate(shape)
                    if isinstance(size, ast.Name) and size.id in counts
                ]
                if len(axes) == 1:
                    found[name] = axes[0]
    return found


def of_rank(model: cst.ClassDef, axes: dict[str, int]) -> cst.ClassDef:
    """The class with each rank's heads of those parameters wherever its methods read them."""
    taken = visit(model, _Taken(axes))
    assert isinstance(taken, cst.ClassDef)
    return taken


class _Taken(cst.CSTTransformer):
    def __init__(self, axes: dict[str, int]) -> None:
        super().__init__()
        self._axes = {f"self.{name}": axis for name, axis in axes.items()}

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        return node.name.value != "__init__"

    def leave_Attribute(self, original: cst.Attribute, updated: cst.Attribute) -> cst.BaseExpression:
        axis = self._axes.get(dotted(original) or "")
        return updated if axis is None else make_call(PART, [cst.Arg(updated), cst.Arg(cst.Integer(str(axis)))])
