"""Build one file of a port: from its roots, everything they need, each definition rewritten by the rules."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import libcst as cst

from porter.facts.attention import uses_attention
from porter.facts.evidence import Feature
from porter.rules.engine import BESIDE, Context, Residue, code, names_in, rename, visit
from porter.rules.fold import UNKNOWN, Facts, fold
from porter.rules.history import History, Recorder
from porter.source import Definition, SourceModule, SourceTree
from porter.source.walk import walk
from porter.targets import Symbols

# Devices and packages that have their own path in diffusers; in the engine that is the platform's business.
UNAVAILABLE = ("is_torch_xla_available", "is_torch_npu_available", "is_xformers_available", "torch.is_grad_enabled")
MODELS = "diffusers.models."
# Names of the engine that rules write into rewritten definitions; no definition of diffusers keeps one of them.
ENGINE_NAMES = ("Attention", "AttentionMetadata")
# The file of a family that holds what its pipelines share; rules ask for its names with an empty module.


@dataclass
class PortedFile:
    """One file of a port, before it is written: nodes in order, imports by bound name, and what happened.

    Attributes:
        imports: bound name to (module, name); name None for ``import module``.
        relative: names that come from another file of the family: name to its module stem.
        sources: the source modules that the file was made from, the main one first.
        vendored: names taken over because the target's diffusers lacks them.
        features: parallel features of a model's file, by name.
        histories: what each definition became step by step, by its name in the port, where that was asked for.
    """

    nodes: list[Any] = field(default_factory=list)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    relative: dict[str, str] = field(default_factory=dict)
    sources: list[SourceModule] = field(default_factory=list)
    residue: list[Residue] = field(default_factory=list)
    applied: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    vendored: list[str] = field(default_factory=list)
    histories: dict[str, History] = field(default_factory=dict)
    features: dict[str, Feature] = field(default_factory=dict)


Rewrite = Callable[[Definition, Context], Any]


class Builder:
    """Collects definitions from the roots outwards and rewrites each once.

    Args:
        tree: the diffusers sources.
        symbols: what the target's packages offer.
        rewrite: rewrites one definition; returns its node.
        relative: names that another file of the family already holds.
        inline: take over definitions of other files that compute attention (a model file does, a pipeline does not).
        public: definitions of the roots' file that stay the target's own where it has them: callers make instances.
        record: keep what each step of the rewriting made of a definition.
    """

    def __init__(
        self,
        tree: SourceTree,
        symbols: Symbols,
        rewrite: Rewrite,
        relative: dict[str, str] | None = None,
        inline: bool = True,
        public: frozenset[str] = frozenset(),
        record: bool = False,
    ) -> None:
        self.tree, self.symbols, self.rewrite, self._inline = tree, symbols, rewrite, inline
        self.file = PortedFile(relative={})
        self._relative, self._public = relative or {}, public
        self._recorder = Recorder(self.file.histories) if record else None
        self._done: dict[str, tuple[str, list[Any]]] = {}
        self._order: dict[str, list[tuple[int, str]]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._edges: dict[str, set[str]] = {}
        self._root: SourceModule | None = None

    def build(self, roots: Iterable[Definition]) -> PortedFile:
        for root in roots:
            self._root = self._root or root.module
            self._add(root)
        for module in self._module_order():
            for _, name in sorted(self._order[module]):
                self.file.nodes += self._done[name][1]
        return self.file

    def _module_order(self) -> list[str]:
        """Source modules, each after those that it refers to: constants and bases must exist when they are used."""
        ordered: dict[str, None] = {}
        for module in self._order:
            self._put(module, (), ordered)
        return [module for module in ordered if module in self._order]

    def _put(self, module: str, path: tuple[str, ...], ordered: dict[str, None]) -> None:
        for other in sorted(self._edges.get(module, ())):
            if other not in ordered and other not in path:
                self._put(other, (*path, module), ordered)
        ordered.setdefault(module)

    def _add(self, definition: Definition, vendored: bool = False, called: str = "") -> str:
        """Take a definition over; returns the name that it has in the port: ``called``, if the source renames it."""
        key = (definition.module.name, definition.name)
        if key in self._names:
            return self._names[key]
        name = called or self._free_name(definition)
        self._names[key] = name
        if name in self._done:
            return name
        self._done[name] = (definition.module.name, [])
        ctx = self._context(definition)
        ctx.vendored = vendored
        if self._recorder is not None:
            self._recorder.begin(name, definition)
        node = self.rewrite(definition, ctx)
        parts = [*ctx.extra.values(), node]
        for needed in dict.fromkeys([*(n for item in parts for n in names_in(item)), *sorted(ctx.also)]):
            emitted = self._need(needed, definition, ctx)
            self._link(definition.module.name, emitted or needed)
            if emitted and emitted != needed:
                parts = [rename(item, needed, emitted) for item in parts]
        if definition.module not in self.file.sources:
            self.file.sources.append(definition.module)
        if name != definition.name:
            parts[-1] = _renamed(parts[-1], name)
        if self._recorder is not None:
            for part, written in zip(parts, [*ctx.extra, name]):
                self._recorder.record("rename", part, written)
            self._recorder.end()
        self._done[name][1].extend(parts)
        self._order.setdefault(definition.module.name, []).append((definition.first_line, name))
        for rule, count in ctx.applied.items():
            self.file.applied[rule] = self.file.applied.get(rule, 0) + count
        return name

    def _link(self, module: str, name: str) -> None:
        held = self._done.get(name)
        if held is not None and held[0] != module:
            self._edges.setdefault(module, set()).add(held[0])

    def _free_name(self, definition: Definition) -> str:
        """The definition's name, or one with the stem of its module where something else has it."""
        name = definition.name
        held = self._done.get(name)
        if name not in ENGINE_NAMES and (held is None or self._identical(name, held[0], definition)):
            return name
        stem = definition.module.name.split(".")[-1].removeprefix("transformer_")
        return f"{name}_{stem}"

    def _identical(self, name: str, held: str, definition: Definition) -> bool:
        other = self.tree.module(held)
        return other is not None and name in other.definitions and other.definitions[name].code == definition.code

    def _context(self, definition: Definition) -> Context:
        facts = module_facts(definition.module)
        ctx = Context(self.tree, definition.module, definition, facts)
        ctx.residue, ctx.dropped, ctx.root = self.file.residue, self.file.dropped, self._root
        ctx.recorder = self._recorder
        return ctx

    def _need(self, name: str, definition: Definition, ctx: Context) -> str | None:
        """Make a name available that a rewritten definition refers to; returns what it is called in the port."""
        module = definition.module
        if name in ctx.imports:
            return self._import(name, *ctx.imports[name])
        if name in self._relative and name not in self._done:
            self.file.relative[name] = self._relative[name]
        elif name in module.definitions and name not in module.guarded:
            is_imported = self.file.imports.get(name) == (module.name, name)
            stays = (ctx.vendored or name in self._public) and self.symbols.has(module.name, name)
            if is_imported or stays:
                return self._import(name, module.name, name)
            return self._add(module.definitions[name], ctx.vendored)
        elif name in module.guarded:
            self._guarded(name, module)
        elif name in module.imports:
            bound = module.imports[name]
            return self._import(name, bound.module, bound.name)
        return None

    def _import(self, bound: str, module: str, name: str | None) -> str | None:
        if module in BESIDE:
            self.file.relative[bound] = module.removeprefix(".")
            return bound
        target = self.tree.resolve(module, name) if name and module.startswith("diffusers") else None
        # What is imported under another name stays so; only what the target's diffusers lacks is taken over.
        if target is None or (bound != target.name and self.symbols.has(target.module.name, target.name)):
            place = (module, name) if target is None else (target.module.name, target.name)
            self.file.imports.setdefault(bound, place)
        elif self.must_inline(target):
            missing = not self.symbols.has(target.module.name, target.name)
            if missing:
                self.file.vendored.append(f"{target.module.name}.{target.name}")
            called = bound if bound != target.name else ""
            return self._add(target, missing and not (self._inline and self.converts(target)), called)
        elif bound not in self._done:
            self.file.imports.setdefault(bound, (self._public_module(module, target), target.name))
        return bound

    def _public_module(self, module: str, target: Definition) -> str:
        """The defining module, or the one that the source imported from where only that exists in the target."""
        return target.module.name if self.symbols.has(target.module.name, target.name) else module

    def must_inline(self, target: Definition) -> bool:
        """Whether the port carries a definition itself: it needs conversion, or the target's diffusers lacks it."""
        return (self._inline and self.converts(target)) or not self.symbols.has(target.module.name, target.name)

    def converts(self, definition: Definition) -> bool:
        """Whether a definition computes attention, itself or through what it is made of."""
        key = (definition.module.name, definition.name)
        if not definition.module.name.startswith(MODELS) or ".autoencoders" in key[0] or ".unets" in key[0]:
            return False
        if definition.name.endswith("Mixin") or key[0].endswith(
            (".attention_dispatch", ".modeling_utils", ".cache_utils")
        ):
            return False
        if key not in self.tree.converts:
            self.tree.converts[key] = False  # a cycle does not convert by itself
            self.tree.converts[key] = uses_attention(definition) or any(
                self.converts(other) for other in self._references(definition)
            )
        return self.tree.converts[key]

    def _references(self, definition: Definition) -> Iterable[Definition]:
        module = definition.module
        for node in walk(definition.node):
            if not isinstance(node, ast.Name) or node.id == definition.name:
                continue
            if node.id in module.definitions:
                yield module.definitions[node.id]
            elif node.id in module.imports:
                bound = module.imports[node.id]
                target = self.tree.resolve(bound.module, bound.name) if bound.name else None
                if target is not None:
                    yield target

    def _guarded(self, name: str, module: SourceModule) -> None:
        outer = module.guarded[name]
        key = f"{module.name}:{outer.lineno}"
        if key in self._done:
            return
        self._done[key] = (module.name, [])
        text = "".join(module.lines[outer.lineno - 1 : outer.end_lineno])
        folded = fold(cst.parse_module(text), module_facts(module))
        definition = Definition(key, module, outer, outer.lineno, outer.end_lineno or outer.lineno)
        ctx = self._context(definition)
        for statement in folded.body:
            absolute = absolute_imports(statement, module)
            self._done[key][1].append(absolute)
            for needed in names_in(absolute):
                if module.guarded.get(needed) is not outer:
                    self._need(needed, definition, ctx)
        self._order.setdefault(module.name, []).append((outer.lineno, key))


