"""Handing the command to the real engine: ``vllm serve MODEL --omni`` with porter's plugin."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer

from porter.cli.common import Failure

# The environment that has vllm, vllm-omni and porter: a folder with bin/python.
ENVIRONMENT = "PORTER_OMNI_ENV"
# Options that only porter's own server has.
_OWN = frozenset(
    {"device", "max_queue", "max_body", "max_frames", "max_prompt", "video_dir", "shutdown_seconds", "quiet"}
)


def hand_over(model: str, context: typer.Context) -> NoReturn:
    """Become ``vllm serve``, with the options that were given.

    Raises:
        Failure: there is no vllm with vllm-omni and porter in the environment, or an option that it has no name for.
    """
    arguments = [*given_options(context), *context.args]
    # By its module: the script `vllm` names an interpreter that may have moved.
    command = [str(find_python()), "-m", "vllm.entrypoints.cli.main", "serve", model, "--omni", *arguments]
    models_dir = context.params.get("models_dir")
    if models_dir is not None:
        os.environ["PORTER_OMNI_MODELS_DIR"] = str(Path(models_dir).resolve())
    sys.stdout.flush()
    os.execv(command[0], command)


def given_options(context: typer.Context) -> list[str]:
    """The options that the command line had, as ``vllm serve`` spells them.

    Raises:
        Failure: an option that it does not have.
    """
    found: list[str] = []
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        source = context.get_parameter_source(name)
        if source is None or source.name == "DEFAULT" or name in ("model", "engine", "models_dir"):
            continue
        option = next((item for item in parameter.opts if item.startswith("--")), name)
        if name in _OWN:
            raise Failure(f"{option} is an option of porter's own server; leave it out with --engine vllm-omni")
        values: Sequence[object] = value if isinstance(value, list | tuple) else [value]
        found += [option, *map(str, values)]
    return found


def find_python() -> Path:
    """The interpreter of the environment that has vllm, vllm-omni and porter.

    Looked for in ``PORTER_OMNI_ENV``; else in this environment, in ``.venv-omni`` here, and where ``vllm`` is found.

    Raises:
        Failure: there is none.
    """
    asked = os.environ.get(ENVIRONMENT)
    folders = [Path(asked)] if asked else [Path(sys.prefix), Path(".venv-omni")]
    if not asked and (on_path := shutil.which("vllm")):
        folders.append(Path(on_path).resolve().parent.parent)
    with_engine = [folder for folder in folders if _has(folder, "vllm") and _has(folder, "vllm_omni")]
    if not with_engine:
        where = f"in {asked} ({ENVIRONMENT})" if asked else "in this environment, in .venv-omni, or on the path"
        raise Failure(
            f"--engine vllm-omni: no vllm with vllm-omni {where}. Make one (`make omni-env` in a checkout, or "
            f"docs/omni.md), and name its folder in {ENVIRONMENT}"
        )
    folder = with_engine[0]
    if not _has(folder, "porter-*.dist-info"):
        raise Failure(f"--engine vllm-omni: porter, whose plugin makes ports models of the engine, is not in {folder}")
    return folder.absolute() / "bin" / "python"


def _has(folder: Path, package: str) -> bool:
    return any(folder.glob(f"lib/python3.*/site-packages/{package}"))
