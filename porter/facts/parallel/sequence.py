"""Plans of sequence parallelism that diffusers states itself (``_cp_plan``)."""

from __future__ import annotations

import ast

# Arguments that are another sequence, or a mask: the engine's exchange would not know what belongs together.
BESIDE = ("encoder", "txt", "mask")


def stated_plan(node: ast.ClassDef) -> ast.Dict | None:
    """``_cp_plan`` of a model class, if the engine can follow it: one sequence is divided, and nothing beside it.

    With text that is divided as well, its length would have to be a multiple of the ranks, and masks would no longer
    fit. The engine counts attention as divided only behind a module whose result was divided.
    """
    for item in node.body:
        if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "_cp_plan":
            return item.value if isinstance(item.value, ast.Dict) and _is_followed(item.value) else None
    return None


def _is_followed(plan: ast.Dict) -> bool:
    has_output = has_gather = False
    for key, value in zip(plan.keys, plan.values):
        if not isinstance(key, ast.Constant):
            return False
        if isinstance(value, ast.Dict):
            for argument, spec in zip(value.keys, value.values):
                if not isinstance(argument, ast.Constant) or not isinstance(spec, ast.Call):
                    return False
                if isinstance(argument.value, str) and any(word in argument.value for word in BESIDE):
                    return False
                has_output |= isinstance(argument.value, int)
        elif isinstance(value, ast.Call):
            has_gather = True
        else:
            return False
    return has_output and has_gather
