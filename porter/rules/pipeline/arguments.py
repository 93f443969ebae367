"""Remove call parameters that have no meaning in the engine, everywhere they are passed on."""

from __future__ import annotations

from typing import Any

import libcst as cst

from porter.rules.engine import SURFACE, Context, Rule, names_in, parameters
from porter.rules.fold import dotted, only


class DropArguments(Rule):
    """Remove dropped parameters (callbacks, IP-adapter, ``return_dict``) from methods and from the calls of methods.

    Their branches were folded before, with None for the absent value; what remains are signatures and arguments.

    Args:
        dropped: parameter names to remove.
        signatures: parameter names of each method of the class, ``self`` left out, as the source has them.
    """

    name = "drop-arguments"
    safety = SURFACE
    VALID = (
        """
        class ExamplePipeline(DiffusionPipeline):
            def __call__(self, prompt=None):
                return self.step(prompt)

            def step(self, latents):
                latents = self.transformer(latents, return_dict=False)[0]
                return self.scheduler.step(latents, callback=None)
        """,
    )
    INVALID = (
        (
            """
            class ExamplePipeline(DiffusionPipeline):
                def __call__(self, prompt=None, ip_adapter_image=None, height=None, return_dict=True):
                    self.check_inputs(prompt, ip_adapter_image, height=height)

                def check_inputs(
                    self, prompt, ip_adapter_image=None, height=None, callback_on_step_end_tensor_inputs=None
                ):
                    if not all(name in self._inputs for name in callback_on_step_end_tensor_inputs):
                        raise ValueError("unknown inputs")
                    if height % 8:
                        raise ValueError("height")
            """,
            """
            class ExamplePipeline(DiffusionPipeline):
                def __call__(
                    self,
                    prompt=None,
                    height=None,
                ):
                    self.check_inputs(prompt, height=height)

                def check_inputs(
                    self,
                    prompt,
                    height=None,
                ):
                    if height % 8:
                        raise ValueError("height")
            """,
        ),
    )

    def __init__(self, dropped: tuple[str, ...], signatures: dict[str, list[str]]) -> None:
        self.dropped = dropped
        self.signatures = signatures

    def leave_FunctionDef(self, ctx: Context, original: cst.FunctionDef, updated: cst.FunctionDef) -> cst.FunctionDef:
        if not any(p.name.value in self.dropped for p in parameters(updated)):
            return updated
        params = updated.params
        return updated.with_changes(
            params=params.with_changes(
                params=[p for p in params.params if p.name.value not in self.dropped],
                kwonly_params=[p for p in params.kwonly_params if p.name.value not in self.dropped],
            )
        )

    def leave_If(self, ctx: Context, original: cst.If, updated: cst.If) -> Any:
        # A check of a dropped argument that folding could not decide: `if not all(… for k in <dropped>): raise …`
        raises = len(updated.body.body) == 1 and isinstance(only(updated.body.body[0]), cst.Raise)
        mentioned = set(names_in(updated.test))
        others = mentioned & {name for names in self.signatures.values() for name in names} - set(self.dropped)
        if raises and updated.orelse is None and mentioned & set(self.dropped) and not others:
            return cst.RemoveFromParent()
        return updated

    def leave_Call(self, ctx: Context, original: cst.Call, updated: cst.Call) -> Any:
        name = dotted(updated.func)
        if not name or not name.startswith("self.") or name.count(".") != 1:
            return self._passed_on(updated)
        signature = self.signatures.get(name.removeprefix("self."))
        if signature is None:
            return self._passed_on(updated)
        kept, position = [], 0
        for arg in updated.args:
            if arg.keyword is not None:
                keep = arg.keyword.value not in self.dropped
            elif arg.star:
                keep = True
            else:
                keep = position >= len(signature) or signature[position] not in self.dropped
                position += 1
            if keep:
                kept.append(arg)
        if len(kept) == len(updated.args):
            return updated
        if kept:
            kept[-1] = kept[-1].with_changes(comma=updated.args[-1].comma)
        return updated.with_changes(args=kept)

    def _passed_on(self, call: cst.Call) -> cst.Call:
        """A call of something else (another pipeline) without what was dropped; ``return_dict`` holds its default."""
        kept = []
        for arg in call.args:
            value = dotted(arg.value) if arg.keyword is not None else None
            if value not in self.dropped:
                kept.append(arg)
            elif value == "return_dict":
                kept.append(arg.with_changes(value=cst.Name("True")))
        if len(kept) == len(call.args) and all(a is b for a, b in zip(kept, call.args, strict=True)):
            return call
        return call.with_changes(args=kept)
