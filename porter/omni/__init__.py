"""Ports inside the real vLLM-Omni: a plugin that registers them, a CPU platform, the engine side of parity.

Nothing here is edited into vllm_omni: everything is reached through its entry point groups (see ``docs/omni.md``).
Importing this package imports neither torch nor vllm_omni.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache
from importlib import metadata

# The version that the tables in docs/ were made with.
TESTED = "0.30"

logger = logging.getLogger("porter.omni")


class EngineMissing(RuntimeError):
    """vLLM-Omni is not in this environment; the message says how to get it."""


def require_engine() -> str:
    """The installed version of vllm-omni.

    Raises:
        EngineMissing: it, or the vllm that it needs, is not installed.
    """
    for package, module in (("vllm-omni", "vllm_omni"), ("vllm", "vllm")):
        if importlib.util.find_spec(module) is None:
            raise EngineMissing(
                f"{package} is not installed here: make an environment with the extra porter[omni] (`pip install "
                f"'porter[omni]' && pip install --no-deps vllm-omni=={TESTED}.0`; in a checkout `make omni-env`)"
            )
    version = metadata.version("vllm-omni")
    warn_untested(version)
    return version


def start() -> None:
    """Load the engine and its plugins.

    Comes before diffusers and transformers are imported: the engine's platform makes torchvision importable where its
    compiled part is for another torch. The engine logs to stderr from here on: on stdout are results.

    Raises:
        EngineMissing: it is not installed.
    """
    require_engine()
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    from vllm_omni.plugins import load_omni_general_plugins

    load_omni_general_plugins()


@cache
def warn_untested(version: str) -> None:
    """Say once a process that this version of vllm-omni was not tested."""
    if not f"{version}.".startswith(f"{TESTED}."):
        logger.warning(
            "porter was tested with vllm-omni %s, this is %s: run `porter parity NAME --engine vllm-omni` before you "
            "rely on its ports",
            TESTED,
            version,
        )
