"""How many cores this process may use."""

import os


def cores() -> int:
    """Cores that the scheduler gives this process, where it says so; else those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
