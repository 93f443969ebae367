"""Names of files, folders and functions of a port, as vLLM-Omni spells them."""

from __future__ import annotations

import re

MODEL_SUFFIX = re.compile(r"(Transformer(1D|2D|3D)?|DiT|1D|2D|3D)*(Model)?$")


def snake(name: str) -> str:
    """``QwenImageEdit`` to ``qwen_image_edit``, ``SD3`` to ``sd3``, ``WanVACE`` to ``wan_vace``."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()


def model_stem(class_name: str) -> str:
    """``QwenImageTransformer2DModel`` to ``qwen_image``."""
    stem = MODEL_SUFFIX.sub("", class_name)
    return snake(stem or class_name)


def pipeline_stem(class_name: str) -> str:
    """``QwenImageEditPipeline`` to ``qwen_image_edit``."""
    return snake(class_name.removesuffix("Pipeline"))


def family(folder: str, models: list[str]) -> str:
    """The family folder of the pipelines in diffusers' ``pipelines/<folder>``.

    The shortest stem of their denoisers names it, unless the folder spells the same words with better breaks.

    Args:
        folder: diffusers' folder name.
        models: names of the denoiser classes that the folder's pipelines take.
    """
    stems = sorted({model_stem(name) for name in models}, key=lambda s: (len(s), s))
    if not stems:
        return folder
    stem = stems[0]
    if "_" in folder and folder.replace("_", "") == stem.replace("_", ""):
        return folder
    return stem
