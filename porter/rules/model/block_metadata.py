"""Name a model's repeated blocks for the engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import libcst as cst

from porter.rules.engine import SURFACE, Context, Rule, code, identifiers, method, nodes, statements
from porter.rules.fold import dotted, only
from porter.rules.model.mixins import MODEL_BASES


class LayerwiseBlocks(Rule):
    """Name the repeated blocks: what is compiled, offloaded layer by layer, and sharded block by block (HSDP).

    ``_repeated_blocks`` are classes, ``_layerwise_offload_blocks_attrs`` attributes; ``_hsdp_shard_conditions`` say of
    a submodule, by its name, whether it is one of the blocks. Without the first the engine compiles nothing, without
    the others it refuses.

    A list that settings may leave out is not offloaded: the engine asks for each that is named. One whose blocks lend
    a layer to the model's own forward is not sharded: the layer's weights are whole only while its block runs.
    """

    name = "block-metadata"
    safety = SURFACE
    VALID = (
        """
        class ExampleEncoder(nn.Module):
            def __init__(self, dim, num_layers):
                super().__init__()
                self.blocks = nn.ModuleList([ExampleBlock(dim) for _ in range(num_layers)])
        """,
        """
        class ExampleTransformer2DModel(ModelMixin):
            _repeated_blocks = ["ExampleBlock"]
            _layerwise_offload_blocks_attrs = ["blocks"]
            _hsdp_shard_conditions = [lambda name, module: name.startswith("blocks.")]

            def __init__(self, dim, num_layers):
                super().__init__()
                self.blocks = nn.ModuleList([ExampleBlock(dim) for _ in range(num_layers)])
        """,
    )
    INVALID = (
        (
            """
            class ExampleTransformer2DModel(ModelMixin):
                def __init__(self, dim, num_layers):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleBlock(dim) for _ in range(num_layers)])
                    self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(num_layers)])
            """,
            """
            class ExampleTransformer2DModel(ModelMixin):
                _repeated_blocks = ["ExampleBlock"]
                _layerwise_offload_blocks_attrs = ["blocks"]
                _hsdp_shard_conditions = [
                    lambda name, module: name.count(".") == 1 and name.split(".")[0] in ("blocks",)
                ]

                def __init__(self, dim, num_layers):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleBlock(dim) for _ in range(num_layers)])
                    self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(num_layers)])
            """,
        ),
        (
            """
            class ExampleTransformer2DModel(ModelMixin):
                def __init__(self, dim, num_layers, with_context):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleBlock(dim) for _ in range(num_layers)])
                    self.context = None
                    if with_context:
                        self.context = nn.ModuleList([ExampleBlock(dim) for _ in range(2)])

                def forward(self, timestep):
                    return self.blocks[0].norm.emb(timestep)
            """,
            """
            class ExampleTransformer2DModel(ModelMixin):
                _repeated_blocks = ["ExampleBlock"]
                _layerwise_offload_blocks_attrs = ["blocks"]
                _hsdp_shard_conditions = [
                    lambda name, module: name.count(".") == 1 and name.split(".")[0] in ("context",)
                ]

                def __init__(self, dim, num_layers, with_context):
                    super().__init__()
                    self.blocks = nn.ModuleList([ExampleBlock(dim) for _ in range(num_layers)])
                    self.context = None
                    if with_context:
                        self.context = nn.ModuleList([ExampleBlock(dim) for _ in range(2)])

                def forward(self, timestep):
                    return self.blocks[0].norm.emb(timestep)
            """,
        ),
    )

    def leave_ClassDef(self, ctx: Context, original: cst.ClassDef, updated: cst.ClassDef) -> cst.ClassDef:
        if not any(dotted(base.value) in MODEL_BASES for base in original.bases):
            return updated
        init = method(original, "__init__")
        lists, classes = _block_lists(init) if init else ([], [])
        always = [name for name in lists if init is not None and _is_made(init.body.body, name)]
        lent = _lent(original)
        whole = [name for name in lists if name not in lent]
        present = {name for item in updated.body.body if not hasattr(item, "params") for name in identifiers(item)}
        added = ""
        if classes and "_repeated_blocks" not in present:
            added += f"_repeated_blocks = {classes!r}\n"
        if always and "_layerwise_offload_blocks_attrs" not in present:
            added += f"_layerwise_offload_blocks_attrs = {always!r}\n"
        if whole and "_hsdp_shard_conditions" not in present:
            held = ", ".join(f"{name!r}" for name in whole) + ("," if len(whole) == 1 else "")
            added += (
                "_hsdp_shard_conditions = "
                f"[lambda name, module: name.count('.') == 1 and name.split('.')[0] in ({held})]\n"
            )
        if not added:
            return updated
        body = list(updated.body.body)
        at = next((i for i, item in enumerate(body) if isinstance(item, cst.FunctionDef)), len(body))
        body[at:at] = statements(added.replace("'", '"'))
        return updated.with_changes(body=updated.body.with_changes(body=body))


def _is_made(body: Iterable[Any], name: str) -> bool:
    """Whether statements assign an attribute, whatever their conditions say."""
    for statement in body:
        assign = only(statement)
        if isinstance(assign, cst.Assign) and dotted(assign.targets[0].target) == f"self.{name}":
            return code(assign.value) != "None"
        if isinstance(statement, cst.If) and statement.orelse is not None:
            other = statement.orelse
            rest = other.body.body if isinstance(other, cst.Else) else [other]
            if _is_made(statement.body.body, name) and _is_made(rest, name):
                return True
    return False


def _lent(node: cst.ClassDef) -> set[str]:
    """Lists of which a method calls a layer of an element: ``self.blocks[0].norm.emb(...)``."""
    found: set[str] = set()
    for call in nodes(node.body, cst.Call):
        owner = call.func.value if isinstance(call.func, cst.Attribute) else None
        while isinstance(owner, cst.Attribute):
            owner = owner.value
        if isinstance(owner, cst.Subscript):
            found.add((dotted(owner.value) or "").removeprefix("self."))
    return found


def _block_lists(init: cst.FunctionDef) -> tuple[list[str], list[str]]:
    """Attributes that hold a ModuleList built by a comprehension, and the classes that fill them."""
    lists: list[str] = []
    classes: list[str] = []
    for assign in nodes(init.body, cst.Assign):
        target = (dotted(assign.targets[0].target) or "").split(".")
        is_list = isinstance(assign.value, cst.Call) and (dotted(assign.value.func) or "").endswith("ModuleList")
        if not is_list or len(target) != 2 or target[0] != "self":
            continue
        for element in [c.elt for kind in (cst.ListComp, cst.GeneratorExp) for c in nodes(assign.value, kind)]:
            if isinstance(element, cst.Call) and isinstance(element.func, cst.Name):
                lists.append(target[1])
                classes.append(element.func.value)
    return list(dict.fromkeys(lists)), list(dict.fromkeys(classes))
