"""Faults that ports made by hand were published with; the numbers are those of docs/mutation.md."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from porter.parity.mutants.context import Change, Context

_HELPER = '__import__("porter.parity.mutants.faults", fromlist=["faults"])'
_CLEANERS = ("prompt_clean", "_text_preprocessing", "_clean_caption", "basic_clean", "whitespace_clean", "clean_prompt")


def _called(node: cst.CSTNode, context: Context) -> tuple[str, list[cst.BaseExpression]]:
    """The last name of what is called and the positional arguments; nothing for other nodes."""
    if not isinstance(node, cst.Call):
        return "", []
    plain = [arg.value for arg in node.args if arg.keyword is None and not arg.star]
    return context.text(node.func).rpartition(".")[2], plain


def _names(scope: cst.CSTNode, context: Context) -> list[str]:
    parameters = scope.params if isinstance(scope, cst.FunctionDef) else cst.Parameters()
    return [param.name.value for param in (*parameters.params, *parameters.kwonly_params)]


def text_length_from_mask(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """The length of the text is what the mask counts, not the width that it was padded to."""
    if not isinstance(node, cst.Subscript) or not context.scopes or not context.text(node).endswith(".shape[1]"):
        return
    held = context.text(node).removesuffix(".shape[1]")
    if not ("encoder_hidden_states" in held or "prompt_embeds" in held or held.endswith("mask")):
        return
    body = context.text(context.scopes[-1])
    own = (held, f"{held}_mask", held.replace("embeds", "attention_mask"))
    candidates = [*own, "attention_mask", "prompt_embeds_mask"]
    known = {*_names(context.scopes[-1], context)}
    for name in candidates:
        if name.endswith("mask") and (name in known or f"{name} = " in body):
            counted = f"int({name}.bool().sum(-1).max())"
            yield context.replace(node, f"({counted} if {name} is not None else {held}.shape[1])")
            return


def schedule_off_by_one(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """The loop over the schedule passes over its last step, or over its first."""
    if not isinstance(node, cst.Assign) or not context.text(node).startswith("state.timesteps ="):
        return
    for part in ("[:-1]", "[1:]"):
        yield context.replace(node.value, f"({context.text(node.value)}){part}")


def unshifted_sigmas(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """The scheduler's shift, or its stretch to a terminal value, is left out."""
    name, plain = _called(node, context)
    if name == "load_component" and len(plain) > 1 and "scheduler" in context.text(plain[1]):
        yield context.replace(node, f"{_HELPER}.unshifted({context.text(node)})")


