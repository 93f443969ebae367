"""What an attention module is: its processor, its heads, and which calls the engine's layer can run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from porter.source import Definition, SourceModule, SourceTree
from porter.source.walk import walk

CLASSIC = "diffusers.models.attention_processor.Attention"
DISPATCH = "dispatch_attention_fn"
SDPA = "scaled_dot_product_attention"

# Attribute names that diffusers' attention modules use for the same three sizes.
HEADS = ("heads", "num_heads", "num_attention_heads", "n_heads")
HEAD_SIZE = ("head_dim", "dim_head", "dim_heads", "attention_head_dim", "head_width")
KV_HEADS = ("kv_heads", "num_kv_heads", "num_key_value_heads")
# State of a processor that only the dispatcher of diffusers reads.
DISPATCH_STATE = frozenset({"_attention_backend", "_parallel_config"})


@dataclass
class ProcessorPlan:
    """How the processor of an attention class is ported.

    ``fold``: its body becomes the module's forward. ``keep``: it stays a small callable beside the module, because
    several serve the class or it has state of its own (``reason``).
    """

    kind: str
    processor: str | None = None
    reason: str = ""


@dataclass
class Site:
    """One attention call: its source line, and whether the engine's Attention layer can stand for it."""

    line: int
    standard: bool
    reason: str = ""
    causal: bool = False
    scale: str | None = None
    grouped: bool = False


@dataclass
class Sizes:
    """Source text, in terms of ``self`` inside ``__init__``, of the sizes that the Attention layer takes."""

    heads: str
    head_size: str
    kv_heads: str | None = None


def classes(module: SourceModule) -> Iterator[ast.ClassDef]:
    for definition in module.definitions.values():
        if isinstance(definition.node, ast.ClassDef):
            yield definition.node


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((i for i in node.body if isinstance(i, ast.FunctionDef) and i.name == name), None)


def is_attention_module(node: ast.ClassDef) -> bool:
    """Whether a class delegates its forward to ``self.processor``."""
    forward = method(node, "forward")
    return forward is not None and bool(processor_calls(forward))


def processor_calls(function: ast.AST) -> list[ast.Call]:
    return [n for n in walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == "self.processor"]


def processor_plan(
    tree: SourceTree, module: SourceModule, node: ast.ClassDef, requester: SourceModule
) -> ProcessorPlan:
    """Decide how the processor of the attention class ``node`` (defined in ``module``) is ported."""
    if _is_inspected(requester, node):
        return ProcessorPlan("keep", reason="the model inspects the processors of its attention modules")
    init = method(node, "__init__")
    default = _default_processor(node, init)
    found: list[str | None] = []
    for source in {module.name: module, requester.name: requester}.values():
        for call in _constructions(source, node.name):
            given = next((k.value for k in call.keywords if k.arg == "processor"), None)
            if given is None or isinstance(given, ast.Constant) and given.value is None:
                found.append(default)
            elif (
                isinstance(given, ast.Call)
                and isinstance(given.func, ast.Name)
                and not given.args
                and not given.keywords
            ):
                found.append(given.func.id)
            else:
                found.append(None)
    names = list(dict.fromkeys(found or [default]))
    if len(names) != 1 or names[0] is None:
        return ProcessorPlan("keep", reason="several processors serve this class")
    processor = tree.resolve(module.name, names[0]) or tree.resolve(requester.name, names[0])
    if processor is None or not isinstance(processor.node, ast.ClassDef):
        return ProcessorPlan("keep", names[0], f"{names[0]} is not found in the sources")
    reason = _why_not_foldable(processor.node, node)
    return ProcessorPlan("keep" if reason else "fold", names[0], reason)


def _is_inspected(module: SourceModule, node: ast.ClassDef) -> bool:
    """Whether code outside the attention classes reads or sets ``<module>.processor``."""
    for other in walk(module.tree):
        if not isinstance(other, ast.Attribute) or other.attr not in ("processor", "set_processor"):
            continue
        if ast.unparse(other.value) != "self":
            return True
    return False


def _default_processor(node: ast.ClassDef, init: ast.FunctionDef | None) -> str | None:
    for item in node.body:
        if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "_default_processor_cls":
            return item.value.id if isinstance(item.value, ast.Name) else None
    for call in walk(init) if init else ():
        # `self.set_processor(P())`, `processor = P()`, `self.processor = processor or P()`
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and "Processor" in call.func.id:
            return call.func.id
    return None


def _constructions(module: SourceModule, name: str) -> Iterator[ast.Call]:
    for node in walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def _why_not_foldable(processor: ast.ClassDef, attention: ast.ClassDef) -> str:
    call = method(processor, "__call__")
    forward = method(attention, "forward")
    if call is None or forward is None:
        return f"{processor.name} has no __call__ of its own"
    if any(isinstance(base, ast.Attribute) and ast.unparse(base) == "nn.Module" for base in processor.bases):
        return f"{processor.name} has parameters"
    owner = call.args.args[0].arg
    state = {
        n.attr
        for n in walk(call)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == owner
    } - DISPATCH_STATE
    if state:
        return f"{processor.name} has state of its own ({', '.join(sorted(state))})"
    last = forward.body[-1]
    calls = processor_calls(forward)
    if not (isinstance(last, ast.Return) and len(calls) == 1 and last.value is calls[0]):
        return f"{attention.name}.forward does more than delegate"
    return ""


def sites(function: ast.AST, owners: tuple[str, ...] = ("attn", "self")) -> list[Site]:
    """Attention calls below ``function``, in source order."""
    found = []
    for node in walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (DISPATCH, SDPA):
            found.append(describe_site(node, owners))
    return sorted(found, key=lambda site: site.line)


