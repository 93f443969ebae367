"""Finds the places in a module where mutators apply.

Left out is what no result can depend on: annotations, decorators, docstrings, imports, messages of errors and logs,
names of layers for quantisation, what parameters hold before they are loaded, what concerns a GPU or where one is,
rates of dropout, which does nothing in inference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import libcst as cst
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider

from porter.parity.mutants import generic, known, ported
from porter.parity.mutants.context import Change, Context
from porter.parity.mutants.edits import Edit, Mutant

_Mutator = Callable[[cst.CSTNode, Context], Iterator[Change]]

MUTATORS: Mapping[str, _Mutator] = {**generic.MUTATORS, **ported.MUTATORS}
"""Generic mutators by name: each yields its changes of one node."""
KNOWN_BUGS: Mapping[str, tuple[int, _Mutator]] = known.MUTATORS
"""Number and mutator of bugs that ports made by hand had, by name."""

_LOGS = ("logger.", "warnings.")
_SILENT_CALLS = (*_LOGS, "deprecate", "refuse_parallelism", "self.setup_diffusion_pipeline_profiler", "nn.Dropout")
_OF_A_GPU = ('torch.amp.autocast("cuda"', 'torch.autocast("cuda"', "torch.cuda.")
# What they say decides about no value: names of layers, where files are looked for.
_SILENT_ARGUMENTS = frozenset(("prefix", "quant_config", "desc", "return_bias", "fall_back_to_pt"))
# They find components, and the device of one: there is one device here.
_SILENT_FUNCTIONS = frozenset(("load_component", "_stand_ins", "od_config_device", "get_module_execution_device"))
# They serve several ranks only; docs/features.md lists what was proven on them.
_PARALLEL_FUNCTIONS = frozenset(
    "attention_plan rank_share refuse_parallelism distributed_class decoding_for_all _by_rank _half".split()
)


def find_mutants(source: bytes, module: str) -> list[Mutant]:
    """Every fault that can be planted into a module, in order of place."""
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    spans = wrapper.resolve(ByteSpanPositionProvider)
    positions = wrapper.resolve(PositionProvider)
    finder = _Finder(source, module, spans, positions)
    wrapper.module.visit(finder)
    return finder.found


class _Finder(cst.CSTVisitor):
    def __init__(self, source: bytes, module: str, spans: Mapping, positions: Mapping) -> None:
        super().__init__()
        self.module = module
        self.positions = positions
        self.context = Context(source, spans)
        self.statements: list[tuple[int, ...]] = []
        self.found: list[Mutant] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        context = self.context
        if isinstance(node, (cst.Annotation, cst.Decorator, cst.Raise, cst.Assert, cst.Import, cst.ImportFrom)):
            return False
        if isinstance(node, cst.Call) and context.text(node.func).startswith(_SILENT_CALLS):
            return False
        if isinstance(node, cst.Call) and context.text(node).startswith(_OF_A_GPU):
            return False
        if isinstance(node, cst.Call) and context.text(node.func).endswith("nn.Parameter"):
            return False  # a value to begin with, which loading replaces
        if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value in _SILENT_ARGUMENTS:
            return False
        if isinstance(node, cst.If) and only_logs(node, context):
            return False
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
            if node.name.value in _SILENT_FUNCTIONS | _PARALLEL_FUNCTIONS:
                return False
            context.enter(node)
        lines = self._lines(node)
        if lines:
            self.statements.append(lines)
        context.parents.append(node)
        self._plant(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        context = self.context
        if not context.parents or context.parents[-1] is not original_node:
            return  # was not entered
        context.parents.pop()
        if self._lines(original_node):
            self.statements.pop()
        if isinstance(original_node, (cst.FunctionDef, cst.ClassDef)):
            context.leave()

    def _lines(self, node: cst.CSTNode) -> tuple[int, ...]:
        """The lines of a statement by which one sees that it runs."""
        if isinstance(node, cst.SimpleStatementLine):
            place = self.positions[node]
            return tuple(range(place.start.line, place.end.line + 1))
        if isinstance(node, (cst.If, cst.While)):
            return tuple(range(self.positions[node.test].start.line, self.positions[node.test].end.line + 1))
        if isinstance(node, (cst.For, cst.With)):
            head = self.positions[node].start.line
            return tuple(range(head, self.positions[node.body].start.line + 1))
        if isinstance(node, cst.FunctionDef):
            place = self.positions[node.body]
            return tuple(range(place.start.line, place.end.line + 1))
        return ()

    def _plant(self, node: cst.CSTNode) -> None:
        generic_ones = ((0, name, mutator) for name, mutator in MUTATORS.items())
        known_ones = ((bug, name, mutator) for name, (bug, mutator) in KNOWN_BUGS.items())
        for bug, name, mutator in (*generic_ones, *known_ones):
            for change in mutator(node, self.context):
                start, end = min(e.start for e in change.edits), max(e.end for e in change.edits)
                before = self.context.source[start:end].decode()
                mutant = Mutant(
                    mutator=name,
                    module=self.module,
                    line=self.positions[change.node].start.line,
                    lines=self.statements[-1] if self.statements and self.context.in_function else (),
                    function=self.context.function,
                    edits=change.edits,
                    before=" ".join(before.split()),
                    after=_after(self.context.source, start, end, change.edits),
                    bug=bug,
                    around=self._around(start, end),
                    is_default=isinstance(node, cst.Param),
                )
                self.found.append(mutant)

    def _around(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """The expressions around a change, up to the statement that holds them."""
        found: list[tuple[int, int]] = []
        for parent in reversed(self.context.parents):
            if isinstance(parent, (cst.BaseSmallStatement, cst.BaseCompoundStatement, cst.Param)):
                break
            if isinstance(parent, cst.BaseExpression) and not isinstance(parent, cst.BaseString):
                span = self.context.span(parent)
                if span[0] <= start and end <= span[1] and span not in found:
                    found.append(span)
        return tuple(found)


def only_logs(node: cst.If, context: Context) -> bool:
    """Whether a condition decides about nothing but a log message, and what is computed for it."""
    if node.orelse is not None or not isinstance(node.body, cst.IndentedBlock):
        return False
    logs, names = 0, []
    for line in node.body.body:
        if not isinstance(line, cst.SimpleStatementLine) or len(line.body) != 1:
            return False
        [statement] = line.body
        if context.text(line).startswith(_LOGS):
            logs += 1
        elif isinstance(statement, cst.Assign) and isinstance(statement.targets[0].target, cst.Name):
            names.append(statement.targets[0].target.value)
        else:
            return False
    if not logs:
        return False
    around = context.text(context.scopes[-1]) if context.scopes else context.source.decode()
    rest = around.replace(context.text(node), "")
    return not any(re.search(rf"\b{name}\b", rest) for name in names)


def _after(source: bytes, start: int, end: int, edits: tuple[Edit, ...]) -> str:
    for edit in sorted(edits, key=lambda item: -item.start):
        source = source[: edit.start] + edit.text.encode() + source[edit.end :]
        end += len(edit.text.encode()) - (edit.end - edit.start)
    return " ".join(source[start:end].decode().split())
