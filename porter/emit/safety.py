"""What generated code may do: an allow-list of modules, and a list of doors inside of those that stay shut.

The source of a port is untrusted text, and its port is code that people run. So a text is refused that imports what no
model needs (processes, sockets, pickle), reaches it in another way, evaluates text, loads pickled or remote code, or
hides what it says from a reader. It is a check of what is written, not a sandbox: see SECURITY.md.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import lru_cache

from porter.source import SourceError
from porter.source.walk import walk

# Modules that need no looking at, with what lies below them.
STANDARD = """
    __future__ abc argparse array bisect collections contextlib contextvars copy dataclasses datetime decimal enum
    fractions functools hashlib heapq html inspect io itertools json logging math numbers operator pathlib random re
    statistics string textwrap time types typing unicodedata urllib.parse uuid warnings wave weakref zlib
"""
LIBRARIES = """
    PIL accelerate av bitsandbytes bs4 consisid_eva_clip cosmos_guardrail cv2 diffusers einops facexlib flash_attn
    flash_attn_interface ftfy gguf huggingface_hub insightface librosa matplotlib numpy onnxruntime packaging peft
    protobuf pydantic regex safetensors sageattention scipy sentencepiece skimage soundfile tokenizers torch
    torch_npu torch_xla torchaudio torchdiffeq torchsde torchvision tqdm transformers typing_extensions xformers
