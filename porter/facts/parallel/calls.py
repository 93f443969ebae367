"""What expressions make of split values."""

from __future__ import annotations

import ast
from dataclasses import replace

from porter.facts.parallel import axes
from porter.facts.parallel.module import self_attribute
from porter.facts.parallel.modules import ModuleCalls, NeverRuns
from porter.facts.parallel.torch_calls import ROTATION
from porter.facts.parallel.values import NONE, WHOLE, Closure, Split, Unsplittable, Value, merge, origins_of
from porter.source.walk import walk

SCALARS = frozenset("dtype device ndim requires_grad is_cuda layout itemsize training".split())


class Calls(ModuleCalls):
    """Expressions; see :class:`porter.facts.parallel.flow.Flow`."""

    def value(self, node: ast.expr, env: dict[str, Value]) -> Value:
        """The value of an expression."""
        found = self._value(node, env)
        if found.kind == "unclear" and found.splits():
            raise Unsplittable(
                origins_of(found), "is split on one way through the code and whole on another", node.lineno
            )
        return found

    def _value(self, node: ast.expr, env: dict[str, Value]) -> Value:
        if isinstance(node, ast.Constant):
            return NONE if node.value is None else Value(kind="number", what=node.value)
        if isinstance(node, ast.Name):
            return env.get(node.id, WHOLE)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, env)
        if isinstance(node, ast.Call):
            return self._call(node, env)
        if isinstance(node, ast.Tuple | ast.List):
            items: list[Value] = []
            for element in node.elts:
                if isinstance(element, ast.Starred):
                    more = self.value(element.value, env)
                    items += list(more.items or (Value(kind="starred", what=more),))
                else:
                    items.append(self.value(element, env))
            return Value(items=tuple(items))
        if isinstance(node, ast.BinOp):
            return self._binary(node, env)
        if isinstance(node, ast.UnaryOp):
            inner = self.value(node.operand, env)
            if isinstance(node.op, ast.USub) and inner.kind == "number":
                return Value(kind="number", what=-inner.what)
            return inner if inner.split else WHOLE
        if isinstance(node, ast.IfExp):
            truth = self.truth(node.test, env)
            if truth is not None:
                return self.value(node.body if truth else node.orelse, env)
            return self._either([self.value(node.body, env), self.value(node.orelse, env)], node.lineno)
        if isinstance(node, ast.BoolOp):
            return self._either([self.value(part, env) for part in node.values], node.lineno)
        if isinstance(node, ast.Compare):
            return merge([self.value(part, env) for part in [node.left, *node.comparators]], node.lineno)
        if isinstance(node, ast.Subscript):
            return self._subscripted(node, env)
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp):
            return self._comprehension(node, env)
        if isinstance(node, ast.Lambda):
            return Value(kind="function", what=Closure(node, env))
        parts = [self.value(part, env) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        if origins_of(*parts) and not isinstance(node, ast.JoinedStr | ast.FormattedValue):
            raise Unsplittable(origins_of(*parts), f"is used in {ast.unparse(node)[:60]}", node.lineno)
        return WHOLE

    def _attribute(self, node: ast.Attribute, env: dict[str, Value]) -> Value:
        base = self.value(node.value, env)
        if base.kind == "self":
            facts = self.facts
            if node.attr in facts.heads:
                return Value(kind="heads")
            if node.attr in facts.head_sizes:
                return Value(kind="head")
            if node.attr in self.widths:
                return Value(kind="width", what=node.attr)
            if node.attr in facts.built or node.attr in facts.attention:
                return Value(
                    kind="modules" if "ModuleList" in facts.built.get(node.attr, ()) else "module", what=node.attr
                )
            return Value(kind="attribute") if node.attr in facts.aliases else WHOLE
        if base.kind == "module" and node.attr not in SCALARS and base.what in self.facts.linears:
            return Value(kind="weight", what=base.what)
        if base.kind == "weight" and node.attr not in SCALARS:
            return base
        if base.split is not None:
            if node.attr == "shape":
                return Value(kind="shape", what=base.split)
            if node.attr in SCALARS:
                return WHOLE
            if node.attr in ("mT", "T"):
                return Value(axes.transposed(base.split, -1, -2))
            if node.attr in ("real", "imag", "data"):
                return base
            raise Unsplittable(base.split.origins, f"is asked for .{node.attr}", node.lineno)
        return WHOLE

    @property
    def widths(self) -> set[str]:
        """Attributes that are the width of all heads: the output of a projection that is split."""
        found = getattr(self, "_widths", None)
        if found is None:
            from porter.facts.parallel.sizes import width_attributes

            found = self._widths = width_attributes(self.facts)
        return found

    def _binary(self, node: ast.BinOp, env: dict[str, Value]) -> Value:
        left, right = self.value(node.left, env), self.value(node.right, env)
        if isinstance(node.op, ast.MatMult):
            return self._product([left, right], node.lineno)
        if left.splits() or right.splits():
            if left.items is not None or right.items is not None:
                return (
                    WHOLE if not origins_of(left, right) else Value(items=(*(left.items or ()), *(right.items or ())))
                )
            self._by_numbers(left, [right], node.lineno)
            self._by_numbers(right, [left], node.lineno)
            return merge([left, right], node.lineno)
        kinds = {left.kind, right.kind}
        if isinstance(node.op, ast.FloorDiv):
            if left.kind == "width" and right.kind == "number":
                return Value(kind="fraction", what=right.what)
            if (left.kind, right.kind) in (("width", "heads"),):
                return Value(kind="head")
            if (left.kind, right.kind) == ("width", "head"):
                return Value(kind="heads")
        if isinstance(node.op, ast.Mult) and kinds == {"heads", "head"}:
            return Value(kind="width")
        if kinds == {"number"} and isinstance(left.what, int) and isinstance(right.what, int):
            if isinstance(node.op, ast.Add | ast.Sub):
                return Value(
                    kind="number", what=left.what + (right.what if isinstance(node.op, ast.Add) else -right.what)
                )
        return WHOLE

    def _subscripted(self, node: ast.Subscript, env: dict[str, Value]) -> Value:
        base = self.value(node.value, env)
        if base.split is not None:
            return self.subscript(base, node.slice, env, node.lineno)
        index = self.value(node.slice, env) if not isinstance(node.slice, ast.Slice | ast.Tuple) else WHOLE
        if base.kind == "modules":
            place = index.what if index.kind == "number" else None
            return (
                Value(kind="module", what=f"{base.what}.{place}") if place is not None else Value(kind="unknown module")
            )
        if base.kind == "shape":
            split = base.what
            if index.kind == "number" and isinstance(index.what, int):
                is_share = index.what % split.ndim == split.axis
                return Value(kind="width" if split.flat else "heads") if is_share else WHOLE
            return Value(kind="some shape", what=split) if isinstance(node.slice, ast.Slice) else WHOLE
        if base.items is not None and base.splits():
            if (
                index.kind == "number"
                and isinstance(index.what, int)
                and -len(base.items) <= index.what < len(base.items)
            ):
                return base.items[index.what]
            raise Unsplittable(origins_of(base), "is one of several values", node.lineno)
        return WHOLE

    def subscript(self, base: Value, index: ast.expr, env: dict[str, Value], line: int) -> Value:
        """``x[…]`` of a split value: any part of it along the axes that are not split."""
        split = base.split
        assert split is not None
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        has_dots = [isinstance(part, ast.Constant) and part.value is Ellipsis for part in parts]
        axis, new_axis, ndim = 0, None, 0
        for part, dots in zip(parts, has_dots):
            if dots:
                count = split.ndim - sum(1 for p, d in zip(parts, has_dots) if not d and not _is_none(p))
                if axis <= split.axis < axis + count:
                    new_axis = ndim + split.axis - axis
                axis, ndim = axis + count, ndim + count
            elif _is_none(part):
                ndim += 1
            elif isinstance(part, ast.Slice):
                if axis == split.axis:
                    split = self._cut(split, part, env, line)
                    new_axis = ndim
                axis, ndim = axis + 1, ndim + 1
            else:
                chosen = self.value(part, env)
                if axis == split.axis or chosen.splits():
                    raise Unsplittable(split.origins, "is indexed along its split axis", line)
                axis += 1
                if not isinstance(part, ast.Constant):  # a tensor of indices, which leaves an axis
                    ndim += 1
        if axis <= split.axis:
            new_axis = ndim + split.axis - axis
        ndim += max(split.ndim - axis, 0)
        assert new_axis is not None
        return Value(replace(split, axis=new_axis, ndim=ndim, direct=split.direct if new_axis == split.axis else None))

    def _cut(self, split: Split, part: ast.Slice, env: dict[str, Value], line: int) -> Split:
        """A slice of the split axis: all of it, or one half of a projection's output."""
        bounds = [self.value(bound, env) for bound in (part.lower, part.upper) if bound is not None]
        if not bounds and part.step is None:
            return split
        half = len(bounds) == 1 and bounds[0].kind == "fraction" and bounds[0].what == 2 and part.step is None
        if half and split.direct in self.plan.hinted:
            return split
        if not half or not split.direct or not split.flat or self.plan.packed.setdefault(split.direct, 2) != 2:
            raise Unsplittable(split.origins, "is cut along its split axis", line)
        return replace(split, direct=None)

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp, env: dict[str, Value]) -> Value:
        loop = node.generators[0]
        given = self.value(loop.iter, env)
        if given.items is None or not given.splits():
            inner = {**env, **{n.id: WHOLE for n in walk(loop.target) if isinstance(n, ast.Name)}}
            made = self.value(node.elt, inner)
            if made.splits():
                raise Unsplittable(origins_of(made), "is made in a comprehension", node.lineno)
            return WHOLE
        if len(node.generators) != 1 or loop.ifs or not isinstance(loop.target, ast.Name):
            raise Unsplittable(origins_of(given), "is run over", node.lineno)
        return Value(items=tuple(self.value(node.elt, {**env, loop.target.id: item}) for item in given.items))

    # Calls.

    def _call(self, node: ast.Call, env: dict[str, Value]) -> Value:
        positional: list[Value] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                inner = self.value(argument.value, env)
                positional += list(inner.items or (Value(kind="starred", what=inner),))
            else:
                positional.append(self.value(argument, env))
        keywords = {keyword.arg or "**": self.value(keyword.value, env) for keyword in node.keywords}
        function = node.func
        if isinstance(function, ast.Attribute):
            base = self.value(function.value, env)
            if base.kind == "none" or (base.kind == "self" and self._is_missing(function.attr)):
                raise NeverRuns
            module = self.value(function, env) if base.kind == "self" else WHOLE
            if any(value.kind == "self" for value in positional) and base.kind == "self":
                return self._processed(positional, keywords, node)
            if base.kind == "self" and module.kind not in ("module", "modules"):
                method = self.facts.methods.get(function.attr)
                if method is not None:
                    return self._inline(method, [base, *positional], keywords, {})
            if module.kind in ("module", "modules"):
                return self._module(module.what, positional, keywords, node, env)
            if base == WHOLE and function.attr in ("view", "reshape") and len(positional) == 4:
                if positional[1].kind == "heads":
                    self.edit(frozenset(), ("mask", ast.unparse(node)), node.lineno)
            if base.split is not None:
                return self._method(base, function.attr, positional, keywords, node)
            if base.items is not None and function.attr == "append" and len(positional) == 1:
                return self._append(function.value, base, positional[0], env)
            if base.kind == "function" or isinstance(function.value, ast.Name | ast.Attribute):
                return self._library(ast.unparse(function), positional, keywords, node)
        if isinstance(function, ast.Subscript):
            held = self_attribute(function.value)
            if held is not None and held not in self.facts.aliases and held not in self.facts.methods:
                raise NeverRuns
        called = self.value(function, env)
        if called.kind == "module":
            return self._module(called.what, positional, keywords, node, env)
        if called.kind == "function" and isinstance(called.what, Closure):
            return self._inline(called.what.node, positional, keywords, called.what.around)
        if isinstance(function, ast.Name) and function.id not in env and function.id in self.file.functions:
            if origins_of(*positional, *keywords.values()) or any(v.kind == "self" for v in positional):
                return self._inline(self.file.functions[function.id], positional, keywords, {}, fallback=(node,))
            return WHOLE
        return self._library(ast.unparse(function), positional, keywords, node)

    def _processed(self, positional: list[Value], keywords: dict[str, Value], node: ast.Call) -> Value:
        """The module hands itself to its processor: each that may serve it is followed."""
        inside = frozenset(self.facts.linears)
        found = self.file.processors.get(self.facts.name, [])
        if not found:
            raise Unsplittable(inside, "is used by what the module hands itself to", node.lineno)
        given = {name: value for name, value in keywords.items() if name != "**"}
        return self._either([self._inline(call, [WHOLE, *positional], given, {}) for call in found], node.lineno)

    def _is_missing(self, name: str) -> bool:
        """Whether a member that is called is None or absent: then this code never runs."""
        facts = self.facts
        return name in facts.maybe_none and name not in facts.built

    def _append(self, node: ast.expr, held: Value, item: Value, env: dict[str, Value]) -> Value:
        if isinstance(node, ast.Name):
            env[node.id] = Value(items=(*(held.items or ()), item)) if item.splits() else held
            if held.items and item in held.items:
                env[node.id] = held
        return NONE

    def _inline(
        self,
        node: ast.FunctionDef | ast.Lambda,
        positional: list[Value],
        keywords: dict[str, Value],
        around: dict[str, Value],
        fallback: tuple[ast.Call, ...] = (),
    ) -> Value:
        given = node.args
        values = dict(around)
        named = [argument.arg for argument in [*given.posonlyargs, *given.args]]
        defaults = dict(zip(reversed(named), reversed(given.defaults)))
        defaults |= {a.arg: d for a, d in zip(given.kwonlyargs, given.kw_defaults) if d is not None}
        starred = [place for place, value in enumerate(positional) if value.kind == "starred"]
        for argument in [*named, *(a.arg for a in given.kwonlyargs)]:
            values[argument] = (
                WHOLE if starred else self.value(defaults[argument], {}) if argument in defaults else WHOLE
            )
        for name, value in zip(named, positional[: starred[0]] if starred else positional):
            values[name] = value
        for name, value in keywords.items():
            values[name] = value
        for extra in (given.vararg, given.kwarg):
            if extra is not None:
                values[extra.arg] = WHOLE
        if fallback and ROTATION.search(getattr(node, "name", "")):
            try:
                return self.call_function(node, values)
            except Unsplittable:
                return self._rotation(positional, keywords, fallback[0])
        return self.call_function(node, values)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
