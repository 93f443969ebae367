"""A diffusers package as text: find a class by name, follow re-exports, resolve imports."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from porter.source.module import Definition, SourceModule

PACKAGE = "diffusers"
NAME = re.compile(r"\w+")
LONGEST_NAME = 300
# It is written into the comments of a port, so it is a version and nothing else.
VERSION_LINE = r"""^__version__ = ["']([\w.+!-]+)["']"""


class SourceError(ValueError):
    """The source cannot be found or read: an unknown name, a file that does not parse, a folder that is no package."""


class SourceTree:
    """The ``diffusers`` package below ``folder`` (the installed one by default), read as text.

    Args:
        folder: the package folder itself, or a folder that holds ``diffusers/`` or ``src/diffusers/``.

    Raises:
        SourceError: there is no diffusers package there.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.root = _package_folder(folder)
        self._modules: dict[str, SourceModule | None] = {}
        # Answers that are costly to find and the same for every conversion from this tree.
        self.converts: dict[tuple[str, str], bool] = {}
        self.plans: dict[tuple[str, str], Any] = {}
        self.cache: dict[str, Any] = {}

    @cached_property
    def version(self) -> str:
        """``__version__`` as ``__init__.py`` states it."""
        found = re.search(VERSION_LINE, (self.root / "__init__.py").read_text("utf-8", errors="replace"), re.MULTILINE)
        return found.group(1) if found else importlib.metadata.version(PACKAGE)

    def module(self, name: str) -> SourceModule | None:
        """The module called ``name`` (dotted, absolute), or None if the package has no such file."""
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def forget(self, name: str) -> None:
        """Let go of a module; who asks for it again has it parsed again."""
        module = self._modules.pop(name, None)
        if module is not None:
            vars(module).pop("definitions", None)  # each holds the module in turn

    def _read(self, name: str) -> SourceModule | None:
        parts = name.split(".")
        if parts[0] != PACKAGE:
            return None
        path = self.root.joinpath(*parts[1:])
        is_package = path.is_dir()
        file = path / "__init__.py" if is_package else path.with_suffix(".py")
        if not file.is_file():
            return None
        try:
            module = SourceModule(name, file, file.read_text(encoding="utf-8"), is_package)
            module.tree  # noqa: B018 - parsed here so that a syntax error names the file
        except SyntaxError as error:
            raise SourceError(f"{file} does not parse: {error.msg} (line {error.lineno})") from error
        except (ValueError, RecursionError, MemoryError) as error:  # no UTF-8, null bytes, nested too deeply
            raise SourceError(f"{file} does not parse: {error}") from error
        return module

    def resolve(self, module_name: str, name: str, depth: int = 0) -> Definition | None:
        """The definition that ``from module_name import name`` gives, through any number of re-exports."""
        module = self.module(module_name)
        if module is None or depth > 12:
            return None
        if name in module.definitions:
            return module.definitions[name]
        if name in module.imports:
            target = module.imports[name]
            return self.resolve(target.module, target.name, depth + 1) if target.name else None
        if module.is_package:
            return self._lazy_export(module, name, depth)
        return None

    def _lazy_export(self, module: SourceModule, name: str, depth: int) -> Definition | None:
        # Packages list their exports in `_import_structure["submodule"] = [names]`, in several spellings; the class
        # index answers the same question for all of them.
        for candidate in self.class_index.get(name, []):
            if candidate.startswith(module.name + "."):
                return self.resolve(candidate, name, depth + 1)
        return None

    @cached_property
    def class_index(self) -> dict[str, list[str]]:
        """Class name to the modules that define it, for the whole package."""
        return self._index("")

    @cached_property
    def _pipeline_index(self) -> dict[str, list[str]]:
        return self._index("pipelines")

    def _index(self, folder: str) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for path in sorted((self.root / folder).rglob("*.py")):
            relative = path.relative_to(self.root)
            parts = list(relative.with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            if not all(part.isidentifier() for part in parts):
                continue  # nothing can import it; its name would be written into comments
            text = b"\n" + path.read_bytes()  # to decode the whole package takes longer than to search it
            for place in _after(text, b"\nclass "):
                if name := NAME.match(text[place : place + LONGEST_NAME].decode("utf-8", errors="replace")):
                    index.setdefault(name.group(), []).append(".".join([PACKAGE, *parts]))
        return index

    def pipelines(self) -> list[str]:
        """Names of all classes below ``diffusers/pipelines`` that look like pipelines, sorted."""
        return sorted(name for name in self._pipeline_index if name.endswith("Pipeline"))

    def pipeline_module(self, name: str) -> str:
        """The name of the module that a pipeline class is defined in; nothing is parsed for it.

        Args:
            name: ``QwenImageEditPipeline``.

        Raises:
            SourceError: no such class (the nearest names are given), or the class is no pipeline.
        """
        modules = self._pipeline_index.get(name, [])
        if not modules:
            if name in self.class_index:
                raise SourceError(f"{name} is a class of {self.class_index[name][0]}, not a pipeline.")
            near = difflib.get_close_matches(name, self.pipelines(), n=3, cutoff=0.5)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise SourceError(f"diffusers {self.version} has no pipeline called {name!r}.{hint}")
        return next((m for m in modules if ".deprecated." not in m), modules[0])

    def find_pipeline(self, name: str) -> Definition:
        """The definition of a pipeline class.

        Args:
            name: ``QwenImageEditPipeline`` or ``diffusers.QwenImageEditPipeline``.

        Raises:
            SourceError: as for :meth:`pipeline_module`; or its module does not parse.
        """
        short = name.removeprefix(PACKAGE + ".")
        module = self.pipeline_module(short)
        definition = self.resolve(module, short)
        if definition is None:
            raise SourceError(f"{module} does not define {short} at its top level.")
        return definition


def _after(text: bytes, mark: bytes) -> Iterator[int]:
    """The places behind a mark; an expression would look at every line of the package."""
    place = text.find(mark)
    while place >= 0:
        place += len(mark)
        yield place
        place = text.find(mark, place)


def _package_folder(folder: str | Path | None) -> Path:
    if folder is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SourceError("diffusers is not installed; install it, or pass its sources with --source DIR.")
        return Path(next(iter(spec.submodule_search_locations)))
    base = Path(folder)
    for candidate in (base, base / PACKAGE, base / "src" / PACKAGE):
        if (candidate / "__init__.py").is_file() and (candidate / "pipelines").is_dir():
            return candidate
    raise SourceError(
        f"{base} holds no diffusers package (looked for pipelines/ there, in diffusers/ and src/diffusers/)."
    )
