"""Work in a fork of this process, beside what it goes on with itself."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from porter.cores import cores

T = TypeVar("T")

LOST = "a process of the comparison ended without an answer: was it killed?"


class Beside(Generic[T]):
    """Runs ``work`` in a fork if another core can do so, else when its result is asked for.

    Whatever ``work`` changes, it changes in the fork: what it needs must be in memory on a CPU, and only what it
    returns comes back.

    Args:
        work: what to run; its result is pickled.
        apart: whether a fork may be made at all.
    """

    def __init__(self, work: Callable[[], T], apart: bool = True) -> None:
        self._work, self._receiver, self._child = work, None, None
        if apart and cores() > 1 and "fork" in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context("fork")
            self._receiver, sender = context.Pipe(duplex=False)
            self._child = context.Process(target=_send, args=(sender, work), daemon=True)
            self._child.start()
            sender.close()

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._child is not None:
            self._child.kill()  # it has said all, or nobody asks any more
            self._child.join()

    def result(self) -> T:
        """What the work returned; waits for it.

        Raises:
            RuntimeError: the fork failed, or ended without an answer.
            Exception: what the work raised, if it was not in a fork.
        """
        if self._receiver is None:
            return self._work()
        try:
            answer, error = self._receiver.recv()
        except EOFError:
            raise RuntimeError(LOST) from None
        if error:
            raise RuntimeError(error)
        found: T = answer
        return found


def _send(sender: Any, work: Callable[[], Any]) -> None:
    try:
        answer = (work(), "")
    except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
        answer = (None, f"{type(error).__name__}: {error}")
    sender.send(answer)