def unpatched_length(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """The shift is computed from the number of latent positions before they were packed."""
    name, plain = _called(node, context)
    if name in ("calculate_shift", "compute_empirical_mu") and isinstance(node, cst.Call):
        keyed = [arg.value for arg in node.args if arg.keyword is not None and "seq_len" in arg.keyword.value]
        for first in (*plain[:1], *keyed[:1]):
            yield context.replace(first, f"(({context.text(first)}) * 4)")
            return


def guidance_scaled_twice(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """The embedded guidance is multiplied by 1000 once more, or the weights of its embedder are lost."""
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.Multiply):
        if "guidance" in context.text(node.left) and context.text(node.right).rstrip(".0") in ("1", "1000"):
            yield context.replace(node, f"({context.text(node)}) * 1000")
    elif isinstance(node, cst.For) and context.function.endswith(".load_weights"):
        if b"guidance_embed" in context.source:
            yield context.replace(node.iter, f'{_HELPER}.zeroed({context.text(node.iter)}, "guidance_embed")')


def negative_prompt_ignored(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A negative prompt that was given is not used."""
    if isinstance(node, cst.Call) and context.text(node).startswith('given.pop("negative_prompt", '):
        yield context.replace(node, f'({context.text(node)}, "")[1]')


def rescale_missing(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """The guided prediction keeps its own norm."""
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.Multiply):
        ratio = node.right
        if isinstance(ratio, cst.BinaryOperation) and isinstance(ratio.operator, cst.Divide):
            if all(any(w in context.text(s) for w in ("norm", "std")) for s in (ratio.left, ratio.right)):
                yield context.replace(node, f"({context.text(node.left)})")
    name, plain = _called(node, context)
    if name == "rescale_noise_cfg" and plain:
        yield context.replace(node, f"({context.text(plain[0])})")


def packed_axes(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """Latents are packed or unpacked with two axes in another order."""
    name, plain = _called(node, context)
    if name == "permute" and len(plain) > 3 and "pack" in context.function.lower():
        yield context.swap(plain[-2], plain[-1])
        yield context.swap(plain[1], plain[2])


def residual_dtype(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """The residual stream has another type at a block's border; a whole module is cast."""
    if isinstance(node, cst.Assign) and context.function.endswith("Block.forward"):
        if context.text(node.targets[0].target) == "hidden_states" and isinstance(node.value, cst.BinaryOperation):
            if isinstance(node.value.operator, cst.Add):
                yield context.replace(node.value, f"({context.text(node.value)}).to(torch.bfloat16)")
    elif isinstance(node, cst.Call) and context.function.endswith(".__init__") and node.args:
        if any(arg.star == "**" and "transformer" in context.text(arg.value) for arg in node.args):
            yield context.replace(node, f"{context.text(node)}.to(torch.bfloat16)")


def shared_scheduler(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """Requests that take turns share a scheduler, with its step counter."""
    if isinstance(node, cst.Call) and context.text(node.func) == "copy.deepcopy":
        if "_turn" in context.function:
            yield context.replace(node, context.text(node.args[0].value))


def sentinel_default(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """Guidance that was left out becomes 1, or one that was given counts as left out."""
    name, plain = _called(node, context)
    if name == "pop" and len(plain) == 2 and context.text(plain[0]).endswith('_scale"'):
        if "guidance" in context.text(plain[0]) or "cfg" in context.text(plain[0]):
            if f"{context.text(plain[1])}: float = 1.0" not in context.text(context.scopes[-1]):  # that is what it is
                yield context.replace(plain[1], "1.0")
            yield context.replace(node, f"({context.text(node)}, {context.text(plain[1])})[1]")


def other_cleaning(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """A prompt is not cleaned where diffusers cleans it, or cleaned where it does not."""
    name, plain = _called(node, context)
    if name in _CLEANERS and len(plain) == 1 and context.function.rpartition(".")[2] not in _CLEANERS:
        yield context.replace(node, f"({context.text(plain[0])})")
    if isinstance(node, cst.Call) and context.text(node).startswith('given.pop("prompt", '):
        yield context.replace(node, f"{_HELPER}.recleaned({context.text(node)})")


def second_attention(node: cst.CSTNode, context: Context) -> Iterator[Change]:
    """The second attention of a block is the first again, or they are loaded under each other's names."""
    if isinstance(node, cst.Assign) and context.function.endswith(".__init__") and isinstance(node.value, cst.Call):
        if context.text(node.targets[0].target) == "self.attn2":
            yield context.replace(node.value, "self.attn1")
    elif isinstance(node, cst.For) and context.function.endswith(".load_weights"):
        for first, second in (("attn1", "attn2"), ("to_q", "to_k"), ("add_q_proj", "add_k_proj")):
            built, merged = f"self.{second} =".encode(), f'".{second}."'.encode()
            if built in context.source or merged in context.source:
                yield context.replace(
                    node.iter, f'{_HELPER}.swapped_names({context.text(node.iter)}, "{first}", "{second}")'
                )


MUTATORS = {
    "text-length-from-mask": (1, text_length_from_mask),
    "schedule-off-by-one": (2, schedule_off_by_one),
    "unshifted-sigmas": (3, unshifted_sigmas),
    "unpatched-length": (4, unpatched_length),
    "guidance-scaled-twice": (5, guidance_scaled_twice),
    "negative-prompt-ignored": (6, negative_prompt_ignored),
    "rescale-missing": (7, rescale_missing),
    "packed-axes": (8, packed_axes),
    "residual-dtype": (9, residual_dtype),
    "shared-scheduler": (12, shared_scheduler),
    "sentinel-default": (13, sentinel_default),
    "other-cleaning": (14, other_cleaning),
    "second-attention": (15, second_attention),
}
