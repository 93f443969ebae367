"""Names of files, folders and functions of a port, as vLLM-Omni spells them."""

from __future__ import annotations

import re

MODEL_SUFFIX = re.compile(r"(Transformer(1D|2D|3D)?|1D|2D|3D)*(Model)?$")
# "Image to video" and its kin, set apart however the letters around them are written.
MODALITIES = re.compile(r"(TI|T|I|V|A)2(VA|V|I|A)(?![a-z])")
# Last words of a model's name that say what it is, not which one; dropped where diffusers' folder has no such word.
KINDS = ("_dit", "_video")


def snake(name: str) -> str:
    """``QwenImageEdit`` to ``qwen_image_edit``, ``SD3`` to ``sd3``, ``WanVACE`` to ``wan_vace``."""
    for spelling in ("DiT", "ControlNet", "Img2Img", "Emb2Emb"):
        name = name.replace(spelling, spelling.capitalize())
    name = MODALITIES.sub(lambda found: f"_{found[0].lower()}_", name).strip("_").replace("__", "_")
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()


def model_stem(class_name: str) -> str:
    """``QwenImageTransformer2DModel`` to ``qwen_image``, ``Transformer2DModel`` to ``transformer_2d``."""
    stem = MODEL_SUFFIX.sub("", class_name)
    return snake(stem) if stem else re.sub(r"(\dd)$", r"_\1", class_name.removesuffix("Model").lower())


def pipeline_stem(class_name: str, family: str = "") -> str:
    """``QwenImageEditPipeline`` to ``qwen_image_edit``; words of the family are spelled as the family's folder."""
    return _spelled(snake(class_name.removesuffix("Pipeline")), family)


def transformer_stem(class_name: str, family: str, models: list[str]) -> str:
    """The file stem of a denoiser, without ``_transformer``: ``stable_audio`` in the family of that name.

    Args:
        class_name: ``StableAudioDiTModel``.
        family: the family's folder.
        models: names of the denoiser classes of all pipelines in diffusers' folder.
    """
    stem = _spelled(model_stem(class_name), family)
    taken = any(model_stem(name) == family for name in models)
    return family if not taken and stem in [family + kind for kind in KINDS] else stem


def controlnet_stem(class_name: str, family: str, models: list[str]) -> str:
    """The file stem of a controlnet, after that of the denoiser it belongs to: ``hunyuan_dit_controlnet``."""
    return f"{transformer_stem(class_name.replace('ControlNet', ''), family, models)}_controlnet"


def _spelled(stem: str, family: str) -> str:
    """``stem`` with its first words broken as in ``family``: ``hidream_image`` rather than ``hi_dream_image``."""
    letters = iter(family.replace("_", ""))
    expected = next(letters, None)
    for position, character in enumerate(stem):
        if expected is None:
            return family + stem[position:] if character == "_" else stem
        if character == expected:
            expected = next(letters, None)
        elif character != "_":
            return stem
    return family if family and expected is None else stem


def family(folder: str, own: list[str], models: list[str]) -> str:
    """The family folder of a pipeline in diffusers' ``pipelines/<folder>``.

    The shortest stem among the folder's denoisers that the pipeline's own denoiser extends names the family
    (``wan`` for ``wan_vace``), unless the folder's name spells the same words with better breaks. A last word that
    says what the denoiser is (``stable_audio_dit``) does not count where the folder does without.

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
    for kind in ("", *KINDS):
        short = stem.removesuffix(kind)
        if short.replace("_", "") == folder.replace("_", ""):
            return folder if "_" in folder else short
    return stem
