"""Faults of the kind that slip in when a pipeline is carried over by hand."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from porter.parity.mutants.context import Change, Context

# What a VAE's latents are scaled, shifted or normalised by.
_SCALES = frozenset(
    ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "spatial_scale", "init_noise_sigma")
)
_EPS = frozenset(("eps", "norm_eps", "epsilon"))
_REPEATS = {"repeat_interleave": "repeat", "repeat": "repeat_interleave"}
_CLAMPS = frozenset(("clamp", "clip", "clamp_"))
# They say how a result is handed over, or what is logged.
_FORMS = frozenset(
    ("return_dict", "return_bias", "persistent", "inplace", "non_blocking", "copy", "output_loading_info")
)


def _method(node: cst.CSTNode) -> tuple[cst.BaseExpression, cst.Name] | None:
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
        return node.func.value, node.func.attr
    return None


def joined_in_another_order(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """Two sequences are put together the other way round: picture and text, negative and positive."""
    if not isinstance(node, cst.Call) or context.text(node.func) not in ("torch.cat", "torch.concat", "torch.stack"):
        return
    items = node.args[0].value if node.args else None
    if isinstance(items, (cst.List, cst.Tuple)):
        values = [item.value for item in items.elements]
        for first, second in zip(values, values[1:]):
            if context.text(first) != context.text(second):
                yield context.swap(first, second)


def another_eps(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A norm keeps away from zero by another amount."""
    if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value in _EPS:
        yield context.replace(node.value, f"(({context.text(node.value)}) * 10)")


def repeated_in_another_order(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """Each item of a batch several times, instead of the batch several times, or the other way round."""
    found = _method(node)
    if found is None or found[1].value not in _REPEATS or not isinstance(node, cst.Call):
        return
    held, called = context.text(found[0]), [context.text(arg) for arg in node.args]
    if called and all(text == "1" for text in called[1:] if "dim" not in text) and called[0] not in ("1", "-1"):
        if called[0].startswith("dim") or (called[1:] and called[1] != "1" and "dim=0" not in called[1]):
            return
        first = called[0].partition("=")[2] or called[0]
        if called[0].startswith("repeats="):
            called[0] = first
        text = f"{held}.repeat_interleave({first}, dim=0)"
        if found[1].value == "repeat_interleave":
            text = f"(lambda x: x.repeat({first}, *[1] * (x.ndim - 1)))({held})"
        yield context.replace(node, text)


def mask_lost(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A mask is not passed on."""
    if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value.endswith("mask"):
        if context.text(node.value) not in ("None", "True", "False"):  # whether a tokenizer gives one is a flag
            yield context.replace(node.value, "None")


def generator_lost(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """Noise is drawn from the global generator."""
    if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == "generator":
        if context.text(node.value) != "None":
            yield context.replace(node.value, "None")


def another_scale(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """Latents are scaled or shifted by another number than the VAE's."""
    if isinstance(node, cst.Attribute) and node.attr.value in _SCALES:
        parents = [p for p in context.parents[:-1] if isinstance(p, cst.BaseExpression)]
        if not any(isinstance(p, (cst.Comparison, cst.BooleanOperation)) for p in parents):
            text = context.text(node)
            helper = '__import__("porter.parity.mutants.faults", fromlist=["faults"])'
            yield context.replace(node, f"{helper}.enlarged({text})")


def clamp_missing(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A value is not kept within its bounds."""
    found = _method(node)
    if found is None or found[1].value not in _CLAMPS or not isinstance(node, cst.Call):
        return
    held: cst.CSTNode = found[0]
    if context.text(held) in ("torch", "np"):
        held = node.args[0]
    yield context.replace(node, f"({context.text(held)})")


def argument_ignored(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """An argument of the request is taken, and its default used."""
    if not isinstance(node, cst.Call) or context.text(node.func) != "given.pop" or len(node.args) != 2:
        return
    default = context.text(node.args[1].value)
    yield context.replace(node, f"({context.text(node)}, {default})[1]")


def flag_turned(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A flag handed to a call is the other way round."""
    if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value not in _FORMS:
        if isinstance(node.value, cst.Name) and node.value.value in ("True", "False"):
            yield context.replace(node.value, str(node.value.value == "False"))


MUTATORS = {
    "joined-in-another-order": joined_in_another_order,
    "another-eps": another_eps,
    "repeated-in-another-order": repeated_in_another_order,
    "mask-lost": mask_lost,
    "generator-lost": generator_lost,
    "another-scale": another_scale,
    "clamp-missing": clamp_missing,
    "argument-ignored": argument_ignored,
    "flag-turned": flag_turned,
}
