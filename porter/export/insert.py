"""Entries of module-level dict literals in somebody else's file: put in, exchanged or taken out, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst
from libcst.helpers import parse_template_module
from libcst.metadata import MetadataWrapper, PositionProvider

from porter.export import ExportError

_NEWLINE = cst.TrailingWhitespace()
_INDENT = "    "


def keys_of(text: str, table: str) -> list[str]:
    """The names that a table has entries of, in order; those unpacked into it or assigned later are left out.

    Raises:
        ExportError: the text has no such table.
    """
    return [key for element in _find(cst.parse_module(text), table).elements if (key := _key(element)) is not None]


def set_entry(text: str, table: str, key: str, value: str, after: Sequence[str] = ()) -> str:
    """Give a table an entry; one of that name is exchanged, where it stands.

    Args:
        text: of the file.
        table: the name that the dict literal is bound to.
        key: of the entry.
        value: its source text, lines after the first indented as in the table.
        after: names of entries that it belongs beside; it comes after the last of them, or last.

    Raises:
        ExportError: the text has no such table.
    """
    module = cst.parse_module(text)
    literal = _find(module, table)
    made = _element(key, value)
    elements = list(literal.elements)
    names = [_key(element) for element in elements]
    if key in names:
        at = names.index(key)
        old = elements[at]
        assert isinstance(old, cst.DictElement)
        if module.code_for_node(old.value) == module.code_for_node(made.value):
            return text
        elements[at] = old.with_changes(value=made.value)
    else:
        beside = [at for at, name in enumerate(names) if name in after]
        _insert(elements, beside[-1] + 1 if beside else len(elements), made)
    return _with(module, literal, elements)


def remove_entry(text: str, table: str, key: str) -> str:
    """Take the entry of a name out of a table, by its lines; the text itself if there is none, or no such table.

    Args:
        text: of the file.
        table: the name that the dict literal is bound to.
        key: of the entry.
    """
    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    try:
        elements = _find(wrapper.module, table).elements
    except ExportError:
        return text
    places = wrapper.resolve(PositionProvider)
    lines = text.splitlines(keepends=True)
    for element in elements:
        if _key(element) == key and isinstance(element, cst.DictElement):
            first = places[element.key].start.line - 1
            own = wrapper.module.code_for_node(element.with_changes(comma=cst.Comma()))
            del lines[first : first + own.count("\n") + 1]
    return "".join(lines)


def add_lines(text: str, lines: str, after: str) -> str:
    """Put statements behind the last module-level statement that binds or changes ``after``.

    Raises:
        ExportError: no statement does.
    """
    module = cst.parse_module(text)
    body = list(module.body)
    at = [i for i, node in enumerate(body) if _assigns(node, after)]
    if not at:
        raise ExportError(f"a table is not where vLLM-Omni has it: {after}")
    added = parse_template_module(lines).body
    body[at[-1] + 1 : at[-1] + 1] = added
    return module.with_changes(body=body).code


def add_import(text: str, line: str) -> str:
    """Put a ``from … import …`` among those of its package, sorted by module.

    Raises:
        ExportError: the text imports nothing of that package, so there is no place for it.
    """
    [added] = parse_template_module(line).body
    module = cst.parse_module(text)
    dotted = _imported(added)
    package = dotted.rpartition(".")[0]
    body = list(module.body)
    if any(module.code_for_node(node).strip() == line.strip() for node in body):
        return text
    places = [(i, name) for i, node in enumerate(body) if (name := _imported(node)).startswith(f"{package}.")]
    if not places:
        raise ExportError(f"there is no import of {package} to put another one beside")
    smaller = [i for i, name in places if name < dotted]
    at = smaller[-1] + 1 if smaller else places[0][0]
    if not smaller:  # the blank line above the group stays above it
        first = body[at]
        assert isinstance(first, cst.SimpleStatementLine) and isinstance(added, cst.SimpleStatementLine)
        added = added.with_changes(leading_lines=first.leading_lines)
        body[at] = first.with_changes(leading_lines=[])
    body.insert(at, added)
    return module.with_changes(body=body).code


def _insert(elements: list[cst.BaseDictElement], at: int, made: cst.DictElement) -> None:
    """Put an element in; comments stay with the entry that they stand above."""
    line = cst.ParenthesizedWhitespace(indent=True, last_line=cst.SimpleWhitespace(_INDENT))
    if not elements:
        elements.append(made.with_changes(comma=cst.Comma()))
        return
    if at == 0 or at == len(elements):
        last = elements[-1]
        elements[-1] = last.with_changes(comma=cst.Comma(whitespace_after=line))
        elements.append(made.with_changes(comma=cst.Comma()))
        return
    before = elements[at - 1]
    assert isinstance(before.comma, cst.Comma)
    space = before.comma.whitespace_after
    if isinstance(space, cst.ParenthesizedWhitespace):
        elements[at - 1] = before.with_changes(
            comma=cst.Comma(whitespace_after=line.with_changes(first_line=space.first_line))
        )
        space = space.with_changes(first_line=_NEWLINE)
    made = made.with_changes(comma=cst.Comma(whitespace_after=space))
    elements.insert(at, made)


def _element(key: str, value: str) -> cst.DictElement:
    source = f'{{\n{_INDENT}"{key}": {value},\n}}'
    literal = cst.parse_expression(source)
    assert isinstance(literal, cst.Dict)
    [element] = literal.elements
    assert isinstance(element, cst.DictElement)
    return element


def _with(module: cst.Module, literal: cst.Dict, elements: list[cst.BaseDictElement]) -> str:
    changed = module.deep_replace(literal, literal.with_changes(elements=elements))
    assert isinstance(changed, cst.Module)
    return changed.code


def _find(module: cst.Module, table: str) -> cst.Dict:
    for node in module.body:
        value = _bound(node, table)
        if isinstance(value, cst.Dict):
            return value
    raise ExportError(f"there is no table {table} where vLLM-Omni has it")


def _bound(node: cst.CSTNode, name: str) -> cst.BaseExpression | None:
    """What a module-level statement binds to a name."""
    if not isinstance(node, cst.SimpleStatementLine) or len(node.body) != 1:
        return None
    [statement] = node.body
    if isinstance(statement, cst.AnnAssign):
        target: cst.CSTNode = statement.target
    elif isinstance(statement, cst.Assign) and len(statement.targets) == 1:
        target = statement.targets[0].target
    else:
        return None
    return statement.value if isinstance(target, cst.Name) and target.value == name else None


def _assigns(node: cst.CSTNode, name: str) -> bool:
    """Whether a statement binds a name, or an entry of what it is bound to."""
    if _bound(node, name) is not None:
        return True
    code = cst.Module(body=[node]).code.lstrip() if isinstance(node, cst.SimpleStatementLine) else ""
    return any(line.startswith(f"{name}[") for line in code.splitlines())


def _imported(node: cst.CSTNode) -> str:
    """The module that a statement imports names from; empty if it is no such statement."""
    if not isinstance(node, cst.SimpleStatementLine) or len(node.body) != 1:
        return ""
    [statement] = node.body
    if not isinstance(statement, cst.ImportFrom) or statement.module is None:
        return ""
    return cst.Module(body=[]).code_for_node(statement.module)


def _key(element: cst.BaseDictElement) -> str | None:
    if isinstance(element, cst.DictElement) and isinstance(element.key, cst.SimpleString):
        return str(element.key.evaluated_value)
    return None
