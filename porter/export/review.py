"""What reviewers of vLLM-Omni ask of a model, answered from the exported text itself."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from porter.export import ExportError
from porter.export.checkout import REGISTRY, Checkout
from porter.export.insert import keys_of
from porter.export.pages import Exported

_LINEAR = ("QKVParallelLinear", "MergedColumnParallelLinear", "ColumnParallelLinear", "RowParallelLinear")
_REPLICATED = "ReplicatedLinear"
_LOG = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
_TRAINING = frozenset({"gradient_checkpointing", "_gradient_checkpointing_func", "enable_gradient_checkpointing"})
_TABLES = ("_DIFFUSION_MODELS", "_DIFFUSION_POST_PROCESS_FUNCS", "_DIFFUSION_PRE_PROCESS_FUNCS")
ROPE = "vllm_omni.diffusion.layers.rope"


def answers(exported: Exported, texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Point and answer, in the order that reviewers have them.

    Args:
        exported: the model.
        texts: of its modules, by path.
    """
    trees = {name: ast.parse(text) for name, text in texts.items()}
    called: Counter[str] = Counter()
    imported: dict[str, set[str]] = {}
    logged: list[str] = []
    trained: list[str] = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.setdefault(node.module, set()).update(alias.name for alias in node.names)
            elif isinstance(node, ast.Call):
                called[_last(node.func)] += 1
                if _formats_early(node):
                    logged.append(f"{name}:{node.lineno}")
            elif isinstance(node, ast.Attribute) and node.attr in _TRAINING and isinstance(node.ctx, ast.Load):
                trained.append(f"{name}:{node.lineno}")
    return [
        ("vLLM-Omni's Attention layer", _attention(exported, called)),
        ("vLLM-Omni's RoPE layer", _rope(imported)),
        ("helpers of diffusers imported, not copied", _helpers(imported, texts)),
        ("parallel linear layers", _linear(exported, called)),
        ("lazy log formatting", _places(logged, "yes: no message is formatted before it is logged", "no")),
        ("no training paths", _places(trained, "yes: none is left", "left")),
        ("regression test", f"`{_test(exported)}`, CPU level; on a checkpoint: {_e2e(exported)}"),
        ("CI", exported.ci),
        ("recipe", f"`recipes/{exported.recipe}`; its commands are untested on a GPU"),
        ("examples", _examples(exported)),
        ("accuracy against diffusers", _accuracy(exported)),
        ("latency and peak memory against diffusers", _speed(exported)),
        ("versions", "the header of each file names diffusers' version and the sha256 of its source"),
        ("Cache-DiT", exported.port.features.get("cache_dit", "untested")),
    ]


def lost_entries(checkout: Checkout, read: Callable[[str], str]) -> list[str]:
    """Models that the registry had an entry of and has none of now: a hook of a model that was exchanged, at most.

    Args:
        checkout: what is exported into.
        read: the text of a file as it is to be.
    """
    before, after = checkout.text(REGISTRY), read(REGISTRY)
    lost = []
    for table in _TABLES:
        try:
            lost += [f"{table}[{key!r}]" for key in sorted(set(keys_of(before, table)) - set(keys_of(after, table)))]
        except ExportError:
            continue
    return lost


def _attention(exported: Exported, called: Counter[str]) -> str:
    left = called["scaled_dot_product_attention"] + called["dispatch_attention_fn"]
    rest = f", {left} calls of torch's or diffusers' attention left as they are (see the residue)" if left else ""
    state = exported.port.features.get("attention_backends", "untested")
    places = "1 place builds" if called["Attention"] == 1 else f"{called['Attention']} places build"
    return f"{places} it{rest}; backends can be chosen: {state}"


def _rope(imported: Mapping[str, set[str]]) -> str:
    if imported.get(ROPE):
        return "yes"
    return "no: diffusers' rotary embedding stays, so that results are the same bit for bit"


def _helpers(imported: Mapping[str, set[str]], texts: Mapping[str, str]) -> str:
    names = sum(len(found) for module, found in imported.items() if module.startswith("diffusers"))
    own = [name.rpartition("/")[2] for name in texts if name.rpartition("/")[2] in ("support.py", "stepwise.py")]
    beside = f"; {' and '.join(sorted(own))} hold what the engine asks of every port" if own else ""
    return f"{names} names are imported from diffusers; what the pinned one lacks is named in a file's header{beside}"


def _linear(exported: Exported, called: Counter[str]) -> str:
    counts = [f"{called[name]} {name}" for name in (*_LINEAR, _REPLICATED, "Linear") if called[name]]
    state = exported.port.features.get("tensor_parallel", "untested")
    return f"tensor parallelism {state}; places that build one: {', '.join(counts) or 'none'}"


def _places(found: Sequence[str], none: str, some: str) -> str:
    return f"{some}: {', '.join(f'`{place}`' for place in found[:5])}" if found else none


def _test(exported: Exported) -> str:
    return f"tests/diffusion/models/{exported.folder}/test_{exported.port.stem}.py"


def _e2e(exported: Exported) -> str:
    if not exported.e2e:
        return "none, since diffusers' example names no checkpoint that such a test could load"
    return ", ".join(f"`{name}`" for name in exported.e2e) + " (not run: they need a GPU)"


def _examples(exported: Exported) -> str:
    stem = exported.port.stem
    offline = exported.shared_script or f"examples/offline_inference/{stem}/{stem}.py"
    online = exported.shared_server or f"examples/online_serving/{stem}"
    return f"`{offline}`, `{online}`"


def _accuracy(exported: Exported) -> str:
    found = exported.in_process.get("verdict", "untested")
    return f"{found} with a tiny random checkpoint, see above; with a published one: untested"


def _speed(exported: Exported) -> str:
    return f"measured on {exported.bench.machine}, see above" if exported.bench else "not measured"


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _formats_early(node: ast.Call) -> bool:
    """Whether a call logs a message that is put together before it is known whether anybody wants it."""
    function = node.func
    if not (isinstance(function, ast.Attribute) and function.attr in _LOG and _last(function.value) == "logger"):
        return False
    message = node.args[0] if node.args else None
    formats = isinstance(message, ast.JoinedStr) or (isinstance(message, ast.BinOp) and isinstance(message.op, ast.Mod))
    return formats or (isinstance(message, ast.Call) and _last(message.func) == "format")
