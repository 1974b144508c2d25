"""What a process minds: its memory (its time and its driver's end: test_runner.py and chaos/)."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest

from batchser import processes
from batchser.processes import memory_limit_bytes, obey_driver

LIMIT = 600 * 2**20


def eat(megabytes: int) -> int:
    """Take so much memory, 16 MB at a time; returns what this process weighs then."""
    eaten = []
    for _ in range(0, megabytes, 16):
        eaten.append(b"x" * 2**24)
        time.sleep(0.005)
    return psutil.Process().memory_info().rss


def test_a_process_ends_before_it_weighs_too_much() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), obey_driver, (LIMIT,)) as pool:
        assert 100 * 2**20 < pool.submit(eat, 100).result() < LIMIT
        with pytest.raises(BrokenProcessPool):
            pool.submit(eat, 3000).result()


def test_processes_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available_memory_bytes", lambda: 12 * 2**30)
    assert [memory_limit_bytes(count) // 2**30 for count in (1, 2, 3, 4, 6)] == [4, 4, 4, 3, 2]
