"""Make the symbol table of a vLLM-Omni release from the published wheels.

    python tools/make_symbols.py            write porter/targets/data/
    python tools/make_symbols.py --check    compare with what is there; exit 1 if it differs

The wheels are downloaded with pip and read as archives: nothing of them is installed or run. A name counts as existing
if the source of its module binds it at run time: branches for type checkers do not count, both branches of any other
`if` or `try` do, and what a package hands out lazily (diffusers' `_import_structure`, a module's `__getattr__`) does.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from porter.targets.fingerprint import Definition, definition_hash, function_parameters  # noqa: E402

TABLE = "vllm-omni-0.30"
WHEELS = {"diffusers": "0.40.0", "vllm": "0.30.0", "vllm-omni": "0.30.0"}
ROOTS = ("diffusers", "vllm", "vllm_omni")
# The packages whose definitions are kept too: what a converter compares, and what the code it writes calls.
DEFINITIONS_OF = ("diffusers", "vllm_omni.diffusion", "vllm.model_executor.layers")
DEFINITIONS_NOT_OF = ("vllm_omni.diffusion.models",)
DATA = ROOT / "porter" / "targets" / "data"


@dataclass
class Module:
    """What the source of one module says about its names."""

    name: str
    is_package: bool
    names: set[str] = field(default_factory=set)
    exported: list[str] | None = None
    """The names in `__all__`, if it can be read."""
    stars: list[str] = field(default_factory=list)
    """The modules of which it imports everything."""
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Where an imported name comes from: module and name."""
    definitions: dict[str, Definition] = field(default_factory=dict)
    """What it defines itself, but for ambiguous names."""
    ambiguous: set[str] = field(default_factory=set)
    """The names that it binds more than once: what they stand for may depend on the machine."""
    lazy: dict[str, list[str]] | None = None
    """Submodule -> names, if the package replaces itself by a module that imports on demand."""

    def bind(self, name: str, definition: Definition | None = None) -> None:
        """Enter a name that a statement binds."""
        if name in self.names:
            self.ambiguous.add(name)
            self.definitions.pop(name, None)
        elif definition is not None:
            self.definitions[name] = definition
        self.names.add(name)

    def resolve(self, module: str | None, level: int) -> str:
        """The absolute name of the module in a `from` import."""
        if not level:
            return module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - level + (1 if self.is_package else 0)]
        return ".".join([*parts, module] if module else parts)


def main(argv: list[str] | None = None) -> int:
    """Make the table, or compare it with the one there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored table instead of writing it")
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels, downloaded earlier")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.wheels or download(Path(temporary))
        documents = make(folder)
    status = 0
    for name, content in documents.items():
        path = DATA / name
        if options.check:
            if not path.is_file() or gzip.decompress(path.read_bytes()) != content:
                print(f"differs: {path.relative_to(ROOT)}")
                status = 1
            else:
                print(f"same: {path.relative_to(ROOT)}")
            continue
        DATA.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content, 9, mtime=0))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
    return status


def download(folder: Path) -> Path:
    """Fetch the wheels into a folder, without what they depend on."""
    requirements = [f"{name}=={version}" for name, version in WHEELS.items()]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    # vllm has no wheel for some platforms, and only its Python files are read.
    platform = ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64", "--platform", "any"]
    command += [*platform, "--python-version", "3.11", "--dest", str(folder), *requirements]
    subprocess.run(command, check=True)
    return folder


def make(folder: Path) -> dict[str, bytes]:
    """The two documents of the table, by file name, uncompressed."""
    wheels: dict[str, dict[str, str]] = {}
    modules: dict[str, Module] = {}
    for name, version in sorted(WHEELS.items()):
        [path] = folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")
        wheels[name] = {"version": version, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for module in read_wheel(path):
            if not is_chosen(module.name):
                module.definitions.clear()  # the trees of everything would fill the memory
            modules[module.name] = module
    add_namespaces(modules)
    resolve_stars(modules)
    drop_broken_promises(modules)
    names = {name: " ".join(sorted(module.names)) for name, module in sorted(modules.items())}
    symbols = {"wheels": wheels, "roots": list(ROOTS), "modules": names}
    return {
        f"symbols-{TABLE}.json.gz": encode(symbols),
        f"definitions-{TABLE}.json.gz": encode(collect_definitions(modules)),
    }


def encode(document: object) -> bytes:
    """The document as JSON, the same bytes each time."""
    return (json.dumps(document, indent=0, ensure_ascii=False) + "\n").encode()


def read_wheel(path: Path) -> Iterator[Module]:
    """Each module of a wheel that belongs to one of the packages of the table."""
    with zipfile.ZipFile(path) as archive:
        for entry in sorted(archive.namelist()):
            parts = entry.removesuffix(".py").split("/")
            if not entry.endswith(".py") or parts[0] not in ROOTS or not all(map(str.isidentifier, parts)):
                continue
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            yield read_module(name, is_package, archive.read(entry))


def read_module(name: str, is_package: bool, source: bytes) -> Module:
    """What a module binds at its top level."""
    module = Module(name, is_package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences in docstrings of others
        tree = ast.parse(source)
    statements = list(top_level(tree.body))
    for statement in statements:
        bind(module, statement)
    literals = {
        target.id: value
        for statement in statements
        for target, value in assigned(statement)
        if isinstance(target, ast.Name) and value is not None
    }
    if "__all__" in literals:
        module.exported = strings(literals["__all__"])
        module.names.update(module.exported)
    if isinstance(getter := module.definitions.get("__getattr__"), ast.FunctionDef):
        module.names.update(lazy_names(getter, literals))
    if any(replaces_itself(statement) for statement in statements):
        use_lazy_structure(module, statements)
    return module


def top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those inside branches included."""
    for statement in body:
        match statement:
            case ast.If():
                if not for_type_checkers(statement.test) and not is_main(statement.test):
                    yield from top_level(statement.body)
                yield from top_level(statement.orelse)
            case ast.Try() | ast.TryStar():
                yield from top_level(statement.body)
                for handler in statement.handlers:
                    yield from top_level(handler.body)
                yield from top_level(statement.orelse)
                yield from top_level(statement.finalbody)
            case ast.For() | ast.While():
                yield statement
                yield from top_level(statement.body)
                yield from top_level(statement.orelse)
            case ast.With():
                yield statement
                yield from top_level(statement.body)
            case ast.Match():
                for match_case in statement.cases:
                    yield from top_level(match_case.body)
            case _:
                yield statement


