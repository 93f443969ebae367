"""Names of files, folders and functions of a port, as vLLM-Omni spells them."""

from __future__ import annotations

import re

MODEL_SUFFIX = re.compile(r"(Transformer(1D|2D|3D)?|1D|2D|3D)*(Model)?$")


def snake(name: str) -> str:
    """``QwenImageEdit`` to ``qwen_image_edit``, ``SD3`` to ``sd3``, ``WanVACE`` to ``wan_vace``."""
    for spelling in ("DiT", "ControlNet", "Img2Img", "Emb2Emb"):
        name = name.replace(spelling, spelling.capitalize())
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()


def model_stem(class_name: str) -> str:
    """``QwenImageTransformer2DModel`` to ``qwen_image``."""
    stem = MODEL_SUFFIX.sub("", class_name)
    return snake(stem or class_name)


def pipeline_stem(class_name: str) -> str:
    """``QwenImageEditPipeline`` to ``qwen_image_edit``."""
    return snake(class_name.removesuffix("Pipeline"))


def family(folder: str, own: list[str], models: list[str]) -> str:
    """The family folder of a pipeline in diffusers' ``pipelines/<folder>``.

    The shortest stem among the folder's denoisers that the pipeline's own denoiser extends names the family
    (``wan`` for ``wan_vace``), unless the folder's name spells the same words with better breaks.

    Args:
        folder: diffusers' folder name.
        own: names of the pipeline's denoiser classes; without any, the folder names the family.
        models: names of the denoiser classes of all pipelines in the folder.
    """
    if not own:
        return folder
    mine = model_stem(own[0])
    stems = [s for s in {mine, *(model_stem(name) for name in models)} if mine == s or mine.startswith(s + "_")]
    stem = min(stems, key=lambda s: (len(s), s))
    if "_" in folder and folder.replace("_", "") == stem.replace("_", ""):
        return folder
    return stem