def describe_site(node: ast.Call, owners: tuple[str, ...] = ("attn", "self")) -> Site:
    """What one call of the dispatcher (or of PyTorch's SDPA) asks for."""
    keywords = {k.arg: k.value for k in node.keywords if k.arg}
    grouped = keywords.get("enable_gqa")
    site = Site(node.lineno, True, grouped=grouped is not None and not _is_false(grouped))
    if len(node.args) < 3 or any(isinstance(a, ast.Starred) for a in node.args):
        return Site(node.lineno, False, "query, key and value are not given by position")
    if len(node.args) > 4 or any(k.arg is None for k in node.keywords):
        return Site(node.lineno, False, "arguments behind the mask are given by position or as **")
    if not _no_dropout(keywords.get("dropout_p")):
        return Site(node.lineno, False, "applies dropout")
    causal = keywords.get("is_causal")
    if causal is not None:
        if isinstance(causal, ast.Constant):
            site.causal = bool(causal.value)
        elif not _belongs_to(causal, owners):
            return Site(node.lineno, False, "is_causal is decided at run time")
    if "backend" in keywords and not _default_backend(keywords["backend"]):
        return Site(node.lineno, False, f"names its attention backend ({ast.unparse(keywords['backend'])})")
    if "attention_kwargs" in keywords:
        return Site(node.lineno, False, "passes arguments to the attention backend")
    if "scale" in keywords and not (isinstance(keywords["scale"], ast.Constant) and keywords["scale"].value is None):
        if not _belongs_to(keywords["scale"], owners):
            return Site(node.lineno, False, "the softmax scale is computed at run time")
        site.scale = ast.unparse(keywords["scale"])
    return site


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not node.value


def _no_dropout(node: ast.expr | None) -> bool:
    """No dropout at inference: absent, zero, or ``p if self.training else 0.0``."""
    if node is None or (isinstance(node, ast.IfExp) and "training" in ast.unparse(node.test)):
        return True
    return isinstance(node, ast.Constant) and not node.value


def _belongs_to(node: ast.expr, owners: tuple[str, ...]) -> bool:
    names = {n.id for n in walk(node) if isinstance(n, ast.Name)}
    return bool(names) and names <= {*owners, "math"}


def _default_backend(node: ast.expr) -> bool:
    return ast.unparse(node) in ("None", "self._attention_backend")


def sizes(init: ast.FunctionDef) -> Sizes | None:
    """Heads and head size of an attention module, from what its constructor assigns; None if that does not say."""
    attributes = _self_attributes(init)
    params = [a.arg for a in [*init.args.args, *init.args.kwonlyargs]]
    heads = _named(HEADS, attributes, params)
    head_size = _named(HEAD_SIZE, attributes, params)
    if heads is None:
        return None
    if head_size is None:
        width = attributes.get("inner_dim") and "self.inner_dim" or _query_width(init)
        if width is None:
            return None
        head_size = f"{width} // {heads}"
    kv_heads = _named(KV_HEADS, attributes, params)
    return Sizes(heads, head_size, kv_heads)


def _self_attributes(init: ast.FunctionDef) -> dict[str, ast.expr]:
    found = {}
    for node in walk(init):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    found[target.attr] = node.value
    return found


def _named(vocabulary: tuple[str, ...], attributes: dict[str, ast.expr], params: list[str]) -> str | None:
    for name in vocabulary:
        if name in attributes:
            return f"self.{name}"
    return next((name for name in vocabulary if name in params), None)


def _query_width(init: ast.FunctionDef) -> str | None:
    query = _self_attributes(init).get("to_q") or _self_attributes(init).get("q")
    if isinstance(query, ast.Call) and len(query.args) >= 2:
        return f"({ast.unparse(query.args[1])})"
    return None


def constant_parameters(module: SourceModule, name: str) -> dict[str, ast.expr]:
    """Constructor parameters of a class with a literal default that no construction in its module overrides."""
    definition = module.definitions.get(name)
    init = method(definition.node, "__init__") if definition and isinstance(definition.node, ast.ClassDef) else None
    if init is None:
        return {}
    args = init.args.args[1:]
    defaults = [None] * (len(args) - len(init.args.defaults)) + list(init.args.defaults)
    pairs = list(zip(args, defaults, strict=True)) + list(zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True))
    constant = {arg.arg: value for arg, value in pairs if isinstance(value, ast.Constant)}
    for call in _constructions(module, name):
        if any(keyword.arg is None for keyword in call.keywords) or any(isinstance(a, ast.Starred) for a in call.args):
            return {}
        given = {keyword.arg for keyword in call.keywords} | {arg.arg for arg in args[: len(call.args)]}
        constant = {key: value for key, value in constant.items() if key not in given}
    assigned = {n.id for n in walk(init) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return {key: value for key, value in constant.items() if key not in assigned}


def uses_attention(definition: Definition) -> bool:
    """Whether a definition itself (not what it refers to) computes attention or builds the classic Attention."""
    names = definition.module.imports
    if isinstance(definition.node, ast.ClassDef) and is_attention_module(definition.node):
        return True
    for node in walk(definition.node):
        if isinstance(node, ast.Name) and node.id in (DISPATCH, SDPA):
            return True
        if isinstance(node, ast.Attribute) and node.attr == SDPA:
            return True
        if isinstance(node, ast.Name):
            bound = names.get(node.id)
            if bound and f"{bound.module}.{bound.name}" == CLASSIC:
                return True
            if node.id == "AttentionModuleMixin":
                return True
    return False
