"""Which projections of a module can be one layer: those that always read the same input."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass

from porter.facts.parallel.calls_together import Call, Key, Mentions, Use, by_key, suites
from porter.facts.parallel.flow import Plan
from porter.facts.parallel.merged_sizes import Layer, qkv_layer, stacked_layer
from porter.facts.parallel.module import LINEAR, ModuleFacts, self_attribute
from porter.source.walk import walk

ROLES = {"q": "q", "query": "q", "k": "k", "key": "k", "v": "v", "value": "v"}


@dataclass(frozen=True)
class Merge:
    """Projections of a class that become one layer.

    Attributes:
        members: their names, in the order in which their outputs lie.
        name: of the layer.
        layer: how it is built.
        smaller: keys and values alone, where queries cannot be part of it after all.
    """

    members: tuple[str, ...]
    name: str
    layer: Layer
    smaller: Merge | None = None

    @property
    def shards(self) -> tuple[str | int, ...]:
        """What the engine calls the parts."""
        return ("q", "k", "v") if self.layer.kind == "QKVParallelLinear" else tuple(range(len(self.members)))


@dataclass(frozen=True)
class Found:
    """What can be merged in a file.

    Attributes:
        merges: by class.
        apart: why projections beside each other stay apart, by class and their names.
        uses: the layer that is applied or asked for instead, by member, text of its owner, and class or function.
    """

    merges: dict[str, list[Merge]]
    apart: dict[str, dict[str, str]]
    uses: dict[Use, Merge]


@dataclass(frozen=True)
class _Built:
    """``self.member = nn.Linear(…)``: its call, and where in a constructor it stands."""

    call: ast.Call
    suite: int
    place: int
    bias: str


def find_merges(definitions: list[ast.stmt], modules: dict[str, ModuleFacts], plans: dict[str, Plan]) -> Found:
    """The layers that projections become.

    Args:
        definitions: of the file.
        modules: its modules, by name.
        plans: how they are split; only what is split by its outputs is merged.
    """
    search = _Search(definitions, modules, plans)
    found = {name: search.merges(name) for name in plans}
    search.agree(found)
    uses = {use: merge for use in search.mentions.uses for merge in search.wanted(use, found).values() if merge}
    return Found({name: merges for name, merges in found.items() if merges}, search.apart, uses)


class _Search:
    def __init__(self, definitions: list[ast.stmt], modules: dict[str, ModuleFacts], plans: dict[str, Plan]) -> None:
        self.modules, self.plans = modules, plans
        self.apart: dict[str, dict[str, str]] = {}
        self.relatives = _relatives([node for node in definitions if isinstance(node, ast.ClassDef)])
        self.built = {name: _constructions(modules[name], plan) for name, plan in plans.items()}
        self.mentions = Mentions(definitions, {member for held in self.built.values() for member in held})
        self.callers = _callers(definitions)
        self.processors, self.processed = _processors(definitions)
        self.opaque = _opaque(definitions)

    def merges(self, name: str) -> list[Merge]:
        """What can be merged in a class, the rest of the file left out of account."""
        built, facts = self.built[name], self.modules[name]
        groups: dict[tuple[frozenset[Key], int, str], list[str]] = defaultdict(list)
        for member, made in built.items():
            calls = [call for call in self.mentions.calls if call.member == member and self._serves(call, name)]
            keys = frozenset(call.key for call in calls)
            if keys and len(keys) == len(calls) and not self._used_otherwise(member, name):
                groups[keys, made.suite, made.bias].append(member)
        found: list[Merge] = []
        for (keys, suite, _), members in groups.items():
            if len(members) < 2 or not self._together(members, keys):
                continue
            statements = next(body for body in _suites(facts.methods["__init__"].body) if id(body) == suite)
            for chosen in _chosen(members):
                merge, reason = _merge(facts, chosen, {m: built[m].call for m in chosen}, statements)
                if merge is not None:
                    found.append(merge)
                if reason:
                    self._note(name, [m for m in chosen if merge is None or m not in merge.members], reason)
        done = {member for merge in found for member in merge.members}
        for kin in _kin(built):
            left = [member for member in kin if member not in done]
            if left and not any(member in names.split(", ") for names in self.apart.get(name, ()) for member in left):
                self._note(name, left, self._why(name, kin))
        return found

    def _why(self, name: str, members: list[str]) -> str:
        """What keeps query, key and value projections from being one layer."""
        built = [self.built[name][member] for member in members]
        if any(self._used_otherwise(member, name) for member in members):
            return "is used in another way than to be applied to a value"
        reads = {
            member: {call.key for call in self.mentions.calls if call.member == member and self._serves(call, name)}
            for member in members
        }
        if len({frozenset(keys) for keys in reads.values()}) > 1:
            return "reads another value, or in another place"
        if len({made.bias for made in built}) > 1:
            return "has another bias"
        return "is built in another place" if len({made.suite for made in built}) > 1 else "reads a value that changes"

    def _note(self, name: str, members: list[str], reason: str) -> None:
        self.apart.setdefault(name, {}).setdefault(", ".join(members), reason)

    def _together(self, members: list[str], keys: frozenset[Key]) -> bool:
        sites = by_key([c for c in self.mentions.calls if c.member in members and c.key in keys])
        return all(self.mentions.together(calls) for calls in sites.values())

    def _serves(self, call: Call, name: str) -> bool:
        """Whether a call may be one of this class' projections."""
        return self._reaches(call.owner, call.within, name)

    def _reaches(self, owner: str, within: str, name: str) -> bool:
        if within not in self.relatives:  # a function
            return name in self.callers[within] or not self.callers[within] <= self.modules.keys()
        if owner == "self":
            return name in self.relatives[within]
        return within not in self.processors or name in self.processed | self.opaque

    def _used_otherwise(self, member: str, name: str) -> bool:
        return any(used == member and self._reaches(owner, at, name) for used, owner, at in self.mentions.other)

    def wanted(self, use: Use, found: dict[str, list[Merge]]) -> dict[str, Merge | None]:
        """What a use stands for in each of the classes that it may be one of."""
        member, owner, within = use
        holding = {name for name, facts in self.modules.items() if member in facts.aliases} | self.opaque
        serving = [name for name in sorted(holding) if self._reaches(owner, within, name)]
        return {name: next((m for m in found.get(name, ()) if member in m.members), None) for name in serving}

    def agree(self, found: dict[str, list[Merge]]) -> None:
        """A use that may be one of several classes' is rewritten for all of them alike, or for none."""
        while True:
            dropped = False
            for use in self.mentions.uses:
                wanted = self.wanted(use, found)
                shapes = {(m.name, m.members) if m else None for m in wanted.values()}
                if len(shapes) > 1:
                    held = {name: merge for name, merge in wanted.items() if merge is not None}
                    larger = {name: merge for name, merge in held.items() if merge.smaller is not None}
                    for name, merge in (larger or held).items():
                        found[name].remove(merge)
                        found[name] += [merge.smaller] if merge.smaller else []
                        left = merge.members[:1] if merge.smaller else merge.members
                        self._note(name, list(left), "shares its code with a module where they differ")
                    dropped = True
                    break
            if not dropped:
                return


