"""The device that models run on, and the time that work takes there."""

import time
from collections.abc import Callable

import torch


def device_of(accelerator: str) -> torch.device:
    """The device behind Lightning's name of an accelerator: "auto" takes a GPU where there is one.

    A process sees one GPU at most as its own: see `netkin.jobs.pool`.
    """
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, until the device has finished what it was given."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def fastest(
    work: Callable[[], object], device: torch.device, enough: float = float("inf"), runs: int = 3
) -> float:
    """Seconds of the fastest of up to `runs` calls, fewer once they add up to `enough` seconds."""
    taken: list[float] = []
    while len(taken) < runs and sum(taken) < enough:
        taken.append(seconds_of(work, device))
    return min(taken)
