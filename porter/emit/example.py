"""The example script of a port."""

from __future__ import annotations

import re

import porter
from porter.emit.hooks import MEDIA
from porter.emit.templates import fill
from porter.facts.pipeline import PipelineFacts
from porter.rules.pipeline.postprocess import PostProcess
from porter.source import SourceTree
from porter.source.tree import PACKAGE
from porter.targets import Target

# Parameters that an example offers where the pipeline has them, with their types, in this order.
COMMON = {
    "height": "int",
    "width": "int",
    "num_frames": "int",
    "num_inference_steps": "int",
    "guidance_scale": "float",
    "guidance_scale_2": "float",
    "true_cfg_scale": "float",
    "strength": "float",
    "num_outputs_per_prompt": "int",
}
PROMPTS = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3")
OUTPUTS = {"image": "output.png", "video": "output.mp4", "audio": "output.wav"}
PER_PROMPT = re.compile(r"num_[a-z]+_per_prompt")
IMPORT = re.compile(r"^(from )(vllm(?:_omni)?[\w.]*)( import )", re.MULTILINE)


def example_text(stem: str, facts: PipelineFacts, hook: PostProcess, tree: SourceTree, target: Target) -> str:
    """Text of ``examples/<stem>.py``; the scripts of two targets differ in their imports alone."""
    names = [p.name for p in facts.parameters if p.name not in facts.dropped]
    common = ["num_outputs_per_prompt" if PER_PROMPT.fullmatch(name) else name for name in names]
    source = facts.definition.module
    kind = output_kind(hook)
    text = fill(
        "example.py.j2",
        version=porter.__version__,
        diffusers=tree.version,
        source=f"{PACKAGE}/{source.path.relative_to(tree.root).as_posix()}",
        sha256=source.sha256,
        pipeline=facts.name,
        stem=stem,
        prompts=[name for name in PROMPTS if name in names],
        images=[name for name in names if name.split("_")[-1] in ("image", "images")],
        videos=[name for name in names if name.split("_")[-1] == "video"],
        required=[p.name for p in facts.parameters if p.default is None],
        common={name: type_ for name, type_ in COMMON.items() if name in common},
        seeded="generator" in names,
        kind=kind,
        output=OUTPUTS[kind],
    )
    return IMPORT.sub(lambda found: found[1] + target.module(found[2]) + found[3], text)


def output_kind(hook: PostProcess) -> str:
    """``video`` where the pipeline returns frames, with sound or without; ``audio`` for sound alone; else ``image``."""
    kinds = {MEDIA.get(field) for field, _ in hook.outputs}
    return next((kind for kind in ("video", "audio") if kind in kinds), "image")