"""
ENGINES = "porter.runtime vllm vllm_omni"
# Modules of which only these names may be used, and which may not be handed on.
PARTLY = {
    "os": ("environ", "fspath", "getenv", "path", "PathLike", "sep"),
    "sys": ("byteorder", "float_info", "maxsize", "platform", "version_info"),
    "importlib": ("import_module",),
}
# Files made of porter's own template alone may import by name; the names come from a checkpoint's class list.
OWN_TEMPLATES = ("support.py",)
FORBIDDEN = (
    "numpy.load",
    "numpy.lib.format",
    "torch.classes.load_library",
    "torch.distributed.rpc",
    "torch.hub",
    "torch.jit.load",
    "torch.load",
    "torch.multiprocessing",
    "torch.ops.load_library",
    "torch.package",
    "torch.serialization",
    "torch.utils.cpp_extension",
    "huggingface_hub.HfApi",
    "huggingface_hub.login",
)
# Modules that others hold as attributes: `torch.os`.
LEAKED = frozenset("builtins ctypes importlib multiprocessing os pickle shutil socket subprocess sys".split())
BUILTINS = ("__builtins__", "__import__", "eval", "exec")
# Words that are names of variables as well; a call is what counts.
CALLED = ("breakpoint", "compile", "input", "open")
DOORS = (
    "__builtins__",
    "__closure__",
    "__code__",
    "__globals__",
    "__import__",
    "__loader__",
    "__reduce__",
    "__reduce_ex__",
    "__spec__",
    "__subclasses__",
    "f_back",
    "f_globals",
    "f_locals",
    "gi_frame",
    "tb_frame",
)
# Arguments that may only be this, if they are there at all.
ARGUMENTS = {"trust_remote_code": False, "allow_pickle": False, "weights_only": True}
# They make a text look other than it is: ends and overrides of writing directions.
HIDDEN = {chr(code): f"U+{code:04X}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
VARIABLE = "PORTER_ALLOW_IMPORTS"


class UnsafeCode(SourceError):
    """A source would become code that does what no port may do."""


def check_texts(texts: dict[str, str]) -> None:
    """Refuse generated texts that do what no port may do. Texts that do not parse are left to the formatter.

    Args:
        texts: by relative path.

    Raises:
        UnsafeCode: with file, line and what it is.
    """
    for file, text in texts.items():
        own = file.rpartition("/")[2] in OWN_TEMPLATES
        for line, what in _problems(text, own, os.environ.get(VARIABLE, "")):
            raise UnsafeCode(f"{file}:{line}: {what}; no port may do that, so nothing is written.")


@lru_cache(maxsize=16)
def tree_of(text: str) -> ast.Module:
    """The tree of a generated text, which several ask for; nobody may change it.

    Raises:
        SyntaxError, ValueError: it does not parse.
    """
    return ast.parse(text)


@lru_cache(maxsize=64)
def _problems(text: str, own: bool, allowed: str) -> tuple[tuple[int, str], ...]:
    hidden = next((character for character in text if character in HIDDEN), None) if not text.isascii() else None
    if hidden is not None:
        line = text[: text.index(hidden)].count("\n") + 1
        return ((line, f"holds the invisible character {HIDDEN[hidden]}, which makes it look other than it is"),)
    try:
        tree = tree_of(text)
    except (SyntaxError, ValueError):
        return ()
    walk = _Walk(own, frozenset([*STANDARD.split(), *LIBRARIES.split(), *ENGINES.split(), *allowed.split(",")]))
    walk.visit(tree)
    return tuple(walk.found)


class _Walk(ast.NodeVisitor):
    """Finds what is forbidden; imported names are followed to what they stand for."""

    def __init__(self, own: bool, modules: frozenset[str]) -> None:
        self.found: list[tuple[int, str]] = []
        self._own, self._modules = own, modules
        self._names: dict[str, str] = {}

    def visit_Module(self, node: ast.Module) -> None:
        for item in walk(node):  # imports inside functions too, wherever their names are used
            if isinstance(item, ast.Import):
                self._names |= {a.asname or a.name.split(".")[0]: _bound(a) for a in item.names}
            elif isinstance(item, ast.ImportFrom) and not item.level:
                self._names |= {alias.asname or alias.name: f"{item.module}.{alias.name}" for alias in item.names}
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level:  # within the family's folder
            if node.level > 1:
                self._say(node, f"imports from {'.' * node.level}{node.module or ''}, outside of its folder")
            return
        for alias in node.names:
            if alias.name == "*":
                self._say(node, f"imports everything from {node.module}")
            self._import(node, f"{node.module}.{alias.name}")

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            return
        if node.id in BUILTINS and node.id not in self._names:
            self._say(node, f"uses {node.id}")
        elif self._names.get(node.id) in PARTLY:
            self._say(node, f"hands the module {self._names[node.id]} on")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self._path(node)
        if node.attr in DOORS:
            self._say(node, f"uses {node.attr}")
        elif path:
            self._reach(node, path)
        if not path or path.partition(".")[0] not in PARTLY:
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            self._argument(node, keyword.arg, keyword.value)
        if isinstance(node.func, ast.Name) and node.func.id in CALLED and node.func.id not in self._names:
            self._say(node, f"calls {node.func.id}")
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "vars") and len(node.args) > 1:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            path = self._path(node.args[0])
            if name in DOORS:
                self._say(node, f"uses {name}")
            elif path and isinstance(name, str) and name:
                self._reach(node, f"{path}.{name}")
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values):
            self._argument(node, key.value if isinstance(key, ast.Constant) else None, value)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                self._argument(node, target.slice.value, node.value)
        self.generic_visit(node)

    def _argument(self, node: ast.AST, name: object, value: ast.expr) -> None:
        if isinstance(name, str) and name in ARGUMENTS:
            if not (isinstance(value, ast.Constant) and value.value is ARGUMENTS[name]):
                self._say(node, f"gives {name}={ast.unparse(value)}")

    def _import(self, node: ast.AST, name: str) -> None:
        parts = name.split(".")
        prefixes = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        if parts[0] in PARTLY:
            if len(parts) > 1:
                self._reach(node, name)
            elif parts[0] == "importlib" and not self._own:
                self._say(node, "imports importlib")
        elif not prefixes & self._modules:
            hint = f" (allow it with {VARIABLE}={parts[0]})" if parts[0] not in _NEVER else ""
            module = ".".join(parts[:-1]) or name
            self._say(node, f"imports {module}, which is not on the list of modules for ports{hint}")
        else:
            self._reach(node, name)

    def _reach(self, node: ast.AST, path: str) -> None:
        """A use of something below a module."""
        head, _, rest = path.partition(".")
        if LEAKED & set(rest.split(".")):
            self._say(node, f"uses {path}")
        elif head in PARTLY:
            first = rest.partition(".")[0]
            if first not in PARTLY[head] or (head == "importlib" and not self._own):
                self._say(node, f"uses {path}")
        elif any(path == name or path.startswith(f"{name}.") for name in FORBIDDEN):
            self._say(node, f"uses {path}")

    def _path(self, node: ast.AST) -> str:
        """What a chain of attributes of an imported name stands for, or nothing."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self._names:
            return ""
        return ".".join([self._names[node.id], *reversed(parts)])

    def _say(self, node: ast.AST, what: str) -> None:
        self.found.append((getattr(node, "lineno", 1), what))


# Modules for which no hint is given how to allow them.
_NEVER = frozenset(
    """
    asyncio builtins cffi code codeop concurrent ctypes dill ftplib http imp joblib marshal multiprocessing pickle
    pty requests runpy shelve shutil signal smtplib socket socketserver ssl subprocess tempfile threading urllib
    webbrowser xmlrpc zipfile
    """.split()
)


def _bound(alias: ast.alias) -> str:
    return alias.name if alias.asname else alias.name.split(".")[0]


def problems(text: str) -> Iterator[tuple[int, str]]:
    """What a text does that no port may do: line and words."""
    yield from _problems(text, False, "")
