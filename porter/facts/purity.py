"""Whether a call computes nothing but its result, and the same result from the same arguments.

What is allowed is what is understood: arithmetic, torch's functions that draw nothing, modules of torch and of the
engine, and whatever is made of them. What writes to an object that outlives the call, reads what something else writes
while the model runs, or calls what was handed to it from elsewhere is not. That a tensor is written to in place needs
no analysis: tensors count that themselves, and whoever holds a result compares the counts.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable

from porter.facts.flow import reads
from porter.facts.members import ACTIVATION, Built, Members
from porter.facts.scope import Found, dotted, find_method
from porter.source.walk import walk

DRAWS = frozenset(
    "rand randn randint randperm rand_like randn_like randint_like normal bernoulli multinomial poisson randn_tensor "
    "dropout dropout1d dropout2d dropout3d alpha_dropout manual_seed seed uniform_ normal_ random_ bernoulli_ "
    "exponential_".split()
)
CHANGES = frozenset("append extend insert pop remove clear update setdefault popitem sort reverse add discard".split())
READS = frozenset("get keys values items copy index count startswith endswith format join split".split())
PURE_ROOTS = ("torch", "nn.", "F.", "math", "numpy", "typing", "einops", "dataclasses", "vllm", "vllm_omni")
# Warnings, questions about the environment.
HARMLESS = ("diffusers.utils.", "warnings.warn", "logger.")
KEEPS_STATE = ("BatchNorm", "InstanceNorm", "LSTM", "GRU", "RNN")


class Purity:
    """Answers for one file; what was found out is kept.

    Args:
        definitions: of the file, for what is written to while it runs.
        members: what the modules of the file hold.
    """

    def __init__(self, definitions: Iterable[ast.stmt], members: Members) -> None:
        self._members = members
        self._known: dict[int, bool] = {}
        self._written, self._made = _written(definitions)

    def of_module(self, built: tuple[Built, ...]) -> bool:
        """Whether calling any of these modules is pure."""
        return bool(built) and all(map(self._of_built, built))

    def _of_built(self, built: Built) -> bool:
        if built.found is None:
            name = built.origin.rpartition(".")[2]
            return built.origin.startswith(PURE_ROOTS) and not name.startswith(KEEPS_STATE)
        if not isinstance(built.found.node, ast.ClassDef):
            return built.found.name == ACTIVATION
        forward = find_method(built.found, "forward") or find_method(built.found, "__call__")
        if forward is not None:
            return self.of_function(forward, built.found)
        origins = [built.found.scope.origin(dotted(base)) for base in built.found.node.bases]
        return any(self._of_built(Built(origin)) for origin in origins if not origin.endswith("nn.Module"))

    def of_function(self, function: Found, owner: Found | None = None) -> bool:
        """Whether a function is pure, or a method of ``owner``."""
        if not isinstance(function.node, ast.FunctionDef):
            return False
        key = id(function.node)
        if key not in self._known:
            self._known[key] = True  # whoever calls itself adds nothing by that
            self._known[key] = self._is_pure(function, function.node, owner)
        return self._known[key]

    def _is_pure(self, function: Found, node: ast.FunctionDef, owner: Found | None) -> bool:
        items = [inner for statement in node.body for inner in walk(statement)]
        inside = _Inside(function, owner, self._members.of(owner), items)
        for item in items:
            if isinstance(item, ast.Global | ast.Nonlocal | ast.Yield | ast.YieldFrom | ast.Await | ast.ClassDef):
                return False
            if isinstance(item, ast.Attribute):
                is_own = dotted(item.value) == "self" and item.attr in self._made
                if not (isinstance(item.ctx, ast.Load) or is_own) or (item.attr in self._written and dotted(item)):
                    return False
            elif isinstance(item, ast.Subscript) and not isinstance(item.ctx, ast.Load):
                if dotted(item.value).startswith("self."):
                    return False
            elif isinstance(item, ast.Call) and not self._is_pure_call(item, inside):
                return False
        return True

    def _is_pure_call(self, call: ast.Call, inside: _Inside) -> bool:
        name = dotted(call.func)
        head, _, rest = name.partition(".")
        last: str = call.func.attr if isinstance(call.func, ast.Attribute) else name
        if last in DRAWS or (last in CHANGES and head in inside.given):
            return False
        if head == "self" and inside.owner is not None:
            return self._is_pure_member(rest, inside.owner, inside.held)
        if isinstance(call.func, ast.Subscript):
            return self.of_module(inside.held.get(dotted(call.func.value).removeprefix("self."), ()))
        if not name:  # a method of whatever an expression gives
            return isinstance(call.func, ast.Attribute)
        if head in inside.loops:
            return not rest and self.of_module(inside.loops[head])
        if head in inside.local:
            return True  # a value's method; a function within this one; a module that the caller answers for
        return self._is_pure_name(name, last, inside)

    def _is_pure_member(self, name: str, owner: Found, held: dict[str, tuple[Built, ...]]) -> bool:
        """A call of ``self.name``."""
        if "." not in name:
            method = find_method(owner, name)
            return self.of_function(method, owner) if method else self.of_module(held.get(name, ()))
        member, _, called = name.partition(".")
        # A method of a value: of a tensor, which a trailing underscore says that it writes to, or of the config.
        return member not in held and called not in CHANGES and not called.endswith("_")

    def _is_pure_name(self, name: str, last: str, inside: _Inside) -> bool:
        """A call of what a name from around the function stands for."""
        scope = inside.function.scope
        if name in inside.imports:
            if (inside.imports[name].module or "").startswith(PURE_ROOTS):
                return True
            imported = scope.imported(inside.imports[name], name)
            return imported is not None and isinstance(imported.node, ast.FunctionDef) and self.of_function(imported)
        origin = scope.origin(name)
        if origin.startswith((*PURE_ROOTS, *HARMLESS)) and "lora" not in last:
            return True
        found = scope.find(name) if "." not in name else None
        if found is not None:
            return self.of_function(found) if isinstance(found.node, ast.FunctionDef) else _is_record(found)
        return last in READS or (hasattr(builtins, name) and name not in ("setattr", "exec", "eval", "open"))


class _Inside:
    """What names stand for inside a function.

    Attributes:
        held: what is built for the attributes of ``self``.
        local: names that the function binds, its arguments among them.
        given: arguments that it does not bind anew.
        loops: variables of loops over modules that ``self`` holds.
        imports: imports within the function, by the names that they bind.
    """

    def __init__(
        self, function: Found, owner: Found | None, held: dict[str, tuple[Built, ...]], items: list[ast.AST]
    ) -> None:
        self.function, self.owner, self.held = function, owner, held
        assert isinstance(function.node, ast.FunctionDef)
        arguments = {a.arg for a in walk(function.node.args) if isinstance(a, ast.arg)}
        arguments |= {a.arg for a in items if isinstance(a, ast.arg)}
        stored = {n.id for n in items if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.given = arguments - stored
        self.local = arguments | stored | {n.name for n in items if isinstance(n, ast.FunctionDef)}
        self.loops = _of_modules(items, held)
        imports = (item for item in items if isinstance(item, ast.ImportFrom))
        self.imports = {alias.name: item for item in imports for alias in item.names if alias.asname is None}


def _of_modules(items: list[ast.AST], held: dict[str, tuple[Built, ...]]) -> dict[str, tuple[Built, ...]]:
    """Variables of loops over the modules that ``self`` holds."""
    found: dict[str, tuple[Built, ...]] = {}
    for loop in (item for item in items if isinstance(item, ast.For | ast.comprehension)):
        names = [dotted(n).removeprefix("self.") for n in walk(loop.iter) if isinstance(n, ast.Attribute)]
        built = tuple(b for name in names for b in held.get(name, ()))
        if built:
            found |= {n.id: built for n in walk(loop.target) if isinstance(n, ast.Name)}
    return found


def _is_record(found: Found) -> bool:
    """Whether making an instance of a class does nothing else: one without a constructor of its own."""
    return find_method(found, "__init__") is None and find_method(found, "__new__") is None


def _written(definitions: Iterable[ast.stmt]) -> tuple[set[str], set[str]]:
    """Attributes that are written to outside of constructors, while a model runs; those that are only made once."""
    found: set[str] = set()
    once: set[str] = set()
    for definition in definitions:
        functions = definition.body if isinstance(definition, ast.ClassDef) else [definition]
        made = _made_once(definition) if isinstance(definition, ast.ClassDef) else set()
        once |= made
        for function in functions:
            if getattr(function, "name", "") in ("__init__", "load_weights"):
                continue
            for node in walk(function):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                    if dotted(node.value) != "self" or node.attr not in made:
                        found.add(node.attr)
    return found - {"data"}, once - found


def _made_once(owner: ast.ClassDef) -> set[str]:
    """Attributes that methods make when they are first asked for, of what the instance was told alone.

    A table that is made in ``if self.table is None:``, and moved to the device of whoever asks. Its values are the same
    whoever made it, so it changes nothing whether a call did.
    """
    found: set[str] = set()
    strange: set[str] = set()
    for function in owner.body:
        if not isinstance(function, ast.FunctionDef) or function.name == "__init__":
            continue
        nodes = list(walk(function))
        settled = _devices(nodes) | {"self", "torch"}
        guarded = {id(n) for test in nodes if isinstance(test, ast.If) for n in walk(test) if _asks_for(test, n)}
        for node in nodes:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for name in (dotted(target) for target in targets if isinstance(target, ast.Attribute)):
                is_made = isinstance(node, ast.Assign) and id(node) in guarded and reads(node.value) <= settled
                (found if is_made else strange).add(name.removeprefix("self."))
    return found - strange


def _asks_for(test: ast.If, node: ast.AST) -> bool:
    """Whether ``node`` assigns the attribute of which ``test`` asks whether it is there."""
    if not isinstance(node, ast.Assign) or not isinstance(test.test, ast.Compare):
        return False
    is_none = isinstance(test.test.ops[0], ast.Is) and isinstance(test.test.comparators[0], ast.Constant)
    return is_none and [dotted(target) for target in node.targets] == [dotted(test.test.left)] != [""]


def _devices(nodes: list[ast.AST]) -> set[str]:
    """Local names that stand for where a tensor lies."""
    given = [n for n in nodes if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
    devices = {n.targets[0].id for n in given if dotted(n.value).endswith(".device")}  # type: ignore[attr-defined]
    others = {n.targets[0].id for n in given if not dotted(n.value).endswith(".device")}  # type: ignore[attr-defined]
    return devices - others
