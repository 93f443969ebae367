"""Which attributes of a module are the width of all its heads."""

from __future__ import annotations

import ast

from porter.facts.parallel.module import ModuleFacts, out_features, self_attribute


def width_attributes(facts: ModuleFacts) -> set[str]:
    """Attributes that a projection has for its number of outputs, and those that are as much."""
    found: set[str] = set()
    for call in facts.linears.values():
        outputs = out_features(call)
        name = self_attribute(outputs) if outputs is not None else None
        if name is not None and name not in facts.heads | facts.head_sizes:
            found.add(name)
    return found


def factors(node: ast.expr) -> list[ast.expr]:
    """The factors of a product, or the expression alone."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return [*factors(node.left), *factors(node.right)]
    return [node]
