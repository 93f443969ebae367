"""Hand the quantization config, and names, to the layers that can be quantized."""

from __future__ import annotations

from typing import Any

import libcst as cst

from porter.rules.engine import (
    SURFACE,
    Rule,
    body_statements,
    code,
    identifiers,
    make_call,
    method,
    statements,
    visit,
    with_method,
)
from porter.rules.fold import dotted
from porter.rules.trees import names_in, nodes

LAYERS = (
    "ColumnParallelLinear",
    "MergedColumnParallelLinear",
    "PackedRowParallelLinear",
    "ParallelFeedForward",
    "QKVParallelLinear",
    "RowParallelLinear",
)

# A config lists layers to leave out by their diffusers names; with this it knows the layer that they became.
MERGED = """
if quant_config is not None:
    quant_config.packed_modules_mapping = self.packed_modules_mapping
"""


class ThreadQuantization(Rule):
    """Pass ``quant_config`` and ``prefix`` from the model down to each split projection.

    The engine's layers are quantized as their config says, by their names; the config is the engine's
    (``od_config.quantization_config``), and the names are diffusers' own. Projections that stay ``nn.Linear`` are not
    quantized: modulation, embedders and the last projection, which the engine's own models keep whole as well.
    """

    name = "thread-quantization"
    safety = SURFACE
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
            class ExampleBlock(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.to_q = ColumnParallelLinear(dim, dim, return_bias=False)
                    self.to_out = nn.ModuleList([RowParallelLinear(dim, dim, return_bias=False)])


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim, num_layers, od_config=None):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleBlock(dim) for _ in range(num_layers)])
            """,
            """
            class ExampleBlock(nn.Module):
                def __init__(self, dim, *, quant_config=None, prefix=""):
                    super().__init__()
                    self.to_q = ColumnParallelLinear(
                        dim, dim, return_bias=False, quant_config=quant_config, prefix=f"{prefix}.to_q"
                    )
                    self.to_out = nn.ModuleList(
                        [
                            RowParallelLinear(
                                dim,
                                dim,
                                return_bias=False,
                                quant_config=quant_config,
                                prefix=f"{prefix}.to_out.0",
                            )
                        ]
                    )


            class ExampleTransformer2DModel(nn.Module):
                def __init__(self, dim, num_layers, od_config=None):
                    super().__init__()
                    quant_config = getattr(od_config, "quantization_config", None)
                    self.blocks = nn.ModuleList(
                        [
                            ExampleBlock(dim, quant_config=quant_config, prefix=f"blocks.{index}")
                            for index in range(num_layers)
                        ]
                    )
            """,
        ),
    )

    def apply(self, definitions: list[Any]) -> tuple[list[Any], list[int]]:
        """The definitions with the config handed down, and the places of those that changed."""
        inits = {
            place: init
            for place, node in enumerate(definitions)
            if isinstance(node, cst.ClassDef) and (init := method(node, "__init__")) is not None
        }
        roots = [place for place, init in inits.items() if _has(init, "od_config")]
        built = {place: _called(init) for place, init in inits.items()}
        names = {place: definitions[place].name.value for place in inits}
        taking = {place for place, called in built.items() if called & set(LAYERS)}
        while True:
            known = {names[place] for place in taking if place not in roots}
            more = {place for place, called in built.items() if called & known} - taking
            if not more:
                break
            taking |= more
        taking = {p for p in taking if p in roots or not (_has(inits[p], "prefix") or _has(inits[p], "quant_config"))}
        reached = _reached(roots, taking, built, names)
        found, changed = list(definitions), []
        for place in sorted(reached):
            is_root = place in roots
            passing = _Passing({*LAYERS, *(names[p] for p in reached if p not in roots)}, is_root)
            init = visit(inits[place], passing)
            if init is inits[place]:
                continue
            merged = "packed_modules_mapping" in identifiers(found[place])
            new = _rooted(init, merged) if is_root else _taking(init)
            found[place] = with_method(found[place], new, "__init__")
            changed.append(place)
        return found, changed


def _reached(roots: list[int], taking: set[int], built: dict[int, set[str]], names: dict[int, str]) -> set[int]:
    """The classes that a model comes to by what it builds; a config that nobody hands down is of no use."""
    queue, reached = [place for place in roots if place in taking], set()
    while queue:
        place = queue.pop()
        if place not in reached:
            reached.add(place)
            queue += [other for other in taking if names[other] in built[place]]
    return reached


def _called(init: cst.FunctionDef) -> set[str]:
    return {call.func.value for call in nodes(init.body, cst.Call) if isinstance(call.func, cst.Name)}


def _has(init: cst.FunctionDef, name: str) -> bool:
    params = init.params
    return any(p.name.value == name for p in [*params.params, *params.kwonly_params, *params.posonly_params])


def _taking(init: cst.FunctionDef) -> cst.FunctionDef:
    """A constructor that takes the config and its name, by keyword."""
    given = cst.parse_statement('def f(*, quant_config=None, prefix=""): pass')
    assert isinstance(given, cst.FunctionDef)
    params = init.params
    star = params.star_arg if isinstance(params.star_arg, cst.Param | cst.ParamStar) else given.params.star_arg
    kwonly = [p.with_changes(comma=cst.MaybeSentinel.DEFAULT) for p in params.kwonly_params]
    plain = [p.with_changes(comma=cst.MaybeSentinel.DEFAULT) for p in params.params]
    new = params.with_changes(params=plain, star_arg=star, kwonly_params=[*kwonly, *given.params.kwonly_params])
    return init.with_changes(params=new)


def _rooted(init: cst.FunctionDef, merged: bool) -> cst.FunctionDef:
    """A model's constructor, which has the config from the engine, and tells it which projections are one layer."""
    line = statements('quant_config = getattr(od_config, "quantization_config", None)\n' + MERGED.lstrip() * merged)
    body = body_statements(init)
    at = next((i + 1 for i, item in enumerate(body) if "super().__init__" in code(item)), 0)
    return init.with_changes(body=init.body.with_changes(body=[*body[:at], *line, *body[at:]]))


