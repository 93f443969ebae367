"""Finding the port of a pipeline class: registered by hand, or in a folder that ``porter convert`` wrote."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from porter.runtime.diffusion.data import OmniDiffusionConfig
from porter.runtime.errors import ModelNotFoundError

# Ports registered from outside: arch -> (module, "", class), as in vllm-omni. They win over a folder's.
_DIFFUSION_MODELS: dict[str, tuple[str, str, str]] = {}
_DIFFUSION_PRE_PROCESS_FUNCS: dict[str, str] = {}
_DIFFUSION_POST_PROCESS_FUNCS: dict[str, str] = {}

ProcessFunc = Callable[..., Any]


def register_diffusion_model(
    model_arch: str,
    module_name: str,
    class_name: str,
    pre_process_func_name: str | None = None,
    post_process_func_name: str | None = None,
) -> None:
    """Register a port that lives in an importable module, or replace one.

    Args:
        model_arch: the pipeline class that ``model_index.json`` names.
        module_name: full module path.
        class_name, pre_process_func_name, post_process_func_name: names in that module; None keeps an earlier hook.
    """
    _DIFFUSION_MODELS[model_arch] = (module_name, "", class_name)
    if pre_process_func_name is not None:
        _DIFFUSION_PRE_PROCESS_FUNCS[model_arch] = pre_process_func_name
    if post_process_func_name is not None:
        _DIFFUSION_POST_PROCESS_FUNCS[model_arch] = post_process_func_name


@dataclass(frozen=True)
class RegisteredModel:
    """One port: its pipeline class, and the factories of its hooks (``get_…_process_func(od_config)``)."""

    pipeline_cls: type[nn.Module]
    pre_process_factory: Callable[[OmniDiffusionConfig], ProcessFunc] | None = None
    post_process_factory: Callable[[OmniDiffusionConfig], ProcessFunc] | None = None


class ModelRegistry:
    """The ports of one ``models_dir``.

    Args:
        models_dir: a folder with a ``registry.py``; None means the committed ports.

    Raises:
        ModelNotFoundError: the folder, or its ``registry.py``, is not there.
    """

    def __init__(self, models_dir: str | Path | None = None) -> None:
        self.models_dir = find_models_dir(models_dir)
        self._package = _mount(self.models_dir) if self.models_dir is not None else None
        tables = importlib.import_module(f"{self._package}.registry") if self._package is not None else None
        self._models: dict[str, tuple[str, str, str]] = _table(tables, "_DIFFUSION_MODELS") | _DIFFUSION_MODELS
        self._pre: dict[str, str] = _table(tables, "_DIFFUSION_PRE_PROCESS_FUNCS") | _DIFFUSION_PRE_PROCESS_FUNCS
        self._post: dict[str, str] = _table(tables, "_DIFFUSION_POST_PROCESS_FUNCS") | _DIFFUSION_POST_PROCESS_FUNCS

    def names(self) -> list[str]:
        """The pipeline classes that have a port, sorted."""
        return sorted(self._models)

    def load(self, model_arch: str) -> RegisteredModel:
        """Import the port of a pipeline class.

        Raises:
            ModelNotFoundError: there is none; the message has the nearest names.
        """
        if model_arch not in self._models:
            raise ModelNotFoundError(self._unknown(model_arch))
        folder, file, class_name = self._models[model_arch]
        module_name = f"{self._package}.{folder}.{file}" if file else folder
        module = importlib.import_module(module_name)
        return RegisteredModel(
            pipeline_cls=_member(module, class_name, model_arch),
            pre_process_factory=_member(module, self._pre.get(model_arch), model_arch),
            post_process_factory=_member(module, self._post.get(model_arch), model_arch),
        )

    def source_file(self, model_arch: str) -> Path | None:
        """The file that holds the port of a pipeline class; None if it is not one of the models folder."""
        folder, file, _ = self._models.get(model_arch, ("", "", ""))
        return self.models_dir / folder / f"{file}.py" if self.models_dir is not None and file else None

    def _unknown(self, model_arch: str) -> str:
        near = difflib.get_close_matches(model_arch, self._models, n=3)
        where = f"in {self.models_dir}" if self.models_dir is not None else "(no models_dir was found)"
        nearest = f"; the nearest are {', '.join(near)}" if near else ""
        return (
            f"no port of {model_arch} {where}{nearest}. "
            f"Make one with `porter convert {model_arch} -o DIR` and pass models_dir=DIR"
        )


def find_models_dir(models_dir: str | Path | None = None) -> Path | None:
    """The folder itself, checked; or the committed ports, in a wheel or beside the package in a checkout.

    None if no folder was asked for and there are no committed ports.

    Raises:
        ModelNotFoundError: the folder that was asked for has no ``registry.py``.
    """
    if models_dir is not None:
        folder = Path(models_dir)
        if not (folder / "registry.py").is_file():
            what = "does not exist" if not folder.exists() else "has no registry.py"
            raise ModelNotFoundError(f"models_dir {str(models_dir)!r} {what}; `porter convert -o DIR` writes one")
        return folder.resolve()
    package = Path(__file__).resolve().parents[2]
    for parent in (package, package.parent):
        if (parent / "generated_models" / "registry.py").is_file():
            return parent / "generated_models"
    return None


def _table(tables: ModuleType | None, name: str) -> dict[str, Any]:
    return dict(getattr(tables, name, {}))


def _member(module: ModuleType, name: str | None, model_arch: str) -> Any:
    if name is None:
        return None
    try:
        return getattr(module, name)
    except AttributeError:
        raise ModelNotFoundError(
            f"the registry names {name!r} for {model_arch}, and {module.__name__} has no such thing: convert it again"
        ) from None


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles from source each time: a cached file may be older than a source rewritten within the same second,
    and a models_dir should hold nothing that ``porter convert`` did not write."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _ModelsFinder(importlib.abc.MetaPathFinder):
    """Imports the modules of mounted folders."""

    def __init__(self) -> None:
        self.roots: dict[str, Path] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, *rest = fullname.split(".")
        root = self.roots.get(package)
        # A registry's text must not lead out of its folder.
        if root is None or not all(part.isidentifier() for part in rest):
            return None
        location = root.joinpath(*rest)
        if location.is_dir():
            return _package_spec(fullname, location)
        file = location.with_name(f"{location.name}.py")
        if not file.is_file():
            return None
        return importlib.util.spec_from_file_location(fullname, file, loader=_SourceLoader(fullname, str(file)))


def _package_spec(fullname: str, folder: Path) -> importlib.machinery.ModuleSpec:
    init = folder / "__init__.py"
    if init.is_file():
        loader = _SourceLoader(fullname, str(init))
        spec = importlib.util.spec_from_file_location(
            fullname, init, loader=loader, submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        return spec
    spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return spec


_finder = _ModelsFinder()


def _mount(folder: Path) -> str:
    """Make the folder importable as a package; its name follows from path and contents, so a folder that has been
    converted anew is imported anew."""
    digest = hashlib.sha256(str(folder).encode())
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    name = f"porter_models_{digest.hexdigest()[:16]}"
    _finder.roots[name] = folder
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    return name
