"""The two targets differ in import lines alone, and what a vllm-omni port imports is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import porter
from porter.port import Converter, Port
from porter.source import SourceTree
from porter.targets import get_target

PIPELINES = ("QwenImageEditPipeline", "StableDiffusion3Pipeline", "WanVACEPipeline")
TARGETS = ("porter", "vllm-omni")
OF_THE_TARGET = ("vllm", "vllm_omni", "diffusers")


@pytest.fixture(scope="module")
def ports() -> dict[str, dict[str, Port]]:
    tree = SourceTree()
    converters = {target: Converter(tree, get_target(target)) for target in TARGETS}
    return {name: {target: converter.port(name) for target, converter in converters.items()} for name in PIPELINES}


class _WithoutImports(ast.NodeTransformer):
    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None


def without_imports(text: str) -> str:
    return ast.dump(_WithoutImports().visit(ast.parse(text)))


def imported(text: str) -> list[tuple[str, str | None, int]]:
    """(module, name, line) of each import of a file, wherever it stands; the file's own family left out."""
    found: list[tuple[str, str | None, int]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [(node.module or "", alias.name, node.lineno) for alias in node.names]
    return found


@pytest.mark.parametrize("name", PIPELINES)
def test_ports_differ_in_import_lines_alone(ports, name):
    ours, theirs = (ports[name][target].texts for target in TARGETS)
    assert list(ours) == list(theirs)
    for file in ours:
        assert without_imports(ours[file]) == without_imports(theirs[file]), file


@pytest.mark.parametrize("name", PIPELINES)
def test_ports_bind_the_same_names(ports, name):
    for file, text in ports[name]["porter"].texts.items():
        bound = sorted(str(entry) for _, entry, _ in imported(text) if entry)
        assert bound == sorted(str(entry) for _, entry, _ in imported(ports[name]["vllm-omni"].texts[file]) if entry), (
            file
        )


@pytest.mark.parametrize("name", PIPELINES)
def test_comments_do_not_tell_the_targets_apart(ports, name):
    for file, text in ports[name]["porter"].texts.items():
        other = ports[name]["vllm-omni"].texts[file]
        comments = [[line for line in t.splitlines() if line.lstrip().startswith("#")] for t in (text, other)]
        assert comments[0] == comments[1], file


@pytest.mark.parametrize("name", PIPELINES)
def test_a_port_for_one_target_names_no_other(ports, name):
    for file, text in ports[name]["porter"].texts.items():
        assert not [m for m, _, _ in imported(text) if m.split(".")[0] in ("vllm", "vllm_omni")], file
    for file, text in ports[name]["vllm-omni"].texts.items():
        assert not [m for m, _, _ in imported(text) if m.split(".")[0] == "porter"], file


@pytest.mark.parametrize("name", PIPELINES)
def test_what_a_vllm_omni_port_imports_is_there(ports, name):
    symbols = get_target("vllm-omni").symbols
    missing = [
        f"{file}:{line}: {module}{f'.{entry}' if entry else ''}"
        for file, text in ports[name]["vllm-omni"].texts.items()
        for module, entry, line in imported(text)
        if module.split(".")[0] in OF_THE_TARGET
        and not (symbols.has_module(module) if entry is None else symbols.has(module, entry))
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("name", PIPELINES)
def test_what_a_porter_port_imports_is_there(ports, name):
    runtime = get_target("porter").module("vllm_omni")
    for file, text in ports[name]["porter"].texts.items():
        for module, entry, line in imported(text):
            if module.split(".")[0] == runtime.split(".")[0] and entry is not None:
                assert entry in _names(module), f"{file}:{line}: {module}.{entry}"


def _names(module: str) -> set[str]:
    """Names at the top level of one of porter's modules, read as text, and those of the modules in it."""
    place = Path(porter.__path__[0]).joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {part.stem for part in place.glob("[!_]*")}
    names |= {n.name for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    names |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names | {a.asname or a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