def _relatives(classes: list[ast.ClassDef]) -> dict[str, set[str]]:
    bases = {node.name: {base.id for base in node.bases if isinstance(base, ast.Name)} for node in classes}
    above = {}
    for name in bases:
        found, queue = {name}, [name]
        while queue:
            more = bases.get(queue.pop(), set()) - found
            found |= more
            queue += more
        above[name] = found
    return {name: above[name] | {other for other, found in above.items() if name in found} for name in bases}


def _processors(definitions: list[ast.stmt]) -> tuple[set[str], set[str]]:
    """Processors, and the classes that may have one: those that name one, and those that are given one."""
    classes = [node for node in definitions if isinstance(node, ast.ClassDef)]
    called = {
        node.name
        for node in classes
        if any(isinstance(item, ast.FunctionDef) and item.name == "__call__" for item in node.body)
    }
    having: set[str] = set()
    for definition in classes if called else ():
        for node in walk(definition):
            if isinstance(node, ast.Name) and node.id in called and definition.name not in called:
                having.add(definition.name)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                having |= {node.func.id} if any(key.arg == "processor" for key in node.keywords) else set()
    return called, having


def _opaque(definitions: list[ast.stmt]) -> set[str]:
    """Modules that derive from a class of another file, which may give them anything."""
    classes = {node.name: node for node in definitions if isinstance(node, ast.ClassDef)}
    return {
        name
        for name, node in classes.items()
        if any(isinstance(base, ast.Name) and base.id not in classes for base in node.bases)
        and any(isinstance(item, ast.FunctionDef) and item.name in ("__init__", "forward") for item in node.body)
    }


def _callers(definitions: list[ast.stmt]) -> dict[str, set[str]]:
    """By function, the classes whose code comes to it."""
    named: dict[str, set[str]] = {node.name: set() for node in definitions if isinstance(node, ast.FunctionDef)}
    for node in definitions if named else ():
        for item in walk(node):
            if isinstance(item, ast.Name) and item.id in named and isinstance(node, ast.ClassDef | ast.FunctionDef):
                named[item.id].add(node.name)
    for _ in named:
        found = {f: {up for by in callers for up in named.get(by, {by})} for f, callers in named.items()}
        if found == named:
            break
        named = found
    return named


