"""Take work out of the denoising loop that is the same in each of its steps."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

import libcst as cst

from porter.facts.runs import Run
from porter.facts.scope import FileScope
from porter.facts.steady import Site, SteadyCalls
from porter.rules.engine import SAME, Rule, code, to_ast, visit
from porter.rules.model.apart import set_apart
from porter.source import SourceTree

ONCE, ONCE_APART = "once", "once_apart"


class HoistInvariants(Rule):
    """Wrap calls into ``once`` whose arguments are the same in every step of a request.

    Projections of text to keys and values in cross-attention, captions' embedders, refiners of the context: the first
    step computes them, and the request holds the results for the others (``invariants.py`` of the family). The calls
    are found by following values from the model's forward (:mod:`porter.facts.steady`); calls that do more than compute
    their result are left alone (:mod:`porter.facts.purity`). A result is handed out again only for the very tensors,
    never written to since, that it was computed from, so a wrapped call computes what it did, bit for bit.

    What a method computes inline, position tables made of a mask's lengths, say, becomes a method of its own where a
    held call is given its result (:mod:`porter.facts.runs`); alone it is not worth a line. If it asks tensors for their
    values, ``torch.compile`` could not go through it; it is left out as a whole then.
    """

    name = "hoist-invariants"
    safety = SAME
    VALID = (
        """
        class ExampleTransformer2DModel(nn.Module):
            def __init__(self, dim):
                super().__init__()
                self.norm = nn.LayerNorm(dim)
                self.proj = nn.Linear(dim, dim)

            def forward(self, hidden_states, encoder_hidden_states, timestep):
                noisy = torch.randn_like(encoder_hidden_states)
                return self.proj(self.norm(hidden_states)) + self.proj(noisy) + self.proj(timestep)
        """,
    )
    INVALID = (
        (
            """
            class ExampleAttention(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.to_q = nn.Linear(dim, dim)
                    self.to_k = nn.Linear(dim, dim)

                def forward(self, hidden_states, encoder_hidden_states=None):
                    if encoder_hidden_states is None:
                        encoder_hidden_states = hidden_states
                    return self.to_q(hidden_states) * self.to_k(encoder_hidden_states)


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.text = nn.Linear(dim, dim)
                    self.blocks = nn.ModuleList([ExampleAttention(dim) for _ in range(2)])

                def forward(self, hidden_states, encoder_hidden_states, timestep):
                    encoder_hidden_states = self.text(encoder_hidden_states)
                    for block in self.blocks:
                        hidden_states = block(hidden_states) + timestep
                        hidden_states = block(hidden_states, encoder_hidden_states)
                    return hidden_states
            """,
            """
            class ExampleAttention(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.to_q = nn.Linear(dim, dim)
                    self.to_k = nn.Linear(dim, dim)

                def forward(self, hidden_states, encoder_hidden_states=None):
                    if encoder_hidden_states is None:
                        encoder_hidden_states = hidden_states
                    return self.to_q(hidden_states) * once(self.to_k, encoder_hidden_states)


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.text = nn.Linear(dim, dim)
                    self.blocks = nn.ModuleList([ExampleAttention(dim) for _ in range(2)])

                def forward(self, hidden_states, encoder_hidden_states, timestep):
                    encoder_hidden_states = once(self.text, encoder_hidden_states)
                    for block in self.blocks:
                        hidden_states = block(hidden_states) + timestep
                        hidden_states = block(hidden_states, encoder_hidden_states)
                    return hidden_states
            """,
        ),
        (
            """
            class ExampleTables:
                def __init__(self, dim):
                    self.dim = dim
                    self.table = None

                def __call__(self, lengths):
                    if self.table is None:
                        self.table = torch.arange(self.dim)
                    return self.table[lengths]


            class ExampleRefiner(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.proj = nn.Linear(dim, dim)

                def forward(self, text, table):
                    return self.proj(text) + table


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.tables = ExampleTables(dim)
                    self.refiner = nn.ModuleList([ExampleRefiner(dim) for _ in range(2)])

                def forward(self, hidden_states, encoder_hidden_states, mask):
                    height = hidden_states.shape[2]
                    # Positions of the text.
                    lengths = mask.sum(dim=1).tolist()
                    table = torch.zeros(2, height)
                    table[:, : len(lengths)] = self.tables.dim
                    for layer in self.refiner:
                        encoder_hidden_states = (layer(encoder_hidden_states, table))
                    return hidden_states + encoder_hidden_states
            """,
            """
            class ExampleTables:
                def __init__(self, dim):
                    self.dim = dim
                    self.table = None

                def __call__(self, lengths):
                    if self.table is None:
                        self.table = torch.arange(self.dim)
                    return self.table[lengths]


            class ExampleRefiner(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.proj = nn.Linear(dim, dim)

                def forward(self, text, table):
                    return self.proj(text) + table


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.tables = ExampleTables(dim)
                    self.refiner = nn.ModuleList([ExampleRefiner(dim) for _ in range(2)])

                def _steady_part_of_forward(self, height, mask):
                    lengths = mask.sum(dim=1).tolist()
                    table = torch.zeros(2, height)
                    table[:, : len(lengths)] = self.tables.dim
                    return table

                def forward(self, hidden_states, encoder_hidden_states, mask):
                    height = hidden_states.shape[2]
                    # Positions of the text.
                    table = once_apart(self._steady_part_of_forward, height, mask)
                    for layer in self.refiner:
                        encoder_hidden_states = (once(layer, encoder_hidden_states, table))
                    return hidden_states + encoder_hidden_states
            """,
        ),
    )

    def apply(
        self,
        definitions: list[Any],
        model: str,
        imports: dict[str, tuple[str, str | None]] | None = None,
        tree: SourceTree | None = None,
    ) -> tuple[list[Any], list[int]]:
        """The definitions with calls wrapped, and the places of those that changed.

        Args:
            definitions: of the file.
            model: the class whose forward is called in each step.
            imports: what the file imports: bound name to (module, name).
            tree: where the code of imported classes of diffusers is found.
        """
        trees = [
            to_ast(node).body[0] if isinstance(node, cst.ClassDef | cst.FunctionDef) else None for node in definitions
        ]
        named = {node.name: node for node in trees if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        if ONCE in named:
            return definitions, []
        found: dict[str, list[Site | Run]] = {}
        for site in SteadyCalls(FileScope(tree, named, imports or {}), named.values()).of_model(model):
            found.setdefault(site.definition, []).append(site)
        nodes, changed = list(definitions), []
        for place, node in enumerate(definitions):
            sites = found.get(getattr(trees[place], "name", ""), [])
            if sites:
                lines = [line.encode() for line in code(node).split("\n")]
                calls = {
                    (site.function, _packed(_segment(lines, site.call))) for site in sites if isinstance(site, Site)
                }
                nodes[place] = visit(node, _Wrap(calls))
                runs = [site for site in sites if isinstance(site, Run)]
                if runs:
                    nodes[place] = set_apart(nodes[place], runs, ONCE, ONCE_APART)
                if nodes[place] is not node:
                    changed.append(place)
        return nodes, changed


def held_by(definitions: Iterable[Any]) -> list[str]:
    """The functions that hold results, of those that some definitions call."""
    texts = [code(node) for node in definitions]
    return [name for name in (ONCE, ONCE_APART) if any(f"{name}(" in text for text in texts)]


class _Wrap(cst.CSTTransformer):
    """Wraps calls, given by the function around them and their text."""

    def __init__(self, calls: set[tuple[str, str]]) -> None:
        super().__init__()
        self._calls = calls
        self._texts = {text for _, text in calls}
        self._functions: list[str] = []

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        self._functions.append(node.name.value)
        return any(function == node.name.value for function, _ in self._calls)

    def leave_FunctionDef(self, original: cst.FunctionDef, updated: cst.FunctionDef) -> cst.FunctionDef:
        self._functions.pop()
        return updated

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        bare = original.with_changes(lpar=(), rpar=()) if original.lpar else original  # as ast sees it
        text = _packed(code(bare))
        if text not in self._texts or (self._functions[-1:] and (self._functions[-1], text) not in self._calls):
            return updated
        comma = _COMMA if updated.args else cst.MaybeSentinel.DEFAULT
        return updated.with_changes(func=cst.Name(ONCE), args=[cst.Arg(updated.func, comma=comma), *updated.args])


def _segment(lines: list[bytes], node: ast.expr) -> str:
    """The text of a node: ``ast.get_source_segment`` would split the lines again for each."""
    assert node.end_lineno is not None
    held = lines[node.lineno - 1 : node.end_lineno]
    held[-1] = held[-1][: node.end_col_offset]
    held[0] = held[0][node.col_offset :]
    return b"\n".join(held).decode()


def _packed(text: str) -> str:
    """A text without its layout: a node by itself is indented otherwise than in its place."""
    return "".join(text.split())


_COMMA = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