def for_type_checkers(test: ast.expr) -> bool:
    """Whether a condition holds for type checkers alone (or for whoever asks for slow imports)."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(for_type_checkers(value) for value in test.values)
    if isinstance(test, ast.BoolOp):
        return any(for_type_checkers(value) for value in test.values)
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def is_main(test: ast.expr) -> bool:
    """Whether a condition is `__name__ == "__main__"`."""
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


def bind(module: Module, statement: ast.stmt) -> None:
    """Enter the names that one statement binds."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            if not any(is_name(decorator, "overload") for decorator in statement.decorator_list):
                module.bind(statement.name, statement)
        case ast.Import():
            for alias in statement.names:
                module.bind(alias.asname or alias.name.partition(".")[0])
        case ast.ImportFrom():
            source = module.resolve(statement.module, statement.level)
            for alias in statement.names:
                if alias.name == "*":
                    module.stars.append(source)
                else:
                    module.bind(alias.asname or alias.name)
                    module.origins[alias.asname or alias.name] = (source, alias.name)
        case ast.Delete():
            module.names.difference_update(node.id for node in statement.targets if isinstance(node, ast.Name))
        case _:
            for target, _ in assigned(statement):
                for node in ast.walk(target):
                    if isinstance(node, ast.Name):
                        module.bind(node.id)


def assigned(statement: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """The targets of an assignment, with the value that each gets if there is one to read."""
    match statement:
        case ast.Assign():
            for target in statement.targets:
                if isinstance(target, ast.Name | ast.Tuple | ast.List):
                    yield target, statement.value
        case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
            yield target, value
        case ast.For():
            yield statement.target, None
        case ast.With():
            for item in statement.items:
                if item.optional_vars is not None:
                    yield item.optional_vars, None


def strings(node: ast.expr) -> list[str]:
    """The strings of a literal list, tuple, set or dictionary (its keys), as far as they can be read."""
    match node:
        case ast.Constant(value=str() as value):
            return [value]
        case ast.List() | ast.Tuple() | ast.Set():
            return [value for element in node.elts for value in strings(element)]
        case ast.Dict():
            return [value for key in node.keys if key is not None for value in strings(key)]
        case ast.Call(func=ast.Name(id="frozenset" | "set" | "tuple" | "list" | "dict"), args=[argument]):
            return strings(argument)
        case ast.BinOp(op=ast.Add() | ast.BitOr()):
            return strings(node.left) + strings(node.right)
    return []


def lazy_names(getter: ast.FunctionDef, literals: dict[str, ast.expr]) -> set[str]:
    """The names that a module's `__getattr__` compares with, or looks up in a literal of the module."""
    found: list[str] = []
    for node in ast.walk(getter):
        if isinstance(node, ast.Compare):
            for operand in (node.left, *node.comparators):
                found.extend(strings(operand))
        elif isinstance(node, ast.Name) and node.id in literals:
            found.extend(strings(literals[node.id]))
    return {name for name in found if name.isidentifier()}


def replaces_itself(statement: ast.stmt) -> bool:
    """Whether a statement is `sys.modules[__name__] = _LazyModule(…)`."""
    return (
        isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Call)
        and isinstance(statement.value.func, ast.Name)
        and statement.value.func.id == "_LazyModule"
    )


