"""What the modules that a module is made of do to split values."""

from __future__ import annotations

import ast
from dataclasses import replace

from porter.facts.parallel.module import ModuleFacts, out_features
from porter.facts.parallel.torch_calls import TorchCalls
from porter.facts.parallel.values import WHOLE, Split, Unsplittable, Value, join, merge, origins_of

ACTIVATIONS = frozenset(
    "Dropout Identity GELU SiLU ReLU Sigmoid Tanh Mish Softplus LeakyReLU ELU Hardswish get_activation ACT2FN".split()
)


class NeverRuns(Exception):
    """What was followed calls a member that is None."""


class ModuleCalls(TorchCalls):
    """Calls of modules; see :class:`porter.facts.parallel.flow.Flow`."""

    def _either(self, values: list[Value], line: int) -> Value:
        result = values[0]
        for value in values[1:]:
            joined = join(result, value)
            if joined is None:
                raise Unsplittable(origins_of(*values), "is split or whole, as the case may be", line)
            result = joined
        return result

    def _module(
        self, name: str, positional: list[Value], keywords: dict[str, Value], node: ast.Call, env: dict[str, Value]
    ) -> Value:
        facts = self.facts
        if name in facts.linears:
            return self._projection(name, positional, keywords, node)
        if name in facts.attention:
            return self._attention(positional, keywords, node)
        splits = origins_of(*positional, *keywords.values())
        if not splits:
            held = facts.built.get(name, [])
            if len(held) == 1 and held[0] in self.file.plans and name not in self.whole:
                return self._inner(name, held[0], positional, keywords)
            if any(value.kind == "self" for value in positional):
                inside = frozenset(facts.linears)
                raise Unsplittable(inside, f"is handed to {name}", node.lineno)
            if "ModuleList" in facts.built.get(name, ()):
                return self._sequence(name, positional, node, env)
            return WHOLE
        kinds = set(facts.built.get(name, ())) - {""}
        value = positional[0] if positional else next(iter(keywords.values()))
        if value.split is None or len(positional) + len(keywords) != 1 or not kinds:
            raise Unsplittable(splits, f"goes into {name}", node.lineno)
        if kinds <= ACTIVATIONS:
            return value
        if kinds <= self.file.activations.keys():
            return self._activation(value, min(kinds), node.lineno)
        if all("Norm" in kind or kind == "Identity" for kind in kinds):
            if value.split.flat and value.split.last:
                self.edit(splits, ("norm", name), node.lineno)
            elif value.split.last:
                raise Unsplittable(splits, f"goes into {name}, along its split axis", node.lineno)
            else:
                self.edit(splits, ("plain norm", name), node.lineno)
            return value
        raise Unsplittable(splits, f"goes into {name}", node.lineno)

    def _inner(self, name: str, kind: str, positional: list[Value], keywords: dict[str, Value]) -> Value:
        """What a module of the file returns that may leave attention's result in parts."""
        from porter.facts.parallel.flow import Plan

        mine = self.facts, self.whole, self.plan
        self.facts, self.plan = self.file.modules[kind], Plan()
        self.whole = self.file.plans[kind].whole
        try:
            found = self._inline(self.facts.methods["forward"], [Value(kind="self"), *positional], keywords, {})
        except (Unsplittable, NeverRuns):
            found = _UNKNOWN
        finally:
            self.facts, self.whole, self.plan = mine
        if not found.splits():
            self.plan.calls_whole |= found != _UNKNOWN
            return WHOLE
        self.plan.inner[name] = kind
        return _named(found, name)

    def _sequence(self, name: str, positional: list[Value], node: ast.Call, env: dict[str, Value]) -> Value:
        value = positional[0] if positional else WHOLE
        places = sorted(
            (key for key in self.facts.built if key.startswith(f"{name}.")), key=lambda key: int(key.split(".")[1])
        )
        for place in places:
            value = self._module(place, [value], {}, node, env)
        return value

    def _activation(self, value: Value, kind: str, line: int) -> Value:
        """A class of the file without parameters: its forward, followed."""
        held, self.facts = self.facts, self.file.activations[kind]
        try:
            return self._inline(self.facts.methods["forward"], [Value(kind="self"), value], {}, {})
        finally:
            self.facts = held

    def _projection(self, name: str, positional: list[Value], keywords: dict[str, Value], node: ast.Call) -> Value:
        values = [*positional, *keywords.values()]
        value = values[0] if values else WHOLE
        if value.split is None:
            if origins_of(*values):
                raise Unsplittable(origins_of(*values), f"goes into {name} among others", node.lineno)
            if name in self.whole:
                return WHOLE
            self.plan.columns.add(name)
            if name in self.facts.blocks:
                self.plan.hinted.add(name)
            by_heads = _is_number_of_heads(self.facts, name)
            return Value(Split(2, 3, not by_heads, frozenset({name}), direct=None if by_heads else name))
        split = value.split
        if not (split.flat and split.last):
            raise Unsplittable(split.origins, f"goes into {name} with its heads apart", node.lineno)
        if name in self.whole:
            raise Unsplittable(split.origins, f"goes into {name}, which stays whole: {self.whole[name]}", node.lineno)
        parts = split.parts or (split.origins,)
        held = self.plan.rows.setdefault(name, parts)
        if len(held) != len(parts):
            raise Unsplittable(split.origins | {name}, f"goes into {name} in parts or whole", node.lineno)
        self.plan.rows[name] = tuple(a | b for a, b in zip(held, parts))
        self._used(split)
        return WHOLE

    def _attention(self, positional: list[Value], keywords: dict[str, Value], node: ast.Call) -> Value:
        values = [*positional[:3]]
        others = origins_of(*positional[3:], *keywords.values())
        if not origins_of(*values):
            return WHOLE
        mask = [split for value in [*positional[3:], *keywords.values()] for split in value.splits()]
        if any(split.flat or split.axis != 1 for split in mask):
            raise Unsplittable(origins_of(*values) | others, "makes a mask of split values", node.lineno)
        for value in values:
            if value.split is None or value.split.flat or value.split.axis != value.split.ndim - 2:
                raise Unsplittable(origins_of(*values), "reaches attention without heads that are split", node.lineno)
        result = merge(values, node.lineno)
        assert result.split is not None
        self.plan.attended |= result.split.origins
        return Value(replace(result.split, attended=True, direct=None))


_UNKNOWN = Value(kind="unknown")


def _is_number_of_heads(facts: ModuleFacts, name: str) -> bool:
    """Whether a projection has one output for each head, as a gate has."""
    outputs = out_features(facts.linears[name])
    if outputs is None:
        return False
    text = ast.unparse(outputs)
    return any(
        text in (f"self.{head}", ast.unparse(facts.aliases[head])) for head in facts.heads if head in facts.aliases
    )


def _named(value: Value, name: str) -> Value:
    """The parts of what an inner module returns come from that module, whatever they came from inside."""
    if value.items is not None:
        return Value(items=tuple(_named(item, name) for item in value.items))
    if value.split is None:
        return WHOLE
    return Value(replace(value.split, origins=frozenset({name}), direct=None, parts=()))
