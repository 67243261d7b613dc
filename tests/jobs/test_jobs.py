"""Work in this process and in others: results, progress, errors, a killed worker, memory."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from netkin.errors import Stopped, StoreError, UserError
from netkin.jobs import pool as jobs_module
from netkin.jobs.pool import Advance, Jobs, Processes, Result, keep_freed, release_freed
from netkin.jobs.progress import Bars
from netkin.jobs.signals import OTHERS
from netkin.store.lease import is_held, lease, sweep


@dataclass(frozen=True)
class Item:
    name: str
    number: int


class Log(Bars):
    """A display that keeps its calls."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.calls: list[tuple] = []
        for name in ("start", "advance", "finish", "wait", "end"):
            setattr(self, name, lambda *given, name=name: self.calls.append((name, *given)))


@dataclass(frozen=True, kw_only=True)
class Product(Result):
    value: int
    threads: int
    pid: int


def times(context: int, item: Item, advance: Advance) -> Product:
    for _ in range(item.number):
        advance(1)
    return Product(value=context * item.number, threads=torch.get_num_threads(), pid=os.getpid())


def total(context: torch.Tensor, item: Item, advance: Advance) -> Product:
    return Product(value=int(context.sum()), threads=1, pid=os.getpid())


def die(context: int, item: Item, advance: Advance) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


ITEMS = [Item("a", 1), Item("b", 2), Item("c", 3)]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_results_and_progress(workers: int) -> None:
    log = Log()
    with Jobs(10, Processes(workers), log) as jobs:
        found = {item.name: result for item, result in jobs.run("stage", times, ITEMS, units=6)}
        again = list(jobs.run("second", times, ITEMS[:1], units=1))
    assert {name: result.value for name, result in found.items()} == {"a": 10, "b": 20, "c": 30}
    assert {result.threads for result in found.values()} == {1}
    assert (os.getpid() in {result.pid for result in found.values()}) == (workers == 1)
    assert len(again) == 1
    assert log.calls[0] == ("start", "stage", ["a", "b", "c"], 6)
    assert log.calls.count(("advance", "stage", 1)) == 6
    assert ("end", "stage") in log.calls and ("end", "second") in log.calls


@pytest.mark.slow
def test_a_killed_worker_is_one_clear_error() -> None:
    with (
        pytest.raises(UserError, match="a worker process died during stage"),
        Jobs(None, Processes(2), Log()) as jobs,
    ):
        list(jobs.run("stage", die, ITEMS, 1))


def taken_once(context: str, item: Item, advance: Advance) -> Result:
    """Another process has taken the item, until it is tried for the second time."""
    tried = Path(context) / item.name
    if tried.exists() or item.name == "c":
        return Result(shards=item.number)
    tried.touch()
    return Result(remaining=item)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_what_others_have_taken_is_tried_again_after_the_rest(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "PATIENCE", 0.05)
    log = Log()
    with Jobs(str(tmp_path), Processes(workers), log) as jobs:
        found = [result for _, result in jobs.run("stage", taken_once, ITEMS, 3)]
    assert sorted(r.shards for r in found if r.remaining is None) == [1, 2, 3]
    assert sorted(call[2] for call in log.calls if call[0] == "wait") == ["a", "b"]
    assert sorted(call[2] for call in log.calls if call[0] == "finish") == ["a", "b", "c"]


def wrong_a(context: type[Exception], item: Item, advance: Advance) -> Result:
    if item.name == "a":
        raise context("a is wrong")
    return Result()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_of_its_item_unless_it_is_the_stores_or_nobody_takes_it(workers: int) -> None:
    failed: list[tuple[str, str]] = []
    with Jobs(RuntimeError, Processes(workers), Log()) as jobs:
        run = jobs.run(
            "stage", wrong_a, ITEMS, 3, lambda item, e: failed.append((item.name, str(e)))
        )
        assert sorted(item.name for item, _ in run) == ["b", "c"]
    assert failed == [("a", "a is wrong")]
    for error, takes in ((StoreError, lambda *_: None), (UserError, None)):
        with (
            pytest.raises(error, match=r"^a is wrong$"),
            Jobs(error, Processes(workers), Log()) as jobs,
        ):
            list(jobs.run("stage", wrong_a, ITEMS, 3, takes))


def hold(context: str, item: Item, advance: Advance) -> Result:
    """An item keeps a lease whatever signal comes; the other ends once it is held."""
    root = Path(context)
    if item.name == "b":
        while not is_held(root, root / "a"):
            time.sleep(0.01)
        return Result()
    with lease(root, root / "a"):
        while True:
            try:
                time.sleep(60)
            except Stopped:
                continue


@pytest.mark.slow
def test_what_a_killed_worker_held_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "GRACE", 0.1)
    given_up = partial(sweep, tmp_path)
    with (
        pytest.raises(Stopped),
        Jobs(str(tmp_path), Processes(2), Log(), stopped=given_up) as jobs,
    ):
        for _ in jobs.run("stage", hold, ITEMS[:2], 2):
            raise Stopped(130)
    assert not list((tmp_path / ".leases").iterdir())


@pytest.mark.slow
def test_arrays_that_share_memory_with_the_context_keep_it() -> None:
    """Moving a tensor to another process would free the memory that its NumPy view reads."""
    context = torch.arange(1000)
    view = context.numpy()
    address = context.data_ptr()
    with Jobs(context, Processes(2), Log()) as pool:
        results = [result.value for _, result in pool.run("add", total, ITEMS, 3)]
    assert results == [499500] * 3
    assert context.data_ptr() == address == view.ctypes.data
    assert view.sum() == 499500


def blocked(context: Any, item: Item, advance: Advance) -> Product:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return Product(value=int(mask >= OTHERS), threads=0, pid=os.getpid())


def test_workers_never_see_what_a_terminal_sends() -> None:
    """Blocked from their start, not from the end of their imports."""
    with Jobs(None, Processes(2), Log()) as jobs:
        results = list(jobs.run("blocked", blocked, [Item("a", 0), Item("b", 1)], 2))
    assert [product.value for _, product in results] == [1, 1]
    assert not OTHERS & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def swallows(context: Any, item: Item, advance: Advance) -> Product:
    with suppress(BaseException):  # as a library may
        Stopped.requested = 130
        raise Stopped(130)
    advance(1)
    raise AssertionError("went on")


def test_a_stop_that_a_library_swallowed_stops_all_the_same() -> None:
    try:
        with pytest.raises(Stopped), Jobs(None, Processes(1), Log()) as jobs:
            list(jobs.run("swallows", swallows, [Item("a", 0)], 1))
    finally:
        Stopped.requested = 0


WORK = """
import json, resource, torch
from netkin.jobs import pool
torch.set_num_threads(1)
kept = pool.keep_freed({mode})

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
pool.release_freed()
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


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of macOS, which lacks these functions."""
    monkeypatch.setattr(jobs_module, "LIBC", object())
    assert not keep_freed() and not keep_freed(False)
    release_freed()