class _Passing(cst.CSTTransformer):
    """Adds the arguments to the constructions of classes that take them."""

    def __init__(self, names: set[str], is_root: bool) -> None:
        self.names, self.is_root = names, is_root
        self._held: list[str] = []
        self._members: dict[str, int] = {}
        self._loops = 0

    def visit_For(self, node: cst.For) -> None:
        self._loops += 1

    def leave_For(self, original: cst.For, updated: cst.For) -> cst.For:
        self._loops -= 1
        return updated

    def visit_Assign(self, node: cst.Assign) -> None:
        name = _attribute(node.targets[0].target)
        self._held.append(name)
        lists = list(nodes(node.value, cst.List))
        self._members[name] = len(lists[0].elements) if lists else 0

    def leave_Assign(self, original: cst.Assign, updated: cst.Assign) -> cst.Assign:
        self._held.pop()
        return updated

    def visit_Call(self, node: cst.Call) -> None:
        function = node.func
        if isinstance(function, cst.Attribute) and function.attr.value == "append":
            name = _attribute(function.value)
            place = self._members.get(name, 0)
            self._members[name] = place + 1
            self._held.append(name if self._loops else f"{name}.{place}")

    def leave_Call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        function = original.func
        if isinstance(function, cst.Attribute) and function.attr.value == "append":
            self._held.pop()
        if not isinstance(function, cst.Name) or function.value not in self.names:
            return updated
        name = self._held[-1] if self._held else ""
        parts = [*([] if self.is_root else ["{prefix}"]), *([name] if name else [])]
        text = ".".join(parts)
        prefix = f'f"{text}"' if "{" in text else f'"{text}"'
        args = [a.with_changes(comma=cst.MaybeSentinel.DEFAULT) for a in updated.args]
        stars = [a for a in args if a.star == "**"]
        plain = [a for a in args if a.star != "**"]
        return make_call(updated.func, [*plain, "quant_config=quant_config", f"prefix={prefix}", *stars])

    def visit_List(self, node: cst.List) -> bool:
        return True

    def leave_List(self, original: cst.List, updated: cst.List) -> cst.List:
        """The members of a list have its name and their place."""
        if not self._held or not self._held[-1] or updated is original:
            return updated
        elements = [
            element.with_changes(value=visit(element.value, _Placed(self._held[-1], str(place))))
            for place, element in enumerate(updated.elements)
        ]
        return updated.with_changes(elements=elements)

    def leave_ListComp(self, original: cst.ListComp, updated: cst.ListComp) -> cst.ListComp:
        return self._comprehension(original, updated)

    def leave_GeneratorExp(self, original: cst.GeneratorExp, updated: cst.GeneratorExp) -> cst.GeneratorExp:
        return self._comprehension(original, updated)

    def _comprehension(self, original: Any, updated: Any) -> Any:
        loop = updated.for_in
        over_range = isinstance(loop.iter, cst.Call) and dotted(loop.iter.func) == "range"
        if updated is original or not over_range or not isinstance(loop.target, cst.Name) or not self._held:
            return updated
        if loop.target.value == "_" and "_" not in names_in(original.elt):
            loop = loop.with_changes(target=cst.Name("index"))
        placed = visit(updated.elt, _Placed(self._held[-1], "{" + loop.target.value + "}"))
        return updated.with_changes(elt=placed, for_in=loop)


class _Placed(cst.CSTTransformer):
    """Adds the place in a list to the prefix of what is built for it."""

    def __init__(self, name: str, place: str) -> None:
        self.name, self.place = name, place

    def leave_Arg(self, original: cst.Arg, updated: cst.Arg) -> cst.Arg:
        if updated.keyword is None or updated.keyword.value != "prefix":
            return updated
        text = code(updated.value)
        if not text.endswith(f'{self.name}"'):
            return updated
        placed = text[:-1] + f'.{self.place}"'
        if "{" in placed and not placed.startswith("f"):
            placed = "f" + placed
        return updated.with_changes(value=cst.parse_expression(placed))


def _attribute(node: cst.BaseExpression) -> str:
    """``x`` of ``self.x``."""
    name = dotted(node) or "" if isinstance(node, cst.Attribute) else ""
    return name.removeprefix("self.") if name.startswith("self.") and name.count(".") == 1 else ""