def _renamed(node: Any, name: str) -> Any:
    """A definition under another name (assignments are renamed with their references)."""
    return node.with_changes(name=cst.Name(name)) if hasattr(node, "name") else node


def parsed(definition: Definition) -> Any:
    """The tree of a definition, with absolute imports."""
    node = definition.parse()
    return visit(node, AbsoluteImports(definition.module)) if "from ." in definition.code else node


def absolute_imports(node: Any, module: SourceModule) -> Any:
    """``node`` with the relative imports inside its functions made absolute."""
    return visit(node, AbsoluteImports(module)) if "from ." in code(node) else node


class AbsoluteImports(cst.CSTTransformer):
    """Makes relative imports inside functions and guards absolute."""

    def __init__(self, module: SourceModule) -> None:
        self.module = module

    def leave_ImportFrom(self, original: cst.ImportFrom, updated: cst.ImportFrom) -> cst.ImportFrom:
        if not updated.relative:
            return updated
        name = code(updated.module) if updated.module else None
        target = self.module.absolute(ast.ImportFrom(module=name, names=[], level=len(updated.relative)))
        return updated.with_changes(relative=(), module=cst.parse_expression(target))


def _hasattr(call: cst.Call) -> Any:
    # PyTorch has had scaled_dot_product_attention since 2.0; the engine needs a later one.
    name = call.args[-1].value
    known = isinstance(name, cst.SimpleString) and name.evaluated_value == "scaled_dot_product_attention"
    return True if known else UNKNOWN


def module_facts(module: SourceModule) -> Facts:
    """What is known in a module: packages that count as absent, and the flags that follow from them."""
    calls: dict[str, Callable[[cst.Call], Any]] = {name: (lambda call: False) for name in UNAVAILABLE}
    calls["hasattr"] = _hasattr
    facts = Facts({}, calls)
    flags: dict[str, Any] = {}
    for name, outer in module.guarded.items():
        if not isinstance(outer, ast.If):
            continue
        test = cst.parse_expression(ast.unparse(outer.test))
        truth = facts.truth(test)
        if truth is None:
            continue
        for statement in outer.body if truth else outer.orelse:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
                value = facts.value(cst.parse_expression(ast.unparse(statement.value)))
                if value is not UNKNOWN:
                    flags[name] = value
    return facts.merged(flags)
