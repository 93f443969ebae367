"""The loops of a model over its blocks: what goes round, and in which order a block takes and returns it.

A cache of blocks (Cache-DiT) runs such a loop by itself and skips most of it in a step that resembles the one before.
It calls each block with the states first, as positions, and everything else as the loop does. So a loop fits where
nothing but the states changes from block to block.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from porter.source.walk import walk

# A block's states by what its call in the loop looks like: hidden states first (0) or second (1) of two that it takes
# and returns; hidden states alone (3); one more that it returns and does not take, second (4) or first (5).
BOTH_FIRST, BOTH_SECOND, ALONE, RETURNS_FIRST, RETURNS_SECOND = 0, 1, 3, 4, 5
# What the cache calls the two states where the loop passes them by keyword.
KEYWORDS = ("hidden_states", "encoder_hidden_states")
# Two or so blocks that prepare text or latents: caching them saves nothing, and bounds how deep the main ones can be.
PREPARING = ("refiner", "embed", "connector")
Classes = Callable[[str], ast.ClassDef | None]


@dataclass
class BlockLoops:
    """What was found for a model.

    Attributes:
        patterns: attribute of the list of blocks, to one of the patterns above.
        named: the blocks call their states as the cache does, so that it can check them.
        absent: parameters of the forward without which this holds: they change the states between blocks.
        reasons: of the loops that do not fit, by attribute.
    """

    patterns: dict[str, int] = field(default_factory=dict)
    named: bool = True
    absent: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


class Unfit(Exception):
    """A loop that a cache cannot run; the message says why."""


def block_loops(model: ast.ClassDef, classes: Classes) -> BlockLoops:
    """The loops over blocks in a model's forward.

    Args:
        model: the class.
        classes: gives a class of its file by name, where blocks are looked up; None if there is none.
    """
    found = BlockLoops()
    functions = {item.name: item for item in model.body if isinstance(item, ast.FunctionDef)}
    if "__init__" not in functions or "forward" not in functions:
        return found
    lists = _lists(functions["__init__"])
    forward = functions["forward"]
    optional = _optional(forward)
    for attribute, loop in _loops(forward, lists):
        if attribute in found.patterns or attribute in found.reasons:
            found.patterns.pop(attribute, None)
            found.reasons[attribute] = "it is gone through twice"
            continue
        try:
            try:
                pattern = _pattern(loop, forward, attribute, lists[attribute], classes)
            except Unfit:
                tested = [name for name in optional if _is_tested(loop, name)]
                if not tested:
                    raise
                folded = without(forward, tested)
                again = next((item for name, item in _loops(folded, lists) if name == attribute), None)
                if again is None:
                    raise
                pattern = _pattern(again, folded, attribute, lists[attribute], classes)
                found.absent += [name for name in tested if name not in found.absent]
            found.patterns[attribute] = pattern
            wanted = set(KEYWORDS if pattern in (BOTH_FIRST, BOTH_SECOND) else KEYWORDS[:1])
            blocks = (classes(name) for name in lists[attribute])
            found.named &= all(wanted <= set(_parameters(block)) for block in blocks if block is not None)
        except Unfit as reason:
            found.reasons[attribute] = str(reason)
    return found


def _lists(init: ast.FunctionDef) -> dict[str, list[str]]:
    """Attributes that hold a ``ModuleList``, with the classes named in it."""
    found: dict[str, list[str]] = {}
    for node in walk(init):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Attribute) and ast.unparse(node.value.func).endswith("ModuleList"):
            if not any(part in target.attr for part in PREPARING):
                found[target.attr] = [name for part in node.value.args for name in _elements(part)]
    return found


def _elements(made: ast.expr) -> list[str]:
    """What is called to make the elements of a list; an empty name for what is no plain call."""
    if isinstance(made, ast.ListComp | ast.GeneratorExp):
        return _elements(made.elt)
    if isinstance(made, ast.List | ast.Tuple):
        return [name for item in made.elts for name in _elements(item)]
    if isinstance(made, ast.IfExp):
        return [*_elements(made.body), *_elements(made.orelse)]
    return [made.func.id if isinstance(made, ast.Call) and isinstance(made.func, ast.Name) else ""]


def _loops(forward: ast.FunctionDef, lists: Mapping[str, list[str]]) -> Iterator[tuple[str, ast.For]]:
    for node in walk(forward):
        if isinstance(node, ast.For):
            iterated = node.iter
            if isinstance(iterated, ast.Call) and iterated.args and ast.unparse(iterated.func) == "enumerate":
                iterated = iterated.args[0]
            if isinstance(iterated, ast.Attribute) and iterated.attr in lists:
                yield iterated.attr, node


def _optional(function: ast.FunctionDef) -> list[str]:
    """Parameters whose default is None."""
    given = [*function.args.posonlyargs, *function.args.args]
    defaults = [*function.args.defaults, *function.args.kw_defaults]
    named = [*given[len(given) - len(function.args.defaults) :], *function.args.kwonlyargs]
    return [p.arg for p, d in zip(named, defaults, strict=True) if isinstance(d, ast.Constant) and d.value is None]


class _Without(ast.NodeTransformer):
    """Removes what runs only if one of some names is not None; three-valued, what is not known stays.

    Args:
        absent: the names.
        once: names that are bound in one place: a constant bound there is their value.
    """

    def __init__(self, absent: Iterable[str], once: set[str]) -> None:
        self.known: dict[str, bool | None] = dict.fromkeys(absent)
        self._once = once

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        truth = self._truth(node.test)
        if truth is None:
            return self.generic_visit(node)
        return [part for item in (node.body if truth else node.orelse) for part in self._parts(self.visit(item))]

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
            self.known.update({name: node.value.value for name in _names(node.targets[0]) if name in self._once})
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        truth = self._truth(node.test)
        return node if truth is None else node.body if truth else node.orelse

    @staticmethod
    def _parts(visited: Any) -> list[ast.stmt]:
        return visited if isinstance(visited, list) else [visited]

    def _truth(self, test: ast.expr) -> bool | None:
        if isinstance(test, ast.Name) and test.id in self.known:
            return bool(self.known[test.id])
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            truth = self._truth(test.operand)
            return None if truth is None else not truth
        if isinstance(test, ast.BoolOp):
            deciding = isinstance(test.op, ast.Or)
            found = [self._truth(value) for value in test.values]
            return deciding if deciding in found else None if None in found else not deciding
        if not isinstance(test, ast.Compare) or not isinstance(test.comparators[0], ast.Constant) or len(test.ops) > 1:
            return None
        if isinstance(test.left, ast.Name) and self.known.get(test.left.id, True) is None:
            is_none = test.comparators[0].value is None
            if isinstance(test.ops[0], ast.Is | ast.Eq):
                return is_none
            if isinstance(test.ops[0], ast.IsNot | ast.NotEq):
                return not is_none
        return None


def without(function: ast.FunctionDef, absent: list[str]) -> ast.FunctionDef:
    """A function without what it does only if some of its parameters are given."""
    stored = [n.id for n in walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    once = {name for name in stored if stored.count(name) == 1} - {parameter.arg for parameter in named}
    changed: ast.FunctionDef = _Without((n for n in absent if n not in stored), once).visit(copy.deepcopy(function))
    return changed


def _is_tested(loop: ast.For, name: str) -> bool:
    """Whether the loop asks if a name is None."""
    tests = (node for node in walk(loop) if isinstance(node, ast.Compare))
    return any(ast.unparse(node) in (f"{name} is not None", f"{name} is None") for node in tests)


def _pattern(loop: ast.For, forward: ast.FunctionDef, attribute: str, blocks: list[str], classes: Classes) -> int:
    *indices, block = _names(loop.target)
    body = [node for node in loop.body if not isinstance(node, ast.Pass) and not _is_constant(node)]
    if len(body) != 1 or loop.orelse:
        raise Unfit("its loop does more than call the blocks")
    [step] = body
    call = step.value if isinstance(step, ast.Assign) else None
    if not isinstance(step, ast.Assign) or not isinstance(call, ast.Call) or ast.unparse(call.func) != block:
        raise Unfit("its loop does not hand on what a block returns as it is")
    uses = [node for node in walk(forward) if isinstance(node, ast.Attribute) and node.attr == attribute]
    if len(uses) > 1:
        raise Unfit("its blocks are used outside of the loop")
    returned = _names(step.targets[0])
    read = _read([*call.args, *call.keywords])
    if read & {*indices, block}:
        raise Unfit("what a block is given depends on its place")
    first, second, others = _places(call)
    held = _read(others)
    if first is None or not returned or len(returned) > 2:
        raise Unfit("a block does not take its states first, or returns more than two")
    known = [found for name in dict.fromkeys(blocks) if (found := classes(name)) is not None]
    parameters = [_parameters(block) for block in known]
    if first == second or held & {first, second if second in returned else first}:
        raise Unfit("a block is given its states twice")
    if len(known) < len(set(blocks)) or not parameters:
        raise Unfit("its blocks are not classes of this file")
    if len(returned) == 1:
        if returned != [first]:
            raise Unfit("its loop does not hand on what a block returns as it is")
        _check_order(call, parameters, 1)
        return ALONE
    if {first, second} == set(returned):
        _check_order(call, parameters, 2)
        return BOTH_FIRST if returned[0] == first else BOTH_SECOND
    other = [name for name in returned if name != first]
    if first not in returned or other[0] in read:
        raise Unfit("what a block returns is not what the next one takes")
    _check_order(call, parameters, 1)
    return RETURNS_FIRST if returned[0] == first else RETURNS_SECOND


def _places(call: ast.Call) -> tuple[str | None, str | None, list[ast.expr]]:
    """The names given as first and as second state, by position or keyword, and all other arguments."""
    if any(isinstance(argument, ast.Starred) for argument in call.args) or any(k.arg is None for k in call.keywords):
        raise Unfit("its blocks are called with unpacked arguments")
    given: dict[str | int, ast.expr] = dict(enumerate(call.args))
    given |= {str(keyword.arg): keyword.value for keyword in call.keywords}
    keys = [place if place in given else KEYWORDS[place] for place in (0, 1)]
    states = [given.get(key) for key in keys]
    first, second = (state.id if isinstance(state, ast.Name) else None for state in states)
    others = [value for key, value in given.items() if key != keys[0] and (key != keys[1] or second is None)]
    return first, second, others


def _check_order(call: ast.Call, blocks: list[list[str]], states: int) -> None:
    """The cache hands the states over by position: the blocks have to take them there."""
    named = {str(keyword.arg) for keyword in call.keywords}
    for place in range(states):
        if place < len(call.args):
            continue
        if KEYWORDS[place] not in named or any(len(b) <= place or b[place] != KEYWORDS[place] for b in blocks):
            raise Unfit(f"its blocks do not take {KEYWORDS[place]} in place {place + 1}")
    if states == 1 and len(call.args) <= 1 and any(not block for block in blocks):
        raise Unfit("its blocks take nothing")


def _parameters(block: ast.ClassDef) -> list[str]:
    forward = next((i for i in block.body if isinstance(i, ast.FunctionDef) and i.name == "forward"), None)
    return [p.arg for p in (*forward.args.posonlyargs, *forward.args.args)][1:] if forward else []


def _names(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Tuple) and all(isinstance(item, ast.Name) for item in target.elts):
        return [item.id for item in target.elts if isinstance(item, ast.Name)]
    return []


def _read(arguments: Iterable[ast.AST]) -> set[str]:
    return {node.id for item in arguments for node in walk(item) if isinstance(node, ast.Name)}


def _is_constant(node: ast.stmt) -> bool:
    """A text that stands alone, or a constant that gets a name: what folding leaves of a condition."""
    return isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Constant)
