"""How a layer of several projections is built: what can be said of its sizes where it stands in a constructor."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from porter.facts.parallel.calls_together import changed, names_of
from porter.facts.parallel.module import ModuleFacts, in_features, out_features, self_attribute
from porter.facts.parallel.sizes import factors

QKV, STACKED = "QKVParallelLinear", "MergedColumnParallelLinear"


@dataclass(frozen=True)
class Layer:
    """A construction: the class of the engine's layer, and its arguments as text.

    Attributes:
        sizes: widths of its outputs, each once, where the engine does not say itself that ranks cannot share one.
    """

    kind: str
    arguments: tuple[str, ...]
    sizes: tuple[str, ...] = ()


def stacked_layer(facts: ModuleFacts, calls: list[ast.Call], statements: list[ast.stmt]) -> tuple[Layer | None, str]:
    """Outputs of any sizes, one after the other."""
    place = _Place(facts, calls, statements)
    sizes = [place.said(out_features(call)) for call in calls]
    inputs = place.said(in_features(calls[0]))
    if inputs is None or None in sizes:
        return None, "a size changes between their constructions"
    texts = tuple(map(str, sizes))
    return Layer(STACKED, (inputs, f"[{', '.join(texts)}]", *_bias(calls[0])), tuple(dict.fromkeys(texts))), ""


def qkv_layer(facts: ModuleFacts, calls: list[ast.Call], statements: list[ast.stmt]) -> tuple[Layer | None, str]:
    """Queries, keys and values, in heads of one size."""
    place = _Place(facts, calls, statements)
    query, key, value = (place.resolved(out_features(call)) for call in calls)
    if ast.unparse(key) != ast.unparse(value):
        return None, "keys and values differ in size"
    size = place.head_size(query)
    inputs = place.said(in_features(calls[0]))
    heads = place.heads(out_features(calls[0]), size)
    kv_heads = place.heads(out_features(calls[1]), size)
    if inputs is None or size is None or heads is None or kv_heads is None:
        return None, "how wide a head is does not show where they are built"
    found = [f"hidden_size={inputs}", f"head_size={ast.unparse(size)}", f"total_num_heads={heads}"]
    if ast.unparse(query) != ast.unparse(key):
        found.append(f"total_num_kv_heads={kv_heads}")
    return Layer(QKV, (*found, *_bias(calls[0]))), ""


def _bias(call: ast.Call) -> tuple[str, ...]:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    bias = given.get("bias", call.args[2] if len(call.args) > 2 else None)
    return () if bias is None else (f"bias={ast.unparse(bias)}",)


class _Place:
    """Where the first of several projections is built, and what has its value there.

    Args:
        facts: of the module.
        calls: constructions of the projections.
        statements: the part of the constructor that holds them.
    """

    def __init__(self, facts: ModuleFacts, calls: list[ast.Call], statements: list[ast.stmt]) -> None:
        self.facts = facts
        init = facts.methods["__init__"]
        places = [i for i, node in enumerate(statements) for call in calls if getattr(node, "value", None) is call]
        self.between = set().union(*(changed(node) for node in statements[min(places) : max(places)]))
        here = statements[min(places)].lineno
        arguments = [*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs]
        self.known = {argument.arg for argument in arguments} | {"None", "True", "False"}
        self._counts: dict[str, int] = {}
        around = _around(init.body, statements)
        for body in _all(init.body):
            for node in body:
                for name in _bound(node):
                    self._counts[name] = self._counts.get(name, 0) + 1
                    if node.lineno < here and id(body) in around:
                        self.known.add(name)
                    elif node.lineno < here and isinstance(node, ast.If):
                        continue

    def said(self, node: ast.expr | None) -> str | None:
        """The text of an expression, if it means the same where the layer is built."""
        if node is None or names_of(ast.unparse(node)) & self.between:
            return None
        return ast.unparse(node)

    def means_the_same(self, node: ast.expr) -> bool:
        """Whether an expression from elsewhere in the constructor can stand here."""
        return all(
            name in self.known and self._counts.get(name, 0) <= 1 and name not in self.between
            for name in _outermost(node)
        )

    def resolved(self, node: ast.expr | None) -> ast.expr:
        """What an attribute was given, as far as it was given once and plainly."""
        assert node is not None
        name = self_attribute(node)
        while name is not None and self._counts.get(f"self.{name}") == 1 and name in self.facts.aliases:
            given = self.facts.aliases[name]
            if not all(self._counts.get(other, 0) <= 1 for other in _outermost(given)):
                break
            node, name = given, self_attribute(given)
        return node

    def head_size(self, query: ast.expr) -> ast.expr | None:
        """How wide a head is, in words that can stand here."""
        given = [k.value for call in self.facts.attention.values() for k in call.keywords if k.arg == "head_size"]
        given += [_attribute(name) for name in sorted(self.facts.head_sizes)]
        for size in given:
            for said in (size, self.resolved(size)):
                if self.means_the_same(said):
                    return said
        for name in sorted(self.facts.heads):
            heads = _attribute(name)
            for said in (heads, self.resolved(heads)):
                if self.means_the_same(said) and self.means_the_same(query):
                    return ast.parse(f"({ast.unparse(query)}) // ({ast.unparse(said)})", mode="eval").body
        return None

    def heads(self, outputs: ast.expr | None, size: ast.expr | None) -> str | None:
        """How many heads make so many outputs."""
        said = self.said(outputs)
        if said is None or size is None or outputs is None:
            return None
        if isinstance(size, ast.BinOp) and isinstance(size.op, ast.FloorDiv):
            if ast.unparse(self.resolved(size.left)) == ast.unparse(self.resolved(outputs)):
                return ast.unparse(size.right)
        for whole in (outputs, self.resolved(outputs)):
            parts = factors(whole)
            same = [p for p in parts if ast.unparse(self.resolved(p)) == ast.unparse(self.resolved(size))]
            rest = [part for part in parts if not same or part is not same[0]]
            if same and rest and all(self.means_the_same(part) for part in rest):
                return " * ".join(map(ast.unparse, rest))
        divisor = ast.unparse(size)
        return f"{_factor(said)} // {_factor(divisor)}"


def _factor(text: str) -> str:
    return text if text.replace(".", "").replace("_", "").isalnum() else f"({text})"


def _attribute(name: str) -> ast.expr:
    return ast.parse(f"self.{name}", mode="eval").body


def _outermost(node: ast.expr) -> set[str]:
    """Variables of an expression; ``self.x`` as one."""
    found: set[str] = set()
    stack: list[ast.AST] = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, ast.Attribute):
            found.add(ast.unparse(item))
        elif isinstance(item, ast.Name):
            found.add(item.id)
        else:
            stack += ast.iter_child_nodes(item)
    return found


def _bound(node: ast.stmt) -> list[str]:
    """What a plain statement binds."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    found = []
    for target in targets:
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        found += [ast.unparse(part) for part in parts if isinstance(part, ast.Name | ast.Attribute)]
    return found


def _all(body: list[ast.stmt]) -> list[list[ast.stmt]]:
    from porter.facts.parallel.calls_together import suites

    found = [body]
    for node in body:
        for inner in suites(node):
            found += _all(inner)
    return found


def _around(body: list[ast.stmt], wanted: list[ast.stmt]) -> set[int]:
    """The blocks that a block lies in, itself included, by identity."""
    from porter.facts.parallel.calls_together import suites

    if body is wanted:
        return {id(body)}
    for node in body:
        for inner in suites(node):
            found = _around(inner, wanted)
            if found:
                return found | {id(body)}
    return set()
