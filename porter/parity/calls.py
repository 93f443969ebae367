"""All calls that reference and port are compared in."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from porter.parity.areas import small_areas
from porter.parity.argument_cases import argument_cases, latents_case
from porter.parity.bounds import bound_cases
from porter.parity.cases import Case, build_cases
from porter.parity.embeddings import embeddings_case
from porter.parity.hard_cases import hard_cases
from porter.parity.sides import Reference
from porter.parity.spec import Spec

_SCALES = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")


def all_calls(
    reference: Reference,
    spec: Spec,
    tensors: dict[str, torch.Tensor],
    extra: Sequence[Case] = (),
    dropped: Collection[str] = (),
) -> list[Case]:
    """The cases of a pipeline: from its signature, from its spec, from what the reference computes, and ``extra``.

    The last one repeats the first.

    Args:
        reference: diffusers; it is run up to its first prediction, and left as it was.
        spec: of the pipeline.
        tensors: what recipes name; those of the cases are added.
        extra: cases besides.
        dropped: arguments that the port does not take, by its own account.
    """
    call = type(reference.pipeline).__call__
    own = [Case(**case) for case in spec.cases]
    with small_areas(reference.pipeline):
        embeddings = embeddings_case(reference, spec.inputs, tensors)
        latents = latents_case(reference, spec.inputs, tensors)
    own += [case for case in (embeddings, latents) if case is not None]
    own += argument_cases(call, spec.inputs, dropped)
    own += hard_cases(call, spec.inputs, embeddings, tensors, _patch(reference))
    own += [case for case in bound_cases(reference.pipeline, spec.inputs) if not set(dropped) & set(case.changes)]
    cases = build_cases(call, spec.inputs, default_size(reference), [*own, *extra])
    return [*cases, Case(name="plain again", again=True)]


def default_size(reference: Reference) -> tuple[int, int] | None:
    """The size of an output when the call gives none: what the denoiser was made for, times the VAE's factor."""
    pipeline = reference.pipeline
    scale = getattr(pipeline, "vae_scale_factor", None)
    for name in ("unet", "transformer", "prior"):
        config = getattr(getattr(pipeline, name, None), "config", None)
        sample = getattr(config, "sample_size", None)
        if isinstance(sample, int) and isinstance(scale, (int, float)):
            return int(sample * scale), int(sample * scale)
    return None


def _patch(reference: Reference) -> int:
    """Pixels a position of the denoiser, along one side."""
    pipeline = reference.pipeline
    found = (getattr(pipeline, name, None) for name in _SCALES)
    scale = next((int(scale) for scale in found if isinstance(scale, (int, float)) and scale >= 1), 8)
    model, codec = (getattr(getattr(pipeline, name, None), "config", {}) for name in ("transformer", "vae"))
    size = model.get("patch_size") or model.get("all_patch_size") or 1
    size = size[-1] if isinstance(size, (list, tuple)) else size
    latents = codec.get("latent_channels") or codec.get("z_dim") or 0
    packed = 2 if isinstance(latents, int) and model.get("in_channels") == 4 * latents else 1
    return scale * size * packed
