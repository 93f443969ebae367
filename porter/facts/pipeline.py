"""What a pipeline is: its components, its call parameters, what it returns and where it processes images."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from porter.source import Definition, SourceTree
from porter.source.walk import walk

TRANSFORMERS = "diffusers.models.transformers."
CONTROLNETS = "diffusers.models.controlnets."
CALLBACKS = ("callback_on_step_end", "callback_on_step_end_tensor_inputs", "callback", "callback_steps")
IP_ADAPTER = (
    "ip_adapter_image",
    "ip_adapter_image_embeds",
    "negative_ip_adapter_image",
    "negative_ip_adapter_image_embeds",
)


@dataclass
class Component:
    """A component that ``__init__`` registers.

    Attributes:
        name: its attribute, and its folder in a checkpoint.
        classes: class names of its annotation, in order.
        converted: definitions of those classes that the port rewrites (transformers and their controlnets).
        optional: may be absent from a checkpoint.
        made: diffusers leaves it to the constructor, whatever a checkpoint holds: it has a default, and is not listed
            among the optional components.
    """

    name: str
    classes: list[str]
    converted: list[Definition] = field(default_factory=list)
    optional: bool = False
    made: bool = False

    @property
    def others(self) -> list[str]:
        """Classes that stay diffusers' own beside the converted ones: what holds several controlnets."""
        ported = {model.name for model in self.converted}
        return [name for name in self.classes if name not in ported] if ported else []

    @property
    def may_lack(self) -> bool:
        """Whether a checkpoint may have no weights for the converted classes."""
        return self.optional or bool(self.others)


@dataclass
class CallParameter:
    name: str
    default: str | None
    annotation: str | None


@dataclass
class PipelineFacts:
    """Facts about one pipeline class, read from its source.

    Attributes:
        settings: constructor parameters that are no components, with their defaults.
        dropped: call parameters that a port does not have.
        kept: transformers that stay diffusers' own class, with the reason.
        argument_classes: classes of the same file whose instances a caller hands in.
        parallel: what the converter derived of parallel features for its models, by name; see ``facts/evidence.py``.
        uncached: why Cache-DiT cannot run the blocks of its models; empty if it can.
    """

    definition: Definition
    components: list[Component]
    settings: dict[str, str | None]
    parameters: list[CallParameter]
    dropped: list[str]
    kept: dict[str, str]
    argument_classes: frozenset[str] = frozenset()
    parallel: dict[str, str] = field(default_factory=dict)
    uncached: str = ""

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def folder(self) -> str:
        """diffusers' folder of the pipeline: ``qwenimage``."""
        parts = self.definition.module.name.split(".")
        return parts[2] if len(parts) > 3 else parts[-1]

    @property
    def models(self) -> list[str]:
        """Class names of the pipeline's own denoisers; a ``prior`` that many pipelines share is not one."""
        return [model.name for c in self.components for model in c.converted if c.name.startswith("transformer")]

    def default(self, name: str) -> str | None:
        return next((p.default for p in self.parameters if p.name == name), None)


def is_called(definition: Definition) -> bool:
    """Whether a class has what a pipeline is run by: a constructor and ``__call__`` of its own."""
    body = getattr(definition.node, "body", [])
    return {"__init__", "__call__"} <= {item.name for item in body if isinstance(item, ast.FunctionDef)}


def derives_from_model(node: ast.ClassDef) -> bool:
    """Whether a class is a model of its own, with weights and a configuration: its base is a ``ModelMixin``."""
    return any(isinstance(base, ast.Name) and base.id.endswith("ModelMixin") for base in node.bases)


def called_apart(facts: PipelineFacts) -> str:
    """What needs a converted model's weights and is called by the pipeline itself, not by the model's forward.

    A layer, or a method that names a layer or a weight: ``transformer.time_embed``. Empty if there is none.
    """
    for component in facts.components:
        for model in component.converted:
            called = re.findall(rf"\bself\.{component.name}\.(\w+)\(", facts.definition.code)
            held = _layers(model.node)
            for name in called:
                method = _method(model.node, name) if isinstance(model.node, ast.ClassDef) else None
                named = {n.attr for n in walk(method) if isinstance(n, ast.Attribute)} if method else set()
                if name in held or (name != "forward" and named & held):
                    return f"{component.name}.{name}"
    return ""


def _layers(model: ast.AST) -> set[str]:
    """Attributes of a model that are made by calling a class: layers and weights, ``nn.Parameter`` included."""
    found = set()
    for node in walk(model):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = ast.unparse(node.value.func).rpartition(".")[2]
            if made[:1].isupper():
                found |= {t.attr for t in node.targets if isinstance(t, ast.Attribute)}
    return found


