"""What vLLM-Omni's own ports want of a checkpoint or a call that the tiny ones of porter have otherwise.

Each entry brings a tiny checkpoint closer to the published one, or says in the call what the port does not find out by
itself; diffusers and porter's port get the same checkpoint and the same call.
"""

from __future__ import annotations

import functools
import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Form:
    """How one pipeline's checkpoint and calls are changed.

    Attributes:
        configs: other values for settings in ``config.json``, by component; dictionaries are merged.
        call: arguments that every call gets besides.
        without: arguments that no call gets, so that their defaults hold.
        prefix: what the tensors of a component are called by, in front, in the published checkpoint.
        folders: further folders of the checkpoint, with the contents of several of its components.
        engine: settings of the engine; ``{checkpoint}`` stands for the folder.
        reason: why all of it.
    """

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    prefix: dict[str, str] = field(default_factory=dict)
    folders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def _qwen(layers: int) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}


FORMS = {
    "Flux2KleinPipeline": Form(
        configs={"text_encoder": _qwen(28), "transformer": {"joint_attention_dim": 48}},
        without=("text_encoder_out_layers",),
        reason="it reads layers 9, 18 and 27 of the text encoder, whatever the call says",
    ),
    "Flux2Pipeline": Form(
        configs={
            "text_encoder": {
                "tie_word_embeddings": False,
                "text_config": {"num_hidden_layers": 31, "tie_word_embeddings": False},
            }
        },
        without=("text_encoder_out_layers",),
        reason="it wants the head of the text encoder, and reads its layers 10, 20 and 30",
    ),
    "Cosmos3OmniPipeline": Form(
        configs={"transformer": {"qk_norm_for_text": True, "hidden_act": "silu"}},
        engine={"model_config": {"guardrails": False}},
        reason="its blocks have gates and normalize queries and keys of texts, always; its filters are another package",
    ),
    "HiDreamImagePipeline": Form(
        folders={"llama": ("text_encoder_4", "tokenizer_4")},
        engine={"extras": {"auxiliary_text_encoder": "{checkpoint}/llama"}},
        reason="it takes the fourth text encoder and its tokenizer from one folder outside of the checkpoint",
    ),
    "GlmImagePipeline": Form(
        call={"prior_token_ids": {"$tensor": {"shape": [1, 16], "dtype": "int64", "low": 0, "high": 40, "seed": 1}}},
        reason="it takes the prior tokens from another stage of the engine",
    ),
    "ZImagePipeline": Form(
        configs={"text_encoder": {"tie_word_embeddings": True}},
        prefix={"text_encoder": "model."},
        reason="it has a causal text encoder, and reads its tensors by the names that the published checkpoint has",
    ),
    "StableDiffusionXLPipeline": Form(reason="its UNet has the sizes of the published model in its code"),
    "HunyuanVideo15Pipeline": Form(
        configs={"transformer": {"image_embed_dim": 1152}}, reason="it has the size of picture embeddings fixed"
    ),
    "SanaVideoPipeline": Form(
        configs={"transformer": {"sample_size": 30}}, reason="it knows the sample sizes of the published models"
    ),
    "SanaImageToVideoPipeline": Form(
        configs={"transformer": {"sample_size": 30}}, reason="it knows the sample sizes of the published models"
    ),
    "StableDiffusion3Pipeline": Form(
        call={"height": 64, "width": 64}, reason="its default size is 1024, whatever the checkpoint's"
    ),
}


def configs(name: str, specified: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """The changed settings of a pipeline's components, for ``checkpoint.build``; ``specified`` are the spec's files."""
    form = FORMS.get(name, Form())
    return {
        component: _merged(json.loads(specified[f"{component}/config.json"]), values)
        for component, values in form.configs.items()
    }


def lay_out(name: str, checkpoint: Path) -> dict[str, Any]:
    """Bring the files of a tiny checkpoint into a pipeline's form; the settings of the engine for it."""
    from safetensors.torch import load_file, save_file

    form = FORMS.get(name, Form())
    for component, prefix in form.prefix.items():
        for file in (checkpoint / component).glob("*.safetensors"):
            save_file({prefix + key: tensor for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    for folder, components in form.folders.items():
        for component in components:
            shutil.copytree(checkpoint / component, checkpoint / folder, dirs_exist_ok=True)
    settings: dict[str, Any] = json.loads(json.dumps(form.engine).replace("{checkpoint}", str(checkpoint)))
    return settings


def inputs(name: str, held: dict[str, Any]) -> dict[str, Any]:
    """The small call of a pipeline in its form."""
    form = FORMS.get(name, Form())
    return {key: value for key, value in held.items() if key not in form.without} | form.call


def _merged(held: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _merged(held[key], value) if isinstance(value, dict) and isinstance(held.get(key), dict) else value
        for key, value in {**held, **values}.items()
    }


@contextmanager
def sized(name: str, checkpoint: Path) -> Iterator[list[str]]:
    """While the block runs, models of vLLM-Omni's port that have their sizes in their signature get the checkpoint's.

    Some are built without their config: what the published model has is the default of each parameter. A parameter
    that the port does not set gets the value of ``config.json`` of the same name. Yields the names of those that were
    set, to be told beside the result.
    """
    from vllm_omni.diffusion.registry import DiffusionModelRegistry

    from porter.omni.plugin import use_native

    use_native(name)
    told: list[str] = []
    module = inspect.getmodule(DiffusionModelRegistry._try_load_model_cls(name))
    index = json.loads((checkpoint / "model_index.json").read_text())
    changed = []
    for component, value in index.items():
        file = checkpoint / component / "config.json"
        cls = getattr(module, value[1], None) if isinstance(value, list) and value[1] else None
        if file.is_file() and isinstance(cls, type) and cls.__module__.startswith("vllm_omni."):
            changed.append((cls, cls.__init__))
            cls.__init__ = _filled(cls.__init__, json.loads(file.read_text()), told)  # type: ignore[misc]
    try:
        yield told
    finally:
        for cls, original in changed:
            cls.__init__ = original  # type: ignore[misc]


def _filled(original: Any, config: dict[str, Any], told: list[str]) -> Any:
    parameters = inspect.signature(original).parameters

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = set(list(parameters)[1 : len(args) + 1]) | set(kwargs)
        for name, parameter in parameters.items():
            if name in config and name not in given and parameter.default is not inspect.Parameter.empty:
                value = tuple(config[name]) if isinstance(config[name], list) else config[name]
                if value != parameter.default:
                    kwargs[name] = value
                    told.append(name)
        original(self, *args, **kwargs)

    return __init__
