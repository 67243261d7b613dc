"""Freed memory stays in the process while a model runs, and can be returned to the system."""

import json
import platform
import subprocess
import sys

import pytest

from netkin.jobs import process

WORK = """
import json, resource, torch
from netkin.jobs import process
torch.set_num_threads(1)
kept = process.keep_freed({mode})

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [torch.ones(12 * 2**20) for _ in range(4)]  # of 48 MiB
        del blocks
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds

def held():
    with open("/proc/self/status") as status:
        return sum(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

faults(5)
each, full = faults(5), held()
process.release_freed()
print(json.dumps([kept, each, full - held()]))
"""


def measured(mode: str) -> tuple[bool, float, float]:
    """Page faults of a round of 192 MiB, and MiB that are handed back after the last, in a process
    of its own: the allocator's settings are the process's."""
    code = WORK.format(mode=mode)
    return json.loads(subprocess.check_output([sys.executable, "-c", code], timeout=120))


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_what_is_freed_is_used_again_and_handed_back_when_asked() -> None:
    kept, few, handed_back = measured("True")
    assert kept and handed_back > 150
    as_before, many, nothing = measured("False")
    assert as_before and nothing < 50
    assert few < many / 3


@pytest.mark.parametrize("library", [None, object()])
def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    """Windows has no such library, macOS one without these functions."""
    monkeypatch.setattr(process, "_libc", lambda: library)
    assert not process.keep_freed() and not process.keep_freed(False)
    process.release_freed()
