"""Divide attention among the ranks of a sequence-parallel group."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst

from porter.rules.engine import SAME, Rule, code, definitions, method, statements, visit, with_method
from porter.rules.fold import dotted
from porter.rules.model.parallel_helpers import ATTENTION, ATTENTION_IMPORTS

LAYER, PARALLEL = "Attention", "SequenceParallelAttention"


class SequenceParallel(Rule):
    """Put the engine's attention layers between boundaries that divide attention among ranks, with an ``_sp_plan``.

    Heads of queries, keys and values are divided where they reach attention, and its result is put together behind it:
    what every rank has after Ulysses' exchange. What comes before (position embeddings, joined text and image, masks)
    is as on one rank whatever the model and the length: attention, the part that grows with the square of the length,
    is what ranks share. Projections and feed-forwards are not divided; tensor parallelism does that.

    Where diffusers states a plan for one sequence alone (``_cp_plan``), that is translated instead: the sequence is
    divided before the blocks, and the engine's layers exchange heads for positions.
    """

    name = "sequence-parallel"
    safety = SAME
    VALID = (
        """
        class ExampleTransformer2DModel(nn.Module):
            def __init__(self, dim, od_config=None):
                super().__init__()
                self.proj = nn.Linear(dim, dim)
        """,
    )
    INVALID = (
        (
            """
            class ExampleAttention(nn.Module):
                def __init__(self, heads, head_dim):
                    super().__init__()
                    self.attn = Attention(num_heads=heads, head_size=head_dim)


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, heads, head_dim, od_config=None):
                    super().__init__()
                    self.attn1 = ExampleAttention(heads, head_dim)
            """,
            """
            class ExampleAttention(nn.Module):
                def __init__(self, heads, head_dim):
                    super().__init__()
                    self.attn = SequenceParallelAttention(num_heads=heads, head_size=head_dim)


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, heads, head_dim, od_config=None):
                    super().__init__()
                    self.attn1 = ExampleAttention(heads, head_dim)
                    self._sp_plan = attention_plan(self)
            """,
        ),
    )

    def translate(self, definitions: list[Any], name: str, plan: ast.Dict) -> tuple[list[Any], list[int]]:
        """The definitions with diffusers' own plan for the class ``name``, and the place of that class."""
        text = ast.unparse(plan).replace("ContextParallel", "SequenceParallel")
        line = statements(f"_sp_plan = {text}\n")
        found = list(definitions)
        for place, node in enumerate(definitions):
            if isinstance(node, cst.ClassDef) and node.name.value == name:
                body = list(node.body.body)
                at = next((i for i, item in enumerate(body) if isinstance(item, cst.FunctionDef)), len(body))
                found[place] = node.with_changes(body=node.body.with_changes(body=[*body[:at], *line, *body[at:]]))
                return found, [place]
        return found, []

    def apply(self, definitions: list[Any]) -> tuple[list[Any], list[int]]:
        """The definitions with their layers divided, and the places of those that changed."""
        found, changed = list(definitions), []
        for place, node in enumerate(definitions):
            if isinstance(node, cst.ClassDef) and f"{LAYER}(" in code(node):
                new = visit(node, _Divide())
                if new is not node:
                    found[place] = new
                    changed.append(place)
        if not changed:
            return found, changed
        for place, node in enumerate(found):
            init = method(node, "__init__") if isinstance(node, cst.ClassDef) else None
            if init is not None and any(p.name.value == "od_config" for p in init.params.params):
                plan = statements("self._sp_plan = attention_plan(self)\n")
                body = init.body.with_changes(body=[*init.body.body, *plan])
                found[place] = with_method(node, init.with_changes(body=body), "__init__")
                changed.append(place)
        return found, changed


class _Divide(cst.CSTTransformer):
    """Builds divided layers where the engine's are built for an attribute."""

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        return updated.with_changes(func=cst.Name(PARALLEL)) if dotted(updated.func) == LAYER else updated


def helpers() -> list[Any]:
    """The definitions that the rule brings in."""
    return list(definitions(ATTENTION))


def imports() -> dict[str, tuple[str, str | None]]:
    """What those definitions need."""
    return dict(ATTENTION_IMPORTS)
