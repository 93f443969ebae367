"""How many cores this process may use."""

import os

_sharing = 1


def cores() -> int:
    """Cores for this process: of those that the scheduler gives it, where it says so, else of the machine."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // _sharing)


def share(processes: int) -> None:
    """Say that this many processes like this one run side by side."""
    global _sharing
    _sharing = processes
