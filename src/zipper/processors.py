"""Processors of the machine."""

import os


def cores() -> int:
    """Cores that this process may use: those of a container's or a cluster's allocation."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