def _constructions(facts: ModuleFacts, plan: Plan) -> dict[str, _Built]:
    """Projections that are split by their outputs and built in one place, under ``self``."""
    found: dict[str, _Built] = {}
    counts: dict[str, int] = defaultdict(int)
    whole = plan.packed.keys() | plan.rows.keys() | plan.hinted
    for body in _suites(facts.methods["__init__"].body):
        for place, node in enumerate(body):
            if not isinstance(node, ast.Assign):
                continue
            for target in node.targets:
                member = self_attribute(target)
                if member is None or (isinstance(node.value, ast.Constant) and node.value.value is None):
                    continue
                counts[member] += 1
                call = node.value
                if isinstance(call, ast.Call) and ast.unparse(call.func) in LINEAR and len(node.targets) == 1:
                    bias = _plain_bias(call)
                    if bias is not None and member in plan.columns - whole:
                        found[member] = _Built(call, id(body), place, bias)
    return {member: made for member, made in found.items() if counts[member] == 1}


def _plain_bias(call: ast.Call) -> str | None:
    """The text of the bias of a projection; None if it has arguments that a merged layer has not."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    given |= dict(zip(("in_features", "out_features", "bias"), call.args))
    known = given.keys() <= {"in_features", "out_features", "bias"} and len(call.args) <= 3
    if not known or not {"in_features", "out_features"} <= given.keys():
        return None
    return ast.unparse(given["bias"]) if "bias" in given else "True"


def _suites(body: list[ast.stmt]) -> list[list[ast.stmt]]:
    found = [body]
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While):
            for inner in suites(node):
                found += _suites(inner)
    return found


def _merge(
    facts: ModuleFacts, members: list[str], calls: dict[str, ast.Call], statements: list[ast.stmt]
) -> tuple[Merge | None, str]:
    name = merged_name(members)
    if name in facts.aliases or name in facts.methods:
        return None, f"there is a {name} already"
    built = [calls[member] for member in members]
    if [role(member) for member in members] != ["q", "k", "v"]:
        layer, reason = stacked_layer(facts, built, statements)
        return (Merge(tuple(members), name, layer), "") if layer is not None else (None, reason)
    smaller, _ = _merge(facts, members[1:], calls, statements)
    layer, reason = qkv_layer(facts, built, statements)
    if layer is not None:
        return Merge(tuple(members), name, layer, smaller), ""
    return smaller, reason


def _chosen(members: list[str]) -> list[list[str]]:
    """How projections of one input are put together: query, key and value; else two and two."""
    by_role = {role(member): member for member in members if role(member)}
    rest = [member for member in members if not role(member)]
    unique = len(by_role) == len(members) - len(rest)
    found = []
    if unique and by_role.keys() == {"q", "k", "v"}:
        found.append([by_role[key] for key in "qkv"])
    elif unique and {"k", "v"} <= by_role.keys():
        found.append([by_role["k"], by_role["v"]])
    return [*found, rest] if len(rest) == 2 else found


def _kin(built: dict[str, _Built]) -> list[list[str]]:
    """Query, key and value projections of a module, by what else their names say."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for member in built:
        if role(member):
            found[tuple(part for part in member.split("_") if part not in ROLES)].append(member)
    return [sorted(members) for members in found.values() if len(members) > 1]


def role(member: str) -> str:
    """``q``, ``k`` or ``v`` for a projection of queries, keys or values, by its name."""
    found = {ROLES[part] for part in member.split("_") if part in ROLES}
    if not found and re.fullmatch("w[qkv]", member):
        found = {member[1]}
    return found.pop() if len(found) == 1 else ""


def merged_name(members: list[str]) -> str:
    """``to_qkv`` for ``to_q``, ``to_k``, ``to_v``; ``w13`` for ``w1``, ``w3``; ``gate_up_proj`` for two of them."""
    parts = [member.split("_") for member in members]
    shortest = min(map(len, parts))
    start = next((i for i in range(shortest) if len({part[i] for part in parts}) > 1), shortest)
    end = next((i for i in range(shortest - start) if len({part[-1 - i] for part in parts}) > 1), shortest - start)
    middles = ["_".join(part[start : len(part) - end]) for part in parts]
    stem = middles[0][:-1]
    if stem and all(middle[:-1] == stem for middle in middles):  # w1, w3
        middle = stem + "".join(middle[-1] for middle in middles)
    else:
        middle = ("" if all(len(middle) == 1 for middle in middles) else "_").join(middles)
    return "_".join([*parts[0][:start], middle, *parts[0][len(parts[0]) - end :]])
