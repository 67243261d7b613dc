"""Leases: one holder at a time, taken over from the dead, and no clocks but one's own."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from netkin.errors import StoreError
from netkin.store import inventory
from netkin.store import lease as leases
from netkin.store.lease import holders, is_held, lease, sweep


@pytest.fixture
def product(tmp_path: Path) -> Path:
    return tmp_path / "digits" / "full" / "00000.safetensors"


def dead_process() -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process


def abandon(root: Path, product: Path, **changes: object) -> Path:
    """The lease of a process that was killed, or of one elsewhere, by `changes` of its holder."""
    with lease(root, product) as held:
        assert held
        file = leases._newest(root, product)
        assert file is not None
        content = file.read_text()
    file.write_text(json.dumps({**json.loads(content), "pid": dead_process().pid, **changes}))
    return file


def test_one_holder_at_a_time(tmp_path: Path, product: Path) -> None:
    with lease(tmp_path, product) as held:
        assert held and is_held(tmp_path, product)
        with lease(tmp_path, product) as second:
            assert not second
        with lease(tmp_path, product.with_name("00001.safetensors")) as other:
            assert other
        ((holder, lives, _),) = holders(tmp_path)
        assert holder is not None and lives and holder.pid == os.getpid()
        assert holder.product == "digits/full/00000.safetensors"
    assert not is_held(tmp_path, product)
    assert not list((tmp_path / ".leases").iterdir())


def test_an_error_gives_it_up(tmp_path: Path, product: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lease(tmp_path, product):
        raise KeyboardInterrupt
    assert not is_held(tmp_path, product)


def test_many_threads_one_winner(tmp_path: Path, product: Path) -> None:
    """All at once, over a dead holder's lease: one takes it over."""
    abandon(tmp_path, product)
    won, ready, done = [], threading.Barrier(8), threading.Barrier(8)

    def contend() -> None:
        ready.wait()
        with lease(tmp_path, product) as held:
            won.append(held)
            done.wait()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]
    assert not list((tmp_path / ".leases").iterdir())


def test_of_a_dead_process_here_it_is_taken_over_at_once(tmp_path: Path, product: Path) -> None:
    file = abandon(tmp_path, product)
    with lease(tmp_path, product) as held:
        assert held
        assert sorted(p.suffix for p in file.parent.iterdir()) == [".0", ".1"]
    assert not list(file.parent.iterdir())


def test_a_recycled_pid_is_another_process(tmp_path: Path, product: Path) -> None:
    abandon(tmp_path, product, pid=os.getpid(), started=time.time() - 1e6)
    assert not is_held(tmp_path, product)


def test_of_a_process_elsewhere_it_is_watched(
    tmp_path: Path, product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks do not matter: an hour behind, a lease is live as long as it is touched."""
    file = abandon(tmp_path, product, machine="another")
    now = 1000.0
    monkeypatch.setattr(leases.time, "monotonic", lambda: now)
    for beat in range(5):
        os.utime(file, (beat, beat))  # in 1970
        now += leases.STALE - 1
        assert is_held(tmp_path, product)
    now += 2
    with lease(tmp_path, product) as held:
        assert not held  # the last beat has been seen only just before
    now += leases.STALE
    with lease(tmp_path, product) as held:
        assert held


def test_a_holder_beats(tmp_path: Path, product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.02)
    monkeypatch.setattr(leases, "_beater", None)
    with lease(tmp_path, product):
        (file,) = (tmp_path / ".leases").iterdir()
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 5
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0


def test_a_lease_half_written_is_respected_for_a_while(
    tmp_path: Path, product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = abandon(tmp_path, product)
    file.write_text("")
    now = 1000.0
    monkeypatch.setattr(leases.time, "monotonic", lambda: now)
    assert is_held(tmp_path, product)
    now += leases.STALE + 1
    assert not is_held(tmp_path, product)


def test_sweeping_removes_what_the_dead_left(tmp_path: Path, product: Path) -> None:
    file = abandon(tmp_path, product)
    holder = json.loads(file.read_text())
    token = leases.Holder(**holder).token
    product.parent.mkdir(parents=True)
    half = product.with_name(f".{product.name}.{token}-abcd.tmp")
    others = product.with_name(f".{product.name}.{leases.me().token}-abcd.tmp")
    half.touch()
    others.touch()
    elsewhere = abandon(tmp_path, product.with_name("1.safetensors"), machine="another")
    sweep(tmp_path)
    assert not file.exists() and not half.exists()
    assert others.exists() and elsewhere.exists()


def test_a_store_that_is_full(tmp_path: Path, product: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(leases.json, "dumps", full)
    with pytest.raises(StoreError, match=r"No space left.*make room"), lease(tmp_path, product):
        raise AssertionError
    assert not list((tmp_path / ".leases").iterdir())


def test_a_process_that_was_last_seen_long_ago(tmp_path: Path, product: Path) -> None:
    """On another machine: it is no longer listed, and its lease can be removed."""
    fresh = abandon(tmp_path, tmp_path / "digits" / "other", machine="another", host="node7")
    lost = abandon(tmp_path, product, machine="another", host="node7")
    seen = time.time() - 3 * 86400
    os.utime(lost, (seen, seen))
    assert [product for _, product in inventory.at_work(tmp_path)] == [tmp_path / "digits/other"]
    assert inventory.leftovers(tmp_path) == [lost]
    assert fresh.exists()
