"""The definitions of a file, as far as splitting its modules over ranks asks for them."""

from __future__ import annotations

import ast
import re

from porter.facts.parallel.flow import FileFacts, Plan, plan_module
from porter.facts.parallel.module import ModuleFacts, module_facts
from porter.source.walk import walk

PARAMETERS = re.compile(r"Linear$|Parameter$|Norm$|Embedding$|Conv\d|Module(List|Dict)$|Sequential$|register_buffer$")


def file_facts(definitions: list[ast.stmt]) -> tuple[FileFacts, dict[str, ModuleFacts]]:
    """The facts of a file, and its modules by name."""
    file, modules = FileFacts(), {}
    classes = [node for node in definitions if isinstance(node, ast.ClassDef)]
    for node in definitions:
        if isinstance(node, ast.FunctionDef):
            file.functions[node.name] = node
            file.qualified[id(node)] = node.name
    for node in classes:
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                file.qualified[id(item)] = f"{node.name}.{item.name}"
        facts = module_facts(node)
        if facts is None:
            continue
        modules[node.name] = facts
        if not facts.linears and not _has_parameters(node):
            file.activations[node.name] = facts
    calls = {node.name: call for node in classes if (call := _processor_call(node)) is not None}
    for name in modules:
        served = _processors_of(name, modules[name], calls, definitions) if calls else []
        if served:
            file.processors[name] = served
    return file, modules


def _has_parameters(node: ast.ClassDef) -> bool:
    calls = (item.func for item in walk(node) if isinstance(item, ast.Call))
    return any(PARAMETERS.search(getattr(function, "attr", getattr(function, "id", ""))) for function in calls)


def _processor_call(node: ast.ClassDef) -> ast.FunctionDef | None:
    """``__call__`` of a processor: a class that is called with the attention module."""
    call = next((i for i in node.body if isinstance(i, ast.FunctionDef) and i.name == "__call__"), None)
    return call if call is not None and len(call.args.args) > 2 and call.args.args[1].arg == "attn" else None


def _processors_of(
    name: str, facts: ModuleFacts, calls: dict[str, ast.FunctionDef], definitions: list[ast.stmt]
) -> list[ast.FunctionDef]:
    """The processors that a module builds for itself or is built with."""
    named: dict[str, None] = {}
    for node in walk(facts.node):
        if isinstance(node, ast.Name) and node.id in calls:
            named[node.id] = None
    for definition in definitions:
        for node in walk(definition):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                given = next((k.value for k in node.keywords if k.arg == "processor"), None)
                found = [n.id for n in walk(given) if isinstance(n, ast.Name) and n.id in calls] if given else []
                chosen = given is not None and not found and not isinstance(given, ast.Constant)
                named |= dict.fromkeys(calls if chosen else found)  # chosen somewhere else: any of them
    return [calls[processor] for processor in named]


def blocks_of(definitions: list[ast.stmt]) -> set[str]:
    """Classes that the repeated blocks of a file are made of: those built into a ``ModuleList``, and all they build.

    What runs once (embedders, the last projection) is not worth the messages between ranks.
    """
    classes = {node.name: node for node in definitions if isinstance(node, ast.ClassDef)}
    made = {name: _names(node) & classes.keys() for name, node in classes.items()}
    queue: list[str] = []
    for node in classes.values():
        for call in walk(node):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("ModuleList", "Sequential", "append"):
                queue += [name for argument in call.args for name in _names(argument) & classes.keys()]
    found: set[str] = set()
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += made[name]
    return found


def _names(node: ast.AST) -> set[str]:
    return {item.id for item in walk(node) if isinstance(item, ast.Name)}


def plan_file(definitions: list[ast.stmt]) -> tuple[dict[str, Plan], dict[str, ModuleFacts]]:
    """How the modules of a file's repeated blocks are split, by class; and all its modules."""
    file, modules = file_facts(definitions)
    inside = blocks_of(definitions)
    file.modules = modules
    plans = {name: plan_module(facts, file) for name, facts in modules.items() if facts.linears and name in inside}
    _collected(plans, file, definitions)
    _agree(plans)
    _untouched(plans, modules, definitions)
    return plans, modules


def _collected(plans: dict[str, Plan], file: FileFacts, definitions: list[ast.stmt]) -> None:
    """Where all that hold an attention module project its result themselves, it is left in parts for them."""
    leaving = {name: plan for name, plan in plans.items() if any(e[0] == "return" for e in _all_edits(plan))}
    for name, plan in leaving.items():
        holders = [other for other, facts in file.modules.items() if name in facts.built_names()]
        constructions = sum(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
            for definition in definitions
            for node in walk(definition)
        )
        if not holders or constructions != sum(file.modules[h].built_names().count(name) for h in holders):
            continue
        file.plans = {name: plan}
        fresh = {holder: plan_module(file.modules[holder], file) for holder in holders}
        file.plans = {}
        if not all(found.inner or found.calls_whole for found in fresh.values()):
            continue
        plans |= {holder: found for holder, found in fresh.items() if found.inner}
        for function, edits in plan.edits.items():
            plan.edits[function] = frozenset(edit for edit in edits if edit[0] != "return")


def _all_edits(plan: Plan) -> list[tuple[object, ...]]:
    return [edit for edits in plan.edits.values() for edit in edits]


def _agree(plans: dict[str, Plan]) -> None:
    """Functions that several modules go through are changed alike for all of them, or those modules stay whole."""
    asked: dict[str, dict[str, frozenset[tuple[object, ...]]]] = {}
    for name, plan in plans.items():
        for function, edits in plan.edits.items():
            wanted = frozenset(edit for edit in edits if edit[0] != "plain norm")
            asked.setdefault(function, {})[name] = wanted
    for function, wanted_by in asked.items():
        if len(set(wanted_by.values())) > 1:
            for name in wanted_by:
                plan = plans[name]
                plans[name] = Plan(whole=dict.fromkeys(plan.columns, f"shares {function} with a module that is whole"))


def _untouched(plans: dict[str, Plan], modules: dict[str, ModuleFacts], definitions: list[ast.stmt]) -> None:
    """A projection that others reach into (``block.attn.to_k``) stays whole with all of its module."""
    reached: set[str] = set()
    for definition in definitions:
        for node in walk(definition):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                reached.add(node.attr)
    for name, plan in plans.items():
        touched = {key for key in [*plan.columns, *plan.rows] if key.split(".")[0] in reached}
        if touched:
            plans[name] = Plan(whole=dict.fromkeys(plan.columns, f"is used from outside: {', '.join(sorted(touched))}"))