def pipeline_facts(tree: SourceTree, definition: Definition) -> PipelineFacts:
    """Read the facts of a pipeline class."""
    node = definition.node
    assert isinstance(node, ast.ClassDef)
    init, call = _method(node, "__init__"), _method(node, "__call__")
    optional = _string_list(node, "_optional_components")
    registered = _registered(init) if init else []
    components, settings = [], {}
    kept: dict[str, str] = {}
    for arg, default in _parameters(init) if init else []:
        if arg.arg in registered:
            classes = _annotation_names(arg.annotation)
            converted = [d for name in classes if (d := _converted(tree, definition, name))]
            if _swaps_processors(definition, arg.arg):
                converted, kept[arg.arg] = [], "the pipeline replaces its attention processors at run time"
            is_optional = arg.arg in optional or (default is not None and ast.unparse(default) == "None")
            made = default is not None and arg.arg not in optional
            components.append(Component(arg.arg, classes, converted, is_optional, made))
        else:
            settings[arg.arg] = ast.unparse(default) if default is not None else None
    if not any(model for c in components for model in c.converted if not is_controlnet(model)):
        for component in components:  # beside a denoiser of diffusers' own, so does its controlnet stay
            component.converted = []
    params = [
        CallParameter(
            a.arg,
            ast.unparse(d) if d is not None else None,
            ast.unparse(a.annotation) if a.annotation is not None else None,
        )
        for a, d in (_parameters(call) if call else [])
    ]
    dropped = [p.name for p in params if p.name in (*CALLBACKS, *IP_ADAPTER, "return_dict")]
    handed_in = _argument_classes(definition, params)
    return PipelineFacts(definition, components, settings, params, dropped, kept, handed_in)


def _argument_classes(definition: Definition, parameters: list[CallParameter]) -> frozenset[str]:
    mentioned = {name for p in parameters for name in re.findall(r"[A-Za-z_]\w*", p.annotation or "")}
    found = {name: definition.module.definitions.get(name) for name in mentioned - {definition.name}}
    return frozenset(name for name, held in found.items() if held is not None and isinstance(held.node, ast.ClassDef))


def _swaps_processors(definition: Definition, component: str) -> bool:
    """Whether a pipeline sets attention processors on a component while it runs (perturbed attention does)."""
    text = definition.code
    if f"self.{component}.set_attn_processor(" in text or f"self.{component}.attn_processors" in text:
        return True
    return ".set_processor(" in text and f"self.{component}." in text


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((i for i in node.body if isinstance(i, ast.FunctionDef) and i.name == name), None)


def _parameters(function: ast.FunctionDef) -> list[tuple[ast.arg, ast.expr | None]]:
    args = [*function.args.posonlyargs, *function.args.args]
    defaults: list[ast.expr | None] = [None] * (len(args) - len(function.args.defaults))
    pairs = list(zip(args, [*defaults, *function.args.defaults], strict=True))
    pairs += list(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))
    return [pair for pair in pairs if pair[0].arg != "self"]


def _registered(init: ast.FunctionDef) -> list[str]:
    return [
        keyword.arg
        for node in walk(init)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.register_modules"
        for keyword in node.keywords
        if keyword.arg
    ]


def _annotation_names(annotation: ast.expr | None) -> list[str]:
    if annotation is None:
        return []
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    names = [n.id for n in walk(annotation) if isinstance(n, ast.Name)]
    return [n for n in dict.fromkeys(names) if n not in ("Union", "Optional", "list", "tuple", "List", "Tuple", "Any")]


def _converted(tree: SourceTree, definition: Definition, name: str) -> Definition | None:
    module = definition.module
    bound = module.imports.get(name)
    target = tree.resolve(bound.module, bound.name) if bound and bound.name else None
    if target is None or not isinstance(target.node, ast.ClassDef):
        return None
    if target.module.name.startswith(TRANSFORMERS):
        return target
    return target if is_controlnet(target) and _is_configured(target.node) else None


def is_controlnet(model: Definition) -> bool:
    """Whether a class is one of diffusers' controlnets."""
    return model.module.name.startswith(CONTROLNETS)


def _is_configured(node: ast.ClassDef) -> bool:
    """Whether a model is built from a configuration; one that only holds others is handed them."""
    init = _method(node, "__init__")
    return init is not None and any(ast.unparse(d) == "register_to_config" for d in init.decorator_list)


def _string_list(node: ast.ClassDef, name: str) -> list[str]:
    for item in node.body:
        if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == name:
            return [str(e.value) for e in getattr(item.value, "elts", []) if isinstance(e, ast.Constant)]
    return []
