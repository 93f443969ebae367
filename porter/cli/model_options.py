"""Options that say which model runs and how: shared by the commands that load one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from porter.cli.common import Failure

if TYPE_CHECKING:
    from porter.runtime import Omni

Device = Annotated[str | None, typer.Option("--device", help="the accelerator if there is one, else cpu")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="bfloat16 on an accelerator, float32 on the CPU")]
LoadFormat = Annotated[
    str,
    typer.Option("--diffusion-load-format", metavar="default|diffusers", help="the native port, or diffusers itself"),
]
LoadKwargs = Annotated[
    str | None, typer.Option("--diffusers-load-kwargs", metavar="JSON", help="for diffusers' from_pretrained")
]
CallKwargs = Annotated[
    str | None,
    typer.Option("--diffusers-call-kwargs", metavar="JSON", help="for diffusers' calls, where a request is silent"),
]
AttentionBackend = Annotated[
    str | None,
    typer.Option("--diffusion-attention-backend", metavar="NAME", help="FLASH_ATTN, SAGE_ATTN, TORCH_SDPA or auto"),
]
BoundaryRatio = Annotated[
    float | None, typer.Option("--boundary-ratio", min=0, max=1, help="of Wan: where the second transformer takes over")
]
FlowShift = Annotated[float | None, typer.Option("--flow-shift", help="of Wan: shift of the scheduler's timesteps")]
ModelClass = Annotated[
    str | None, typer.Option("--model-class-name", metavar="CLASS", help="if not the one that the checkpoint names")
]
Revision = Annotated[str | None, typer.Option("--revision", help="of a hub model")]


def json_object(option: str, text: str | None) -> dict[str, Any] | None:
    """The object that an option holds as JSON; None if it was not given."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise Failure(f"{option}: {text!r} is not JSON ({error.msg})") from error
    if not isinstance(value, dict):
        raise Failure(f'{option}: write a JSON object, {{"name": value}}')
    return value


def settings(
    load_format: str,
    load_kwargs: str | None,
    call_kwargs: str | None,
    attention_backend: str | None,
    boundary_ratio: float | None,
    flow_shift: float | None,
) -> dict[str, Any]:
    """Keyword arguments of ``Omni``; those that were not given are left out."""
    given = {
        "diffusers_load_kwargs": json_object("--diffusers-load-kwargs", load_kwargs),
        "diffusers_call_kwargs": json_object("--diffusers-call-kwargs", call_kwargs),
        "attention_backend": attention_backend,
        "boundary_ratio": boundary_ratio,
        "flow_shift": flow_shift,
    }
    for option in ("diffusers_load_kwargs", "diffusers_call_kwargs"):
        if given[option] is not None and load_format != "diffusers":
            raise Failure(f"--{option.replace('_', '-')} needs --diffusion-load-format diffusers")
    if load_format not in ("default", "diffusers"):
        raise Failure(f"--diffusion-load-format {load_format}: there are default, diffusers")
    return {"diffusion_load_format": load_format, **{name: item for name, item in given.items() if item is not None}}


def silence_pipeline(omni: Omni) -> None:
    """No progress bars of the pipeline's own."""
    pipeline: Any = getattr(omni.pipeline, "pipeline", omni.pipeline)
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
