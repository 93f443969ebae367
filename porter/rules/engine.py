"""The rule engine: small rules that share one walk over each definition.

A rule is a class with a docstring (what it does and why), a safety class, examples that are run as tests, and
``leave_<Node>`` methods. A file is parsed once; its definitions are walked once with all rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, ClassVar

import libcst as cst

from porter.rules.fold import Facts
from porter.rules.history import Recorder

# Rules find their tools here, whichever file holds them.
from porter.rules.text import code as code
from porter.rules.trees import identifiers as identifiers
from porter.rules.trees import names_bound as names_bound
from porter.rules.trees import names_in as names_in
from porter.rules.trees import names_read as names_read
from porter.rules.trees import nodes as nodes
from porter.rules.trees import rename as rename
from porter.rules.trees import to_ast as to_ast
from porter.rules.trees import visit as visit
from porter.source import Definition, SourceModule, SourceTree

# Files that every family has beside its models, and what names them in an import.
SUPPORT, STEPWISE, INVARIANTS = ".support", ".stepwise", ".invariants"
BESIDE = (SUPPORT, STEPWISE, INVARIANTS)

SURFACE = "surface"
SAME = "same arithmetic"
CHANGED = "changed arithmetic"


@dataclass(frozen=True)
class Residue:
    """What a conversion left as it was: where, why, and whether results can depend on it."""

    file: str
    line: int
    reason: str
    affects_results: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class Context:
    """What a rule may ask and what it may report while one definition is rewritten.

    Attributes:
        tree: the diffusers sources.
        module: the source file of the definition at hand.
        definition: the definition at hand.
        facts: what is known for folding.
        imports: canonical imports that rules ask for: bound name to (module, name).
        extra: definitions that a rule adds to the port (name to node), emitted before the one that needs them.
        residue: what was left, and why.
        applied: names of the rules that changed something.
        dropped: features of the original that the port does not have, by name.
        root: the source file that the port's file is made for.
        vendored: the definition is taken over as it is, since the target's diffusers lacks it.
        recorder: keeps the text after each step, where someone asked for it.
        features: what a rule could give the port, by name: ``derived``, or why not.
        also: names of the source file that the port needs outside of the rewritten definition (in a hook).
    """

    tree: SourceTree
    module: SourceModule
    definition: Definition | None = None
    facts: Facts = field(default_factory=Facts)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    extra: dict[str, cst.CSTNode] = field(default_factory=dict)
    residue: list[Residue] = field(default_factory=list)
    applied: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    root: SourceModule | None = None
    vendored: bool = False
    recorder: Recorder | None = None
    features: dict[str, str] = field(default_factory=dict)
    also: set[str] = field(default_factory=set)

    def record(self, step: str, node: Any) -> None:
        """Keep the text after a step (see :class:`Recorder`)."""
        if self.recorder is not None:
            self.recorder.record(step, node)

    def need(self, module: str, name: str) -> str:
        """Ask for ``from module import name`` ; returns ``name``.

        Modules are given by their canonical names (vllm, vllm_omni, diffusers), or as one of :data:`BESIDE`.
        """
        self.imports[name] = (module, name)
        return name

    def report(self, line: int, reason: str, affects_results: bool = False) -> None:
        relative = self.module.path.relative_to(self.tree.root.parent)
        entry = Residue(str(relative), line, reason, affects_results)
        if entry not in self.residue:
            self.residue.append(entry)

    def used(self, rule: Rule | str) -> None:
        name = rule if isinstance(rule, str) else rule.name
        self.applied[name] = self.applied.get(name, 0) + 1

    def origin(self, name: str) -> str:
        """Absolute dotted origin of a name used in the module: ``diffusers.models.attention.FeedForward``."""
        head, _, rest = name.partition(".")
        if head in self.module.definitions:
            return f"{self.module.name}.{name}"
        bound = self.module.imports.get(head)
        if bound is None:
            return name
        path = f"{bound.module}.{bound.name}" if bound.name else bound.module
        return f"{path}.{rest}" if rest else path


class Rule:
    """A rewrite. Subclasses define ``leave_<Node>(self, ctx, original, updated)``; returning ``updated`` is a no-op."""

    name: ClassVar[str]
    safety: ClassVar[str] = SURFACE
    VALID: ClassVar[Sequence[str]] = ()
    INVALID: ClassVar[Sequence[tuple[str, str]]] = ()

    @property
    def summary(self) -> str:
        return (type(self).__doc__ or "").strip().splitlines()[0]


@cache
def _methods(rule: Any, prefix: str) -> tuple[str, ...]:
    return tuple(name for name in dir(rule) if name.startswith(prefix))


class SharedWalk(cst.CSTTransformer):
    """One walk that offers each node to every rule that asked for its type, in the order of the rules."""

    def __init__(self, rules: Sequence[Rule], ctx: Context) -> None:
        super().__init__()
        self.ctx = ctx
        self._visit: dict[str, list[tuple[Rule, Any]]] = {}
        self._leave: dict[str, list[tuple[Rule, Any]]] = {}
        for rule in rules:
            kind: Any = type(rule)
            for prefix, table in (("visit_", self._visit), ("leave_", self._leave)):
                for attribute in _methods(kind, prefix):
                    table.setdefault(attribute.removeprefix(prefix), []).append((rule, getattr(rule, attribute)))

    def asked(self, kind: str) -> tuple[bool, bool]:
        """Whether any rule asked for a type of nodes: where one is entered, and where it is left."""
        return kind in self._visit, kind in self._leave

    def on_visit(self, node: cst.CSTNode) -> bool:
        descend = True
        for _, enter in self._visit.get(type(node).__name__, ()):
            descend &= enter(self.ctx, node) is not False
        return descend

    def on_leave(self, original_node: cst.CSTNode, updated_node: Any) -> Any:
        kind = type(updated_node)
        for rule, leave in self._leave.get(kind.__name__, ()):
            result = leave(self.ctx, original_node, updated_node)
            if result is not updated_node:
                self.ctx.used(rule)
            updated_node = result
            if type(updated_node) is not kind:
                break
        return updated_node


def walk(node: Any, rules: Sequence[Rule], ctx: Context) -> Any:
    """``node`` rewritten by ``rules`` in one walk; in one for each where it is recorded which of them did what."""
    if ctx.recorder is None:
        return visit(node, SharedWalk(rules, ctx))
    for rule in rules:
        node = visit(node, SharedWalk([rule], ctx))
        ctx.record(rule.name, node)
    return node


@lru_cache(maxsize=4096)
def bare(node: Any) -> str:
    """Source text of a statement without the comments and blank lines above it."""
    return code(node.with_changes(leading_lines=[]) if hasattr(node, "leading_lines") else node)


def statement(text: str) -> cst.BaseStatement:
    return cst.parse_statement(text)


def statements(text: str) -> list[Any]:
    return list(cst.parse_module(text).body)


@cache
def definitions(text: str) -> tuple[Any, ...]:
    """Definitions that a rule writes whole: they are the same in every port, so they are parsed once."""
    return tuple(statements(text.strip("\n") + "\n"))


def expression(text: str) -> cst.BaseExpression:
    return cst.parse_expression(text)


def method(node: cst.ClassDef, name: str) -> cst.FunctionDef | None:
    """A method of a class by name."""
    for item in node.body.body:
        if isinstance(item, cst.FunctionDef) and item.name.value == name:
            return item
    return None


def with_method(node: cst.ClassDef, replacement: cst.FunctionDef | None, name: str) -> cst.ClassDef:
    """The class with the method ``name`` replaced (or removed, for None; appended if it had none)."""
    body: list[Any] = []
    seen = False
    for item in node.body.body:
        if isinstance(item, cst.FunctionDef) and item.name.value == name:
            seen = True
            if replacement is not None:
                body.append(replacement)
        else:
            body.append(item)
    if not seen and replacement is not None:
        body.append(replacement)
    return node.with_changes(body=node.body.with_changes(body=body))


def body_statements(function: cst.FunctionDef) -> list[Any]:
    """Statements of a function without its docstring."""
    items = list(function.body.body)
    if items and is_docstring(items[0]):
        items = items[1:]
    return items


def is_docstring(node: cst.CSTNode) -> bool:
    return (
        isinstance(node, cst.SimpleStatementLine)
        and len(node.body) == 1
        and isinstance(node.body[0], cst.Expr)
        and isinstance(node.body[0].value, cst.SimpleString | cst.ConcatenatedString)
    )


def parameters(function: cst.FunctionDef) -> list[cst.Param]:
    """Positional and keyword parameters of a function, ``self`` included, stars left out."""
    params = function.params
    return [*params.posonly_params, *params.params, *params.kwonly_params]


def arguments(call: cst.Call) -> tuple[list[cst.Arg], dict[str, cst.Arg], list[cst.Arg]]:
    """Positional, keyword and starred arguments of a call."""
    positional = [a for a in call.args if a.keyword is None and not a.star]
    keywords = {a.keyword.value: a for a in call.args if a.keyword is not None}
    return positional, keywords, [a for a in call.args if a.star]


def make_call(function: str | cst.BaseExpression, args: Sequence[str | cst.Arg]) -> cst.Call:
    """A call; strings are parsed as ``value`` or ``keyword=value``."""
    func = expression(function) if isinstance(function, str) else function
    built: list[cst.Arg] = []
    for arg in args:
        if isinstance(arg, cst.Arg):
            built.append(
                arg.with_changes(comma=cst.MaybeSentinel.DEFAULT, whitespace_after_arg=cst.SimpleWhitespace(""))
            )
        else:
            built.append(cst.parse_expression(f"f({arg})").args[0])  # type: ignore[attr-defined]
    return cst.Call(func=func, args=built)