def use_lazy_structure(module: Module, statements: list[ast.stmt]) -> None:
    """Keep of a package that replaces itself only what the replacement hands out."""
    structure: dict[str, list[str]] = {}
    named: dict[str, list[str]] = {}  # the keys of each other dictionary that is filled here
    extra: set[str] = set()

    def add(dictionary: ast.expr, key: ast.expr | None, values: ast.expr) -> None:
        if is_name(dictionary, "_import_structure") and isinstance(key, ast.Constant):
            structure.setdefault(str(key.value), []).extend(strings(values))
        elif isinstance(dictionary, ast.Name) and isinstance(key, ast.Constant):
            named.setdefault(dictionary.id, []).append(str(key.value))

    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name() as target], value=ast.Dict() as value):
                for key, values in zip(value.keys, value.values, strict=True):
                    add(target, key, values)
            case ast.AnnAssign(target=ast.Name() as target, value=ast.Dict() as value):
                for key, values in zip(value.keys, value.values, strict=True):
                    add(target, key, values)
            case ast.Assign(targets=[ast.Subscript() as target]):
                if replaces_itself(statement) and isinstance(statement.value, ast.Call):
                    for keyword in statement.value.keywords:
                        if keyword.arg == "extra_objects":
                            extra.update(strings(keyword.value))
                else:
                    add(target.value, target.slice, statement.value)
            case ast.AugAssign(target=ast.Subscript() as target):
                add(target.value, target.slice, statement.value)
            case ast.Expr(value=ast.Call(func=ast.Attribute() as function, args=[argument])):
                if isinstance(function.value, ast.Subscript) and function.attr in ("extend", "append"):
                    add(function.value.value, function.value.slice, argument)
                elif function.attr == "update" and isinstance(argument, ast.Dict):
                    for key, values in zip(argument.keys, argument.values, strict=True):
                        add(function.value, key, values)
    for statement in statements:  # for name, value in DICTIONARY.items(): setattr(sys.modules[__name__], name, value)
        match statement:
            case ast.For(iter=ast.Call(func=ast.Attribute(value=ast.Name(id=dictionary), attr="items"))):
                extra.update(named.get(dictionary, ()))
    module.lazy = structure
    module.names = {name for names in structure.values() for name in names} | extra
    module.origins = {name: (f"{module.name}.{key}", name) for key, names in structure.items() for name in names}
    module.definitions = {}
    module.ambiguous = set()
    module.stars = []
    module.exported = None


def is_name(node: ast.expr, name: str) -> bool:
    """Whether an expression is just this name."""
    return isinstance(node, ast.Name) and node.id == name


def add_namespaces(modules: dict[str, Module]) -> None:
    """Enter the folders that hold modules without an `__init__.py`."""
    for name in list(modules):
        while name := name.rpartition(".")[0]:
            modules.setdefault(name, Module(name, is_package=True))


def resolve_stars(modules: dict[str, Module]) -> None:
    """Enter what `from … import *` brings, through as many modules as it takes."""
    changed = True
    while changed:
        changed = False
        for module in modules.values():
            for star in module.stars:
                source = modules.get(star)
                if source is None:
                    continue
                public = {name for name in source.names if not name.startswith("_")}
                brought = public if source.exported is None else set(source.exported)
                if not brought <= module.names:
                    module.names |= brought
                    changed = True
                for name in brought:
                    module.origins.setdefault(name, (star, name))


def drop_broken_promises(modules: dict[str, Module]) -> None:
    """Remove the names that a lazy package hands out from a submodule that does not have them."""
    changed = True
    while changed:
        changed = False
        for module in modules.values():
            for key, promised in (module.lazy or {}).items():
                source = modules.get(f"{module.name}.{key}")
                for name in promised:
                    if name not in module.names or module.origins[name][0] != f"{module.name}.{key}":
                        continue
                    if source is None or (name not in source.names and f"{source.name}.{name}" not in modules):
                        module.names.remove(name)
                        changed = True


