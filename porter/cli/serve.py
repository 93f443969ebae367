"""``porter serve``"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from porter.cli.common import Failure, ModelsDir, Quiet, bad_input, check_dtype, hush_libraries
from porter.cli.model_options import (
    AttentionBackend,
    BoundaryRatio,
    CallKwargs,
    Device,
    Dtype,
    FlowShift,
    LoadFormat,
    LoadKwargs,
    ModelClass,
    Revision,
    settings,
    silence_pipeline,
)
from porter.cli.native_port import ports_for

API_KEY = "PORTER_API_KEY"
Model = Annotated[str, typer.Argument(metavar="MODEL", help="a checkpoint folder, or a hub id")]
Engine = Annotated[
    str, typer.Option("--engine", metavar="porter|vllm-omni", help="vllm-omni: hand the command to `vllm serve --omni`")
]
Names = Annotated[
    list[str] | None, typer.Option("--served-model-name", metavar="NAME", help="what requests call the model")
]
Keys = Annotated[
    list[str] | None, typer.Option("--api-key", help=f"needed in requests; better in the environment: {API_KEY}")
]
Domains = Annotated[
    list[str] | None,
    typer.Option("--allowed-media-domains", metavar="HOST", help="fetch pictures from these hosts only, any"),
]
Pixels = Annotated[
    int, typer.Option("--max-generated-image-size", min=1, metavar="PIXELS", help="of a picture or a frame")
]

# Options of vllm that mean more than one process here; the message of the port says the same later and less clearly.
DISTRIBUTED = (
    "--tensor-parallel-size",
    "-tp",
    "--cfg-parallel-size",
    "--ulysses-degree",
    "--usp",
    "--ring",
    "--ring-degree",
    "--pipeline-parallel-size",
    "--data-parallel-size",
    "--vae-patch-parallel-size",
    "--use-hsdp",
    "--cache-backend",
    "--num-gpus",
)


def serve(
    context: typer.Context,
    model: Model,
    engine: Engine = "porter",
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    names: Names = None,
    api_key: Keys = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", min=1, help="requests side by side, step by step")] = 8,
    max_queue: Annotated[int, typer.Option("--max-queue", min=0, help="requests that wait; more get status 429")] = 64,
    max_body: Annotated[int, typer.Option("--max-body-mb", min=1, help="size of a request's body")] = 64,
    max_pixels: Pixels = 4096 * 4096,
    max_frames: Annotated[int, typer.Option("--max-num-frames", min=1, help="of a video")] = 1024,
    max_prompt: Annotated[int, typer.Option("--max-prompt-length", min=1, help="characters")] = 32_000,
    domains: Domains = None,
    local_path: Annotated[
        Path | None, typer.Option("--allowed-local-media-path", metavar="DIR", help="let file: URLs into this folder")
    ] = None,
    video_dir: Annotated[
        Path | None, typer.Option("--video-dir", metavar="DIR", help="keep videos here; a temporary folder")
    ] = None,
    shutdown_seconds: Annotated[
        float,
        typer.Option("--shutdown-timeout", min=0, metavar="SECONDS", help="to finish what runs at the end"),
    ] = 30.0,
    models_dir: ModelsDir = None,
    device: Device = None,
    dtype: Dtype = None,
    load_format: LoadFormat = "default",
    load_kwargs: LoadKwargs = None,
    call_kwargs: CallKwargs = None,
    attention_backend: AttentionBackend = None,
    boundary_ratio: BoundaryRatio = None,
    flow_shift: FlowShift = None,
    model_class: ModelClass = None,
    revision: Revision = None,
    quiet: Quiet = False,
) -> None:
    """Serve a port, or diffusers itself, with the endpoints of OpenAI and vLLM-Omni."""
    if engine == "vllm-omni":
        from porter.serve.omni_exec import hand_over

        hand_over(model, context)
    if engine != "porter":
        raise Failure(f"--engine {engine}: there are porter, vllm-omni")
    _refuse_rest(context.args)
    check_dtype(dtype)
    given = settings(load_format, load_kwargs, call_kwargs, attention_backend, boundary_ratio, flow_shift)
    if local_path is not None and not local_path.is_dir():
        raise Failure(f"--allowed-local-media-path {local_path}: no such folder")
    keys = [*(api_key or []), *filter(None, os.environ.get(API_KEY, "").split(","))]
    if not quiet:  # what a server chose and why belongs on its console
        os.environ.setdefault("PORTER_LOG_LEVEL", "INFO")
    # Importing torch takes seconds; what is wrong with the arguments is said before.
    omni, app, limits = _load(
        dict(
            model=model,
            models_dir=ports_for(model, models_dir, load_format, model_class, revision, quiet),
            device=device,
            dtype=dtype,
            model_class_name=model_class,
            revision=revision,
            **given,
        ),
        dict(
            model_names=tuple(names or [model]),
            api_keys=tuple(keys),
            max_num_seqs=max_num_seqs,
            max_queue=max_queue,
            max_body_bytes=max_body * 2**20,
            max_generated_image_size=max_pixels,
            max_num_frames=max_frames,
            max_prompt_length=max_prompt,
            allowed_media_domains=frozenset(domains) if domains else None,
            allowed_local_media_path=local_path,
            video_dir=video_dir,
            shutdown_seconds=shutdown_seconds,
        ),
    )
    from porter.serve.server import make_server

    if not quiet:
        how = "step by step" if app.state.context.engine.is_stepwise else "one request after the other"
        print(f"{omni.name} ({omni.od_config.diffusion_load_format}, {how}) on http://{host}:{port}", flush=True)
    server = make_server(app, limits, host, port, quiet)
    server.run()
    if not server.started:
        raise Failure(f"--port {port}: the server could not start")


def _load(model: dict[str, Any], limits: dict[str, Any]) -> tuple[Any, Any, Any]:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise Failure(f"serving needs {error.name}: pip install 'porter[serve]'") from error
    from porter.runtime import Omni, PorterRuntimeError
    from porter.serve.app import build_app
    from porter.serve.settings import ServerSettings

    hush_libraries()
    with bad_input(PorterRuntimeError):
        omni = Omni(**model)
    silence_pipeline(omni)
    settings = ServerSettings(**limits)
    return omni, build_app(omni, settings), settings


def _refuse_rest(arguments: list[str]) -> None:
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in DISTRIBUTED:
            raise Failure(f"{name}: this engine has one process and no caches; --engine vllm-omni has both")
        raise Failure(f"{name}: no such option (options of vllm serve need --engine vllm-omni)")
