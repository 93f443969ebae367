"""Work in forks of this process: what one does to it, crashes and endless waits included, costs the fork only."""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import signal
from collections.abc import Callable
from typing import Any

FORK = multiprocessing.get_context("fork")


class Stopped(RuntimeError):
    """A fork did not say how it went: it took too long, or ended."""


def preload() -> None:
    """Import what every pipeline needs, so that forks have it."""
    for module in ("diffusers", "transformers", "vllm_omni.diffusion.diffusion_engine", "vllm_omni.diffusion.registry"):
        importlib.import_module(module)
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm_omni.platforms import current_omni_platform

    resolve_obj_by_qualname(current_omni_platform.get_diffusion_worker_cls())


def in_fork(work: Callable[[], Any], seconds: float, memory: int | None = None, cpu: int | None = None) -> Any:
    """What ``work`` returns, run in a fork.

    Args:
        work: what to run; what it returns is sent back.
        seconds: how long it may take.
        memory: bytes of address space that the fork may take; None: as many as there are.
        cpu: seconds of computing that the fork may take; None: no limit.

    Raises:
        Stopped: the fork took longer, or ended without an answer (too little memory may end it so).
        Exception: what ``work`` raised, as a RuntimeError that has its class in its text.
    """
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_run, args=(sender, work, memory, cpu))
    child.start()
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(seconds) else None
    except EOFError:
        child.join()
        if child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL) and cpu is not None:
            raise Stopped(f"no end within {cpu} s of computing") from None
        raise Stopped(f"the process ended with exit code {child.exitcode}") from None
    finally:
        child.kill()  # it has said all, or never will
        child.join()
    if answer is None:
        raise Stopped(f"no end within {seconds:g} s")
    result, error = answer
    if error:
        raise RuntimeError(error)
    return result


def _run(sender: Any, work: Callable[[], Any], memory: int | None, cpu: int | None) -> None:
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if cpu is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    try:
        answer = (work(), "")
    except Exception as error:  # noqa: BLE001 - what goes wrong is sent
        answer = (None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    sender.send(answer)
