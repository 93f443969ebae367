"""torchaudio beside a torch for the CPU: its Python where it is installed, words where it is not.

``vllm serve --omni`` imports it whatever the model makes. PyPI's torchaudio is built for CUDA, so beside a torch for
the CPU its library does not load, and importing the package fails. What the server and audio models call (resampling,
filter banks, stretching) is Python, and works without the library.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch

NAME = "torchaudio"
_EXTENSION = f"{NAME}._extension"
_MISSING = (
    "this needs torchaudio, which is not installed in the environment of vLLM-Omni: `pip install --no-deps torchaudio` "
    "there. Pictures and videos are served without it."
)


def make_torchaudio_importable() -> None:
    """Have ``import torchaudio`` succeed; nothing changes where it does anyway. May be called again."""
    if NAME in sys.modules or _EXTENSION in sys.modules:
        return
    if any(isinstance(finder, StandIns) for finder in sys.meta_path):
        return
    spec = importlib.util.find_spec(NAME)
    if spec is None:
        from transformers.utils import is_torchaudio_available

        is_torchaudio_available()  # remembers the answer: its own ways without torchaudio are better than words
        sys.meta_path.append(StandIns())
    elif not _library_loads(Path(spec.origin or "").parent / "lib"):
        # What the package asks first; it finds this one in its place.
        module = ModuleType(_EXTENSION)
        vars(module).update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=_refused)
        sys.modules[_EXTENSION] = module


def _library_loads(folder: Path) -> bool:
    """Whether the compiled part of torchaudio fits this torch, or there is none."""
    try:
        for library in sorted(folder.glob("*torchaudio.*")):
            torch.ops.load_library(library)
    except OSError:
        return False
    return True


def _refused(function: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of a function that needs the library."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(f"torchaudio's {function.__name__} needs its library, which is for another build of torch")

    return refuse


class StandIns(Loader):
    """Finds ``torchaudio`` and what is in it, after everybody else: modules whose members say what is missing."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """A package under this name, if the name is torchaudio's."""
        if fullname.partition(".")[0] != NAME:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module that has every public name."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is to be run."""


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return type(name, (), {"__init__": _missing})


def _missing(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError(_MISSING)
