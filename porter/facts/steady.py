"""Which calls in a model's forward get, in every step of a request, the values that they got in the step before.

Values are followed from the model's forward into everything that it calls. What comes of the sample or the timestep is
another value in each step; what comes of the other arguments (embeddings, masks, ids) is not. A tensor that is computed
anew has another place in memory in each step even if its value is the same: only what lies in the same place counts as
steady, which holds for arguments, views of them, and the held results of calls that were found here.

The answer says where asking may pay; it need not be right in every case. Who is asked compares places himself.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from porter.facts.members import Built, Members
from porter.facts.purity import Purity
from porter.facts.runs import Run, can_stand_apart, makes_tensors, ports_of, taken
from porter.facts.scope import Found, Scope, dotted, find_method
from porter.source.walk import walk

# How a value fares from step to step: no tensor of the request, the same place, the same value anew, another value.
NEUTRAL, STEADY, ANEW, VARYING = range(4)
# Names that diffusers has for what changes in each step, beside the first argument.
CHANGING = ("timestep", "sigma", "latent", "noise", "hidden_states", "sample", "controlnet_", "block_controlnet")
CHANGING_EXACTLY = ("t", "x", "r", "timestep_r")
CONDITIONS = ("encoder_", "text_", "image_", "pooled_", "prompt_")
# Methods of tensors that leave the values where they are, mostly.
VIEWS = frozenset(
    "view view_as reshape unsqueeze squeeze transpose permute flatten unflatten expand expand_as chunk unbind split "
    "narrow movedim swapaxes contiguous to type_as float half bfloat16 t select detach".split()
)
JOINS = ("torch.cat", "torch.concat", "torch.stack", "torch.where")
# Methods of tensors that only mask or repeat.
MASKS = ("bool", "masked_fill", "logical_not", "where", "repeat", "repeat_interleave")
SHAPES = ("shape", "dtype", "device", "ndim", "is_cuda")
MEASURES = ("size", "dim", "numel", "stride", "element_size", "get", "keys", "items")
DEPTH = 12


@dataclass(frozen=True)
class Value:
    """What is known of a value.

    Attributes:
        level: how it fares from step to step.
        items: its parts, if it is a tuple.
        modules: what it may be, if it is a module.
        joins: calls that only put tensors together, by which it came about.
    """

    level: int = NEUTRAL
    items: tuple[Value, ...] | None = None
    modules: tuple[Built, ...] = ()
    joins: frozenset[int] = frozenset()

    @property
    def worst(self) -> int:
        return max([self.level, *(item.worst for item in self.items or ())])

    @property
    def all_joins(self) -> frozenset[int]:
        return self.joins.union(*(item.all_joins for item in self.items or ()))

    def part(self, index: int | None = None) -> Value:
        """One of its parts; any of them, for None."""
        if self.items is not None and index is not None and -len(self.items) <= index < len(self.items):
            return self.items[index]
        return Value(self.worst, modules=self.modules, joins=self.all_joins)


Env = dict[str, Value]
# Which of two values a branch leaves: what is steady in one of the cases is worth asking for.
_LEAVES = (NEUTRAL, VARYING, ANEW, STEADY)


def _either(a: Value, b: Value) -> Value:
    if a.items is not None and b.items is not None and len(a.items) == len(b.items):
        return Value(NEUTRAL, tuple(map(_either, a.items, b.items)))
    level = max(a.worst, b.worst, key=_LEAVES.index)
    return Value(level, modules=_together(a, b), joins=a.all_joins | b.all_joins)


def _together(a: Value, b: Value) -> tuple[Built, ...]:
    return tuple(dict.fromkeys([*a.modules, *b.modules])) if a.modules or b.modules else ()


def _both(a: Value, b: Value) -> Value:
    if a.items is not None and b.items is not None and len(a.items) == len(b.items):
        return Value(NEUTRAL, tuple(map(_both, a.items, b.items)))
    return Value(max(a.worst, b.worst), modules=_together(a, b), joins=a.all_joins | b.all_joins)


def _merged(a: Env, b: Env, how: Callable[[Value, Value], Value]) -> Env:
    return {name: how(a.get(name, Value()), b.get(name, Value())) for name in {**a, **b}}


@dataclass(frozen=True)
class Site:
    """A call in the file whose result can be held: the definition and the function around it, and the call itself."""

    definition: str
    function: str
    call: ast.Call


class _Frame:
    def __init__(self, function: Found, owner: Found | None) -> None:
        self.function, self.owner = function, owner
        self.ends: list[Value] = []


class SteadyCalls:
    """Finds the calls of one file; see the module.

    Args:
        scope: of the file.
        definitions: of the file.
    """

    def __init__(self, scope: Scope, definitions: Iterable[ast.stmt]) -> None:
        self.scope, self._members = scope, Members()
        self.purity = Purity(definitions, self._members)
        self.sites: dict[int, Site | Run] = {}
        self._frames: list[_Frame] = []
        self._joined: dict[int, Site | Run] = {}
        self._apart: list[ast.FunctionDef] = []
        self._quiet = 0
        self._known: dict[object, Value] = {}

    def of_model(self, name: str) -> list[Site | Run]:
        """The calls in the forward of the model ``name``, and the runs of statements that they need, in no order."""
        model = self.scope.find(name)
        forward = find_method(model, "forward") if model is not None and isinstance(model.node, ast.ClassDef) else None
        if forward is None or not isinstance(forward.node, ast.FunctionDef):
            return []
        arguments = [a.arg for a in _arguments(forward.node)][1:]
        env = {name: Value(VARYING if changes(name) else STEADY) for name in arguments}
        env |= {name: Value(VARYING) for name in arguments[:1]}
        self._run(forward, model, env)
        return list(self.sites.values())

    def _run(self, function: Found, owner: Found | None, env: Env) -> Value:
        if len(self._frames) >= DEPTH or any(frame.function.node is function.node for frame in self._frames):
            return Value(max([value.worst for value in env.values()], default=NEUTRAL))
        key = (id(function.node), id(owner.node) if owner else 0, frozenset(env.items()), self._quiet > 0)
        if key not in self._known:
            assert isinstance(function.node, ast.FunctionDef)
            self._frames.append(_Frame(function, owner))
            self._body(function.node.body, env)
            ends = self._frames.pop().ends
            result = ends[0] if ends else Value()
            for end in ends[1:]:
                result = _either(result, end)
            self._known[key] = result
        return self._known[key]

    # Statements.

    def _body(self, body: list[ast.stmt], env: Env) -> None:
        """Follow the statements of a function. What a run of them leaves may be held as one result."""
        at = 0
        while at < len(body):
            run = self._run_at(body, at, env)
            count = run.count if run is not None else 1
            before = dict(env)
            self._block(body[at : at + count], env)
            if run is not None:
                joins = frozenset({id(body[at])}).union(*(before[name].all_joins for name in run.inputs))
                self._joined[id(body[at])] = run
                for name in run.outputs:
                    if env[name].worst == ANEW:
                        env[name] = Value(STEADY, joins=joins)
            at += count

    def _run_at(self, body: list[ast.stmt], first: int, env: Env) -> Run | None:
        """The longest run of statements from the one at ``first`` that depend on what is steady alone."""
        frame, own, count = self._frames[-1], dict(env), 0
        if frame.owner is None or not frame.function.is_own or not any(v.worst == STEADY for v in env.values()):
            return None
        bound: set[str] = set()
        for statement in body[first:]:
            outside = [env[name] for name in taken(statement, bound) if name in env]
            if any(v.worst > STEADY or v.modules for v in outside) or not can_stand_apart(statement, bound):
                break
            if any(self._reaches_modules(node, own) for node in walk(statement)):
                break
            found = set(self.sites)
            self._statement(statement, own)
            if self.sites.keys() - found:  # what is held by itself stays by itself
                self.sites = {key: self.sites[key] for key in found}
                break
            bound |= {n.id for n in walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            count += 1
        if not any(own[name].worst == ANEW for name in bound if name in own):
            return None
        if not any(map(makes_tensors, body[first : first + count])):
            return None
        inputs, outputs = ports_of(body, first, count, set(env))
        if not outputs or not any(env[name].worst == STEADY for name in inputs):
            return None
        apart = ast.FunctionDef("", _parameters(inputs), body[first : first + count], [], None)
        self._apart.append(apart)  # what is known of it is known by its identity
        if not self.purity.of_function(Found(apart, frame.function.scope, is_own=True), frame.owner):
            return None
        return Run(frame.owner.name, frame.function.name, first, count, inputs, outputs)

    def _reaches_modules(self, node: ast.AST, env: Env) -> bool:
        """Whether a node calls a module or goes over modules: such calls are held by themselves."""
        if isinstance(node, ast.Call):
            return bool(self._callee(node.func, env)[2])
        return isinstance(node, ast.For | ast.comprehension) and bool(self._value(node.iter, env).modules)

    def _block(self, body: list[ast.stmt], env: Env) -> bool:
        """Follow statements; whether they never reach their end."""
        return any([self._statement(node, env) for node in body])

    def _statement(self, node: ast.stmt, env: Env) -> bool:
        match node:
            case ast.Return():
                self._frames[-1].ends.append(self._value(node.value, env) if node.value else Value())
                return True
            case ast.Raise() | ast.Continue() | ast.Break():
                return True
            case ast.Assign():
                value = self._value(node.value, env)
                for target in node.targets:
                    self._assign(target, value, env)
            case ast.AnnAssign() if node.value is not None:
                self._assign(node.target, self._value(node.value, env), env)
            case ast.AugAssign():
                worst = max(self._value(node.target, env).worst, self._value(node.value, env).worst)
                self._assign(node.target, Value(_anew(worst)), env)
            case ast.Expr():
                self._value(node.value, env)
            case ast.If():
                self._value(node.test, env)
                ways = []
                for body in (node.body, node.orelse):
                    own = dict(env)
                    if not self._block(body, own):
                        ways.append(own)
                if not ways:
                    return True
                found = ways[0] if len(ways) == 1 else _merged(ways[0], ways[1], _either)
                env.clear()
                env.update(found)
            case ast.For() | ast.While():
                self._loop(node, env)
            case ast.With():
                for item in node.items:
                    self._value(item.context_expr, env)
                return self._block(node.body, env)
            case ast.Try():
                self._block(node.body, env)
                self._block(node.finalbody, env)
        return False

    def _loop(self, node: ast.For | ast.While, env: Env) -> None:
        """What a pass leaves is what the next one finds: only what stays steady over passes is so."""
        self._quiet += 1
        for _ in range(4):
            before = dict(env)
            self._pass(node, env)
            env.update(_merged(before, env, _both))
            if env == before:
                break
        self._quiet -= 1
        self._pass(node, dict(env))

    def _pass(self, node: ast.For | ast.While, env: Env) -> None:
        if isinstance(node, ast.For):
            self._assign(node.target, _element(self._value(node.iter, env), node.iter), env)
        self._block(node.body, env)

    def _assign(self, target: ast.expr, value: Value, env: Env) -> None:
        if isinstance(target, ast.Name):
            env[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for index, item in enumerate(target.elts):
                self._assign(item, value.part(index), env)
        elif isinstance(target, ast.Starred):
            self._assign(target.value, value.part(), env)
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            held = env.get(target.value.id, Value())
            env[target.value.id] = Value(_anew(max(held.worst, value.worst)))

    # Expressions.

    def _value(self, node: ast.expr, env: Env) -> Value:
        match node:
            case ast.Name():
                if node.id == "self" and self._frames[-1].owner is not None:
                    return Value(modules=(Built("", self._frames[-1].owner),))
                return env.get(node.id, Value())
            case ast.Attribute():
                return self._attribute(node, env)
            case ast.Subscript():
                held, index = self._value(node.value, env), self._value(node.slice, env)
                constant = node.slice.value if isinstance(node.slice, ast.Constant) else None
                part = held.part(constant if isinstance(constant, int) else None)
                return part if index.worst == NEUTRAL else Value(_anew(max(part.worst, index.worst)))
            case ast.Tuple() | ast.List():
                return Value(items=tuple(self._value(item, env) for item in node.elts))
            case ast.IfExp():
                self._value(node.test, env)
                return _either(self._value(node.body, env), self._value(node.orelse, env))
            case ast.BoolOp(op=ast.Or()):
                first, *others = [self._value(item, env) for item in node.values]
                for other in others:
                    first = _either(first, other)
                return first
            case ast.Starred() | ast.NamedExpr() | ast.Await():
                return self._value(node.value, env)
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
                own = dict(env)
                for source in node.generators:
                    self._assign(source.target, _element(self._value(source.iter, own), source.iter), own)
                found = self._value(node.elt, own)
                return Value(found.worst, joins=found.all_joins)  # whoever asks looks at the items of a list
            case ast.Call():
                return self._call(node, env)
            case ast.Lambda() | ast.Constant() | ast.JoinedStr():
                return Value()
        worst = max(
            [self._value(n, env).worst for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)], default=0
        )
        return Value(_anew(worst))

    def _attribute(self, node: ast.Attribute, env: Env) -> Value:
        owner = self._value(node.value, env)
        if owner.modules:
            found = [b for m in owner.modules if m.found for b in self._members.of(m.found).get(node.attr, ())]
            return Value(modules=tuple(dict.fromkeys(found)))
        return Value() if node.attr in SHAPES else owner.part()

    def _call(self, node: ast.Call, env: Env) -> Value:
        given = [self._value(argument, env) for argument in node.args]
        named = {keyword.arg: self._value(keyword.value, env) for keyword in node.keywords}
        values = [*given, *named.values()]
        worst = max([value.worst for value in values], default=NEUTRAL)
        function, owner, built = self._callee(node.func, env)
        if function is None and not built and isinstance(node.func, ast.Attribute) and node.func.attr in MASKS:
            held = self._value(node.func.value, env)
            if max(held.worst, worst) == STEADY == held.worst and self._frames[-1].function.is_own:
                joins = held.all_joins.union(*(value.all_joins for value in values))
                return Value(STEADY, joins=joins | {self._join(node)})
        answered = all(self.purity.of_module(value.modules) for value in values if value.modules)
        if worst == STEADY and answered and self._is_pure(node.func, function, owner, built):
            joins = frozenset().union(*(value.all_joins for value in values))
            if function is None and not built:
                return Value(STEADY, joins=joins | {self._join(node)})
            self._record(node, joins)
            self._quiet += 1
            result = self._inside(node, function, owner, built, given, named)
            self._quiet -= 1
            return _held(result) if result is not None else Value(STEADY)
        result = self._inside(node, function, owner, built, given, named)
        if result is not None:
            return result
        if isinstance(node.func, ast.Attribute) and not built and function is None:
            return self._method(node.func, env, worst, values)
        name = dotted(node.func)
        if name == "zip":
            return Value(items=tuple(Value(v.worst, modules=v.modules, joins=v.all_joins) for v in given))
        if name in ("list", "tuple", "enumerate", "reversed") and given:
            modules = tuple(b for value in given for b in value.modules)
            return Value(worst, given[0].items, modules, frozenset().union(*(value.all_joins for value in given)))
        return Value(NEUTRAL if name in ("len", "isinstance", "hasattr", "range", "getattr") else _anew(worst))

    def _method(self, function: ast.Attribute, env: Env, worst: int, given: list[Value]) -> Value:
        """A method of a value, or a function of a module such as ``torch``."""
        owner = self._value(function.value, env)
        if function.attr in MEASURES and owner.worst != NEUTRAL:
            return Value()
        if function.attr in ("append", "extend") and isinstance(function.value, ast.Name):
            joins = owner.all_joins.union(*(value.all_joins for value in given))
            env[function.value.id] = Value(max(owner.worst, worst), joins=joins)
        if function.attr in VIEWS and worst <= STEADY:
            return owner.part()
        return Value(_anew(max(owner.worst, worst, _makes(function))))

    def _callee(self, function: ast.expr, env: Env) -> tuple[Found | None, Found | None, tuple[Built, ...]]:
        """A function and whose method it is, or the modules that are called."""
        if isinstance(function, ast.Name) and function.id not in env:
            found = self._frames[-1].function.scope.find(function.id)
            return (found if found and isinstance(found.node, ast.FunctionDef) else None), None, ()
        if isinstance(function, ast.Attribute):
            owner = self._value(function.value, env)
            own = [m.found for m in owner.modules if m.found is not None]
            if len(own) == 1 and len(owner.modules) == 1:
                method = find_method(own[0], function.attr)
                if method is not None:
                    return method, own[0], ()
        return None, None, self._value(function, env).modules if not isinstance(function, ast.Call) else ()

    def _is_pure(self, node: ast.expr, function: Found | None, owner: Found | None, built: tuple[Built, ...]) -> bool:
        if not self._frames[-1].function.is_own:
            return False
        if function is not None:
            decorators = [dotted(d) for d in getattr(function.node, "decorator_list", [])]
            if any(d != "staticmethod" for d in decorators):
                return False  # what has a cache of its own needs none
            return self.purity.of_function(function, owner)
        if built:
            return self.purity.of_module(built)
        return self._frames[-1].function.scope.origin(dotted(node)) in JOINS

    def _inside(
        self,
        node: ast.Call,
        function: Found | None,
        owner: Found | None,
        built: tuple[Built, ...],
        given: list[Value],
        named: dict[str | None, Value],
    ) -> Value | None:
        """What a call returns, by following it; None if its code is not the file's own."""
        targets = [(function, owner)] if function is not None else []
        for module in built:
            if module.found is None or not isinstance(module.found.node, ast.ClassDef):
                return None
            forward = find_method(module.found, "forward") or find_method(module.found, "__call__")
            if forward is None:
                return None
            targets.append((forward, module.found))
        if not targets or not all(target.is_own for target, _ in targets):
            return None
        results = [self._run(target, of, _bound(target, of, given, named)) for target, of in targets]
        result = results[0]
        for other in results[1:]:
            result = _either(result, other)
        return result

    def _record(self, node: ast.Call, joins: frozenset[int]) -> None:
        if not self._quiet:
            self.sites[id(node)] = self._site(node)
            self.sites |= {join: self._joined[join] for join in joins}

    def _join(self, node: ast.Call) -> int:
        """A call that only puts tensors together: worth holding where a call is held that gets its result."""
        self._joined[id(node)] = self._site(node)
        return id(node)

    def _site(self, node: ast.Call) -> Site:
        frame = self._frames[-1]
        return Site(frame.owner.name if frame.owner is not None else frame.function.name, frame.function.name, node)