def collect_definitions(modules: dict[str, Module]) -> dict[str, object]:
    """Hash and parameters of each definition that is kept, and where the other names of those packages lead."""
    kept: dict[str, dict[str, str]] = {}
    aliases: dict[str, dict[str, str]] = {}
    chosen = [name for name in sorted(modules) if is_chosen(name)]
    for name in chosen:
        module = modules[name]
        entries = {
            key: entry(node, parameters(modules, name, key))
            for key, node in sorted(module.definitions.items())
            if key in module.names
        }
        if entries:
            kept[name] = entries
    for name in chosen:
        for key in sorted(modules[name].names - kept.get(name, {}).keys()):
            origin = find(modules, name, key)
            if origin is not None and origin[1] in kept.get(origin[0], {}):
                aliases.setdefault(name, {})[key] = ":".join(origin)
    return {"modules": kept, "aliases": aliases}


def entry(node: Definition, found: tuple[str, ...] | None) -> str:
    """What the table says of a definition: its hash, and its parameters or a question mark."""
    return " ".join([definition_hash(node), *(("?",) if found is None else found)])


def is_chosen(name: str) -> bool:
    """Whether the definitions of a module are kept."""
    dotted = f"{name}."
    return any(dotted.startswith(f"{prefix}.") for prefix in DEFINITIONS_OF) and not any(
        dotted.startswith(f"{prefix}.") for prefix in DEFINITIONS_NOT_OF
    )


def find(modules: dict[str, Module], module: str, name: str) -> tuple[str, str] | None:
    """The module that defines what a name of a module stands for, and its name there."""
    seen: set[tuple[str, str]] = set()
    while (module, name) not in seen and module in modules:
        seen.add((module, name))
        if name in modules[module].definitions:
            return module, name
        if name not in modules[module].origins or name in modules[module].ambiguous:
            return None
        module, name = modules[module].origins[name]
    return None


def parameters(modules: dict[str, Module], module: str, name: str) -> tuple[str, ...] | None:
    """The parameters of a function, or of the constructor of a class as far as the sources tell."""
    origin = find(modules, module, name)
    if origin is None:
        return None
    node = modules[origin[0]].definitions[origin[1]]
    if not isinstance(node, ast.ClassDef):
        return function_parameters(node)
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name in ("__init__", "__new__"):
            return function_parameters(member, bound=True)
    if any(is_dataclass(decorator) for decorator in node.decorator_list):
        return tuple(dict.fromkeys(fields(modules, origin[0], node)))
    if node.keywords:
        return None  # a metaclass may do anything
    if not node.bases:
        return ()
    return base_parameters(modules, origin[0], node)


def base_parameters(modules: dict[str, Module], module: str, node: ast.ClassDef) -> tuple[str, ...] | None:
    """The parameters that a class without a constructor takes over from its bases, if that is certain."""
    for base in node.bases:
        if not isinstance(base, ast.Name):
            return None
        origin = find(modules, module, base.id)
        if origin is None:
            return None
        found = parameters(modules, *origin)
        if found != ():
            return found
    return ()


def is_dataclass(decorator: ast.expr) -> bool:
    """Whether a decorator is `dataclass`, called or not."""
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return is_name(decorator, "dataclass") or (isinstance(decorator, ast.Attribute) and decorator.attr == "dataclass")


def fields(modules: dict[str, Module], module: str, node: ast.ClassDef) -> Iterator[str]:
    """The fields of a dataclass, those of its bases first."""
    for base in reversed(node.bases):
        origin = find(modules, module, base.id) if isinstance(base, ast.Name) else None
        if origin is not None:
            base_node = modules[origin[0]].definitions[origin[1]]
            if isinstance(base_node, ast.ClassDef) and any(map(is_dataclass, base_node.decorator_list)):
                yield from fields(modules, origin[0], base_node)
    for member in node.body:
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            if "ClassVar" not in ast.dump(member.annotation) and not is_hidden_field(member.value):
                yield member.target.id


def is_hidden_field(value: ast.expr | None) -> bool:
    """Whether a field is declared with `field(init=False)`."""
    return isinstance(value, ast.Call) and any(
        keyword.arg == "init" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        for keyword in value.keywords
    )


if __name__ == "__main__":
    sys.exit(main())
