"""Follow the code of a module with split projections, and say which of them can be split.

Each projection of a value that is the same on all ranks is split by its output (column-parallel) to begin with. Its
output is followed through norms, rotary embeddings and reshapes; attention takes heads as they come; a projection of a
split value is split by its input (row-parallel), and its result is whole again. Whatever else happens to a split value
sends the projections that it comes from back to being whole on every rank, and the code is followed anew.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace
from typing import Any

from porter.facts.parallel.calls import Calls
from porter.facts.parallel.module import ModuleFacts, self_attribute
from porter.facts.parallel.modules import NeverRuns
from porter.facts.parallel.values import (
    NONE,
    WHOLE,
    Closure,
    Split,
    Unsplittable,
    Value,
    join,
    merge,
    origins_of,
)

DEPTH = 6
SCALARS = ("dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "itemsize")


Edit = tuple[Any, ...]


@dataclass
class FileFacts:
    """The definitions of the file of a module.

    Attributes:
        functions: by name.
        activations: classes without parameters, by name.
        processors: the calls of the processors that may serve a module, by the module's name.
        modules: by name.
        plans: how modules are split that leave attention's result in parts, if those that hold them take it so.
        qualified: names of functions and methods, by the identity of their trees.
    """

    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    activations: dict[str, ModuleFacts] = field(default_factory=dict)
    processors: dict[str, list[ast.FunctionDef]] = field(default_factory=dict)
    qualified: dict[int, str] = field(default_factory=dict)
    modules: dict[str, ModuleFacts] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)


class Frame:
    """A function while it is followed: its edits, what it returned."""

    def __init__(self, name: str, node: ast.FunctionDef) -> None:
        self.name, self.node = name, node
        self.edits: set[Edit] = set()
        self.ends: list[tuple[int, Value]] = []
        self._numbers: dict[int, int] = {}

    def number(self, node: ast.AST) -> int:
        """The place of an if or a return among its like, in source order."""
        if not self._numbers:
            for kind in (ast.If, ast.Return):
                found = [item for item in preorder(self.node) if isinstance(item, kind)]
                self._numbers |= {id(item): number for number, item in enumerate(found)}
        return self._numbers[id(node)]


@dataclass
class Plan:
    """How a module is split.

    Attributes:
        columns: projections that are split by their output.
        rows: projections that are split by their input; for each, the projections it collects from, part by part.
        packed: columns whose output is taken apart: into how many equal parts.
        edits: what is to be done in a function, by its qualified name:
            ``("norm", attribute)``: a norm runs over a width that is split;
            ``("return", number of the return, place in its tuple or None)``: a value is put together;
            ``("branch", number of the if, "body" or "orelse", variable)``: at its end a variable is put together;
            ``("table", text of the call)``: a position embedding runs over a width that is split;
            ``("mask", text of the call)``: a mask for all heads is laid out by heads.
        hinted: columns whose parts the source says itself.
        widths: attributes that a split value is reshaped by, as the width of all its heads.
        whole: why a projection stays whole, by its name.
        inner: attributes of modules whose result comes in parts, with the name of the class.
        calls_whole: a module that may return parts returns whole values to this one.
    """

    columns: set[str] = field(default_factory=set)
    rows: dict[str, tuple[frozenset[str], ...]] = field(default_factory=dict)
    packed: dict[str, int] = field(default_factory=dict)
    plain: set[str] = field(default_factory=set)
    edits: dict[str, frozenset[Edit]] = field(default_factory=dict)
    hinted: set[str] = field(default_factory=set)
    widths: set[str] = field(default_factory=set)
    attended: set[str] = field(default_factory=set)
    replicated: set[str] = field(default_factory=set)
    whole: dict[str, str] = field(default_factory=dict)
    inner: dict[str, str] = field(default_factory=dict)
    calls_whole: bool = False


def plan_module(facts: ModuleFacts, file: FileFacts) -> Plan:
    """How the projections of a module are split."""
    whole: dict[str, str] = {}
    while True:
        flow = Flow(facts, file, whole)
        try:
            flow.run()
            found = flow.check()
        except Unsplittable as error:
            found = {name: error.reason for name in error.origins}
        fresh = {name: reason for name, reason in found.items() if name not in whole}
        if not fresh:
            if found:  # nothing more to give way: the code is not understood
                return Plan(whole=dict.fromkeys(facts.linears, min(found.values())))
            flow.plan.whole = whole
            return flow.plan
        whole |= fresh


class Flow(Calls):
    """One way through the code of a module; see :func:`plan_module`."""

    def __init__(self, facts: ModuleFacts, file: FileFacts, whole: dict[str, str]) -> None:
        self.facts, self.file, self.whole = facts, file, whole
        self.plan = Plan()
        self.depth = 0
        self._frames: list[Frame] = []

    def run(self) -> None:
        """Follow ``forward``."""
        forward = self.facts.methods["forward"]
        values = {argument.arg: WHOLE for argument in _all_arguments(forward)}
        values["self"] = Value(kind="self")
        self._function(forward, values, top=True)

    def check(self) -> dict[str, str]:
        """Projections that must be whole after all, with the reason."""
        plan = self.plan
        found: dict[str, str] = {}
        for edits in plan.edits.values():
            for kind, *what in edits:
                if kind == "plain norm" and ("norm", *what) in edits:
                    found |= dict.fromkeys(self.everything, f"goes into {what[0]} with heads in one axis and apart")
        for name, parts in plan.rows.items():
            known = name in self.facts.blocks
            if len(parts) > 1 and not known and sum(bool(part & plan.inner.keys()) for part in parts) > 1:
                found |= dict.fromkeys(frozenset().union(*parts), f"goes into {name} in parts whose widths do not show")
        for name in plan.columns & plan.plain & plan.packed.keys():
            found[name] = "is taken apart in one place and used whole in another"
        collected = {name for parts in plan.rows.values() for part in parts for name in part} | plan.attended
        for name in plan.columns - collected:
            found[name] = "has an output that no projection collects"
        for name in plan.columns & plan.rows.keys():
            found[name] = "takes a split value in one place and a whole one in another"
        return found

    # Functions and statements.

    def call_function(self, node: ast.FunctionDef | ast.Lambda, values: dict[str, Value]) -> Value:
        """The result of a function of the file, or of one inside the followed function."""
        if self.depth >= DEPTH:
            raise Unsplittable(origins_of(*values.values()), "is passed through too many functions", node.lineno)
        if isinstance(node, ast.Lambda):
            return self.value(node.body, values)
        return self._function(node, values)

    def _function(self, node: ast.FunctionDef, values: dict[str, Value], top: bool = False) -> Value:
        frame = Frame(self.file.qualified.get(id(node), ""), node)
        self._frames.append(frame)
        self.depth += 1
        try:
            self.block(node.body, values)
            result = self._result(node, frame, top)
        finally:
            self.depth -= 1
            self._frames.pop()
        if frame.name:
            held = self.plan.edits.setdefault(frame.name, frozenset(frame.edits))
            if held != frame.edits:
                raise Unsplittable(self.everything, f"goes through {frame.name} in two ways", node.lineno)
        return result

    def _result(self, node: ast.FunctionDef, frame: Frame, top: bool) -> Value:
        if top:
            for number, value in frame.ends:
                self._collect(number, value)
            return WHOLE
        result = frame.ends[0][1] if frame.ends else NONE
        for _, value in frame.ends[1:]:
            joined = join(result, value)
            if joined is None:
                for number, end in frame.ends:
                    self._collect(number, end)
                return WHOLE
            result = joined
        return result

    @property
    def everything(self) -> frozenset[str]:
        return frozenset(self.plan.columns)

    def edit(self, origins: frozenset[str], what: Edit, line: int) -> None:
        """Ask for a change of the function that is followed.

        Raises:
            Unsplittable: it is one within another function.
        """
        if not self._frames[-1].name:
            raise Unsplittable(origins, f"needs a change inside {self._frames[-1].node.name}", line)
        self._frames[-1].edits.add(what)

    def _collect(self, number: int, value: Value) -> None:
        """What leaves the module must be whole: attention's result is put together, anything else is not split."""
        places = [(None, value)] if value.items is None else list(enumerate(value.items))
        for place, item in places:
            if not item.splits():
                continue
            split = item.split
            if split is None or not (split.attended and split.flat and split.last) or split.parts:
                raise Unsplittable(origins_of(item), "leaves the module split", 0)
            self.edit(split.origins, ("return", number, place), 0)
            self.plan.attended |= split.origins
            self.plan.plain |= {split.direct} if split.direct else set()

    def block(self, statements: list[ast.stmt], env: dict[str, Value]) -> bool:
        """Follow statements; whether they never reach their end."""
        return any(self._statement(statement, env) for statement in statements)

    def _statement(self, node: ast.stmt, env: dict[str, Value]) -> bool:
        if isinstance(node, ast.Return):
            value = self.value(node.value, env) if node.value is not None else NONE
            frame = self._frames[-1]
            frame.ends.append((frame.number(node), value))
            return True
        if isinstance(node, ast.Raise | ast.Continue | ast.Break):
            return True
        if isinstance(node, ast.Assign):
            value = self.value(node.value, env)
            for target in node.targets:
                self._assign(target, value, env)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self._assign(node.target, self.value(node.value, env), env)
        elif isinstance(node, ast.AugAssign):
            value = merge([self.value(node.target, env), self.value(node.value, env)], node.lineno)
            self._assign(node.target, value, env)
        elif isinstance(node, ast.If):
            return self._if(node, env)
        elif isinstance(node, ast.For | ast.While):
            self._loop(node, env)
        elif isinstance(node, ast.With):
            return self.block(node.body, env)
        elif isinstance(node, ast.Try):
            return self.block(node.body, env)
        elif isinstance(node, ast.FunctionDef):
            env[node.name] = Value(kind="function", what=Closure(node, env))
        elif isinstance(node, ast.Expr):
            self.value(node.value, env)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                env.pop(alias.asname or alias.name, None)
        return False

    def _if(self, node: ast.If, env: dict[str, Value]) -> bool:
        truth = self.truth(node.test, env)
        if truth is not None:
            return self.block(node.body if truth else node.orelse, env)
        self.value(node.test, env)
        first, second = dict(env), dict(env)
        self._narrow(node.test, first, second)
        ends = self._branch(node.body, first), self._branch(node.orelse, second)
        if all(ends):
            return True
        if any(ends):
            env.clear()
            env.update(second if ends[0] else first)
            return False
        for name in first.keys() | second.keys():
            if name not in first or name not in second:
                env[name] = first.get(name) or second[name]
                continue
            joined = join(first[name], second[name])
            env[name] = joined if joined is not None else self._whole_after(node, name, first[name], second[name])
        return False

    def _branch(self, statements: list[ast.stmt], env: dict[str, Value]) -> bool:
        try:
            return self.block(statements, env)
        except NeverRuns:
            return True

    def _narrow(self, test: ast.expr, first: dict[str, Value], second: dict[str, Value]) -> None:
        """Where ``x is not None`` does not hold, x is None."""
        if not isinstance(test, ast.Compare) or not isinstance(test.left, ast.Name) or len(test.ops) != 1:
            return
        against, name = test.comparators[0], test.left.id
        if isinstance(against, ast.Constant) and against.value is None:
            side = second if isinstance(test.ops[0], ast.IsNot) else first if isinstance(test.ops[0], ast.Is) else None
            if side is not None and name in side and not side[name].splits():
                side[name] = NONE

    def _whole_after(self, node: ast.If, name: str, first: Value, second: Value) -> Value:
        """A variable that one branch leaves split and the other whole is put together in the one."""
        split = first.split or second.split
        one_sided = (first.split is None) != (second.split is None) and first.items is None and second.items is None
        can = split is not None and split.attended and split.flat and split.last and not split.parts
        if not one_sided or not can or not self._frames[-1].name:
            # Whether it is used afterwards does not show here; if it is, no rank would know what it holds.
            return Value(kind="unclear", items=(first, second))
        assert split is not None
        branch = "body" if first.split is not None else "orelse"
        self.edit(split.origins, ("branch", self._frames[-1].number(node), branch, name), node.lineno)
        self.plan.attended |= split.origins
        return WHOLE

    def _loop(self, node: ast.For | ast.While, env: dict[str, Value]) -> None:
        for _ in range(2):
            if isinstance(node, ast.For):
                given = self.value(node.iter, env)
                items = given.items
                if items:
                    item = items[0]
                    for other in items[1:]:
                        joined = join(item, other)
                        if joined is None:
                            raise Unsplittable(origins_of(given), "runs over split and whole values", node.lineno)
                        item = joined
                elif given.splits():
                    raise Unsplittable(origins_of(given), "runs over a split value", node.lineno)
                else:
                    item = Value(kind="unknown module") if given.kind == "modules" else WHOLE
                self._assign(node.target, item, env)
            inner = dict(env)
            self.block(node.body, inner)
            for name, value in inner.items():
                grown = name in env and env[name].items == () and value.items is not None
                joined = join(env[name], value) if name in env and not grown else value
                if joined is None:
                    raise Unsplittable(origins_of(env[name], value), "is split in some rounds of a loop", node.lineno)
                env[name] = joined

    def _assign(self, target: ast.expr, value: Value, env: dict[str, Value]) -> None:
        if isinstance(target, ast.Name):
            env[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            items = self._unpacked(target, value)
            for inner, item in zip(target.elts, items):
                self._assign(inner.value if isinstance(inner, ast.Starred) else inner, item, env)
        elif isinstance(target, ast.Subscript):
            held = self.value(target.value, env)
            if held.split is not None:
                self.subscript(held, target.slice, env, target.lineno)
                merge([held, value], target.lineno)
            elif value.splits() and held.items is None:
                name = target.value.id if isinstance(target.value, ast.Name) else ""
                if name not in env:
                    raise Unsplittable(origins_of(value), "is put into a whole tensor", target.lineno)
                env[name] = value  # `out = empty_like(x); out[..., ::2] = …`
        elif isinstance(target, ast.Attribute) and value.splits():
            raise Unsplittable(origins_of(value), f"is kept as {ast.unparse(target)}", target.lineno)

    def _unpacked(self, target: ast.Tuple | ast.List, value: Value) -> list[Value]:
        count = len(target.elts)
        if value.items is not None and len(value.items) == count:
            return list(value.items)
        if value.kind == "shape":
            split = value.what
            return [
                Value(kind="width" if split.flat else "heads") if place == split.axis else WHOLE
                for place in range(count)
            ]
        if value.split is not None and value.kind == "pieces":
            return [Value(value.split)] * count
        if value.split is not None:
            if value.split.axis == 0:
                raise Unsplittable(value.split.origins, "is unpacked along its split axis", target.lineno)
            return [Value(replace(value.split, axis=value.split.axis - 1, ndim=value.split.ndim - 1))] * count
        if value.items is not None and value.splits():
            raise Unsplittable(origins_of(value), "is unpacked into another number of values", target.lineno)
        return [WHOLE] * count

    # Conditions.

    def truth(self, node: ast.expr, env: dict[str, Value]) -> bool | None:
        """The outcome of a condition, where it follows from what is None and what is not."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.truth(node.operand, env)
            return None if inner is None else not inner
        if isinstance(node, ast.BoolOp):
            found = [self.truth(part, env) for part in node.values]
            decisive = isinstance(node.op, ast.Or)
            if decisive in found:
                return decisive
            return None if None in found else not decisive
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Is | ast.IsNot):
            if isinstance(node.comparators[0], ast.Constant) and node.comparators[0].value is None:
                is_none = self._is_none(node.left, env)
                return None if is_none is None else is_none == isinstance(node.ops[0], ast.Is)
        return None

    def _is_none(self, node: ast.expr, env: dict[str, Value]) -> bool | None:
        name = self_attribute(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 3:
            key = node.args[1]
            name = str(key.value) if isinstance(key, ast.Constant) else None
        if name is not None and name in self.facts.built and name not in self.facts.maybe_none:
            return False
        if name is not None and name not in self.facts.aliases and isinstance(node, ast.Call):
            return True
        if name is not None and name in self.facts.maybe_none and name not in self.facts.built:
            return True
        if isinstance(node, ast.Name) and node.id in env:
            value = env[node.id]
            return True if value.kind == "none" else False if value.split is not None else None
        return None


def _all_arguments(node: ast.FunctionDef) -> list[ast.arg]:
    given = node.args
    more = [item for item in (given.vararg, given.kwarg) if item is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *more]


def preorder(node: ast.AST) -> list[ast.AST]:
    """Nodes of a function in source order, functions inside it left out."""
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        found.append(child)
        found += preorder(child)
    return found


__all__ = ["Flow", "Plan", "Split", "plan_module"]