def changes(name: str) -> bool:
    """Whether an argument of a denoiser is another one in each step, by the name that diffusers has for it."""
    if name in CHANGING_EXACTLY:
        return True
    return not name.startswith(CONDITIONS) and any(word in name for word in CHANGING)


def _parameters(names: Iterable[str]) -> ast.arguments:
    return ast.arguments([], [ast.arg(name) for name in ("self", *names)], None, [], [], None, [])


def _anew(level: int) -> int:
    return ANEW if level == STEADY else level


def _makes(function: ast.Attribute) -> int:
    """Whether a function makes a tensor of nothing: ``torch.arange``."""
    return ANEW if dotted(function.value) in ("torch", "F", "np") else NEUTRAL


def _held(value: Value) -> Value:
    """The result of a call that is held: all its tensors keep their places."""
    return Value(STEADY, tuple(map(_held, value.items)) if value.items is not None else None, value.modules)


def _element(value: Value, iterable: ast.expr) -> Value:
    """What a loop hands out of a value."""
    name = dotted(iterable.func) if isinstance(iterable, ast.Call) else ""
    if name == "zip":
        return value
    one = Value(value.worst, modules=value.modules, joins=value.all_joins)
    if name == "enumerate":
        assert isinstance(iterable, ast.Call)
        return Value(items=(Value(), _element(value, iterable.args[0]) if iterable.args else one))
    return one


def _arguments(node: ast.FunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _bound(function: Found, owner: Found | None, given: list[Value], named: dict[str | None, Value]) -> Env:
    """The arguments of a call by the names of the function's parameters."""
    assert isinstance(function.node, ast.FunctionDef)
    static = any(dotted(d) == "staticmethod" for d in function.node.decorator_list)
    names = [a.arg for a in _arguments(function.node)]
    names = names[1:] if owner is not None and not static else names
    env = dict.fromkeys(names, Value())
    env |= dict(zip(names, given, strict=False))
    env |= {name: value for name, value in named.items() if name in env and name is not None}
    return env
