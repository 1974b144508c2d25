"""kill -9 at random moments: the driver, its workers. What is finished in the end is what an undisturbed run gives.

A few of each in `make test`, fifty of each in `make chaos`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import call, write
from rows import assert_same_tables

from batchser.bundle import Bundle

NUM_RECORDINGS = 300
#: Both forms of OUT, and where their tables are.
TABLES = {"r.parquet": ("r.parquet", "r.segments.parquet"), "night": ("night/calls", "night/segments")}
WORK = {"r.parquet": "r.parquet.work", "night": "night/_batchser/work"}
SEED = 20261123
_END_S = 30.0


@dataclass(frozen=True)
class Night:
    """A job of some hundred recordings, its undisturbed result, and how long that took."""

    manifest: Path
    model: Path
    undisturbed: Path
    seconds: float

    def start(self, folder: Path, out: str) -> subprocess.Popen[str]:
        """Start the job in a session of its own, by which its processes are found again."""
        batchser = str(Path(sys.executable).with_name("batchser"))
        command = [batchser, "run", str(self.manifest), "--workers", "2", "--quiet", "--model", str(self.model)]
        command += ["--out", str(folder / out), "--json-summary", str(folder / "summary.json")]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def assert_finished(self, folder: Path, out: str) -> int:
        """The result is the undisturbed one, nothing else lies beside it; returns how many recordings were reused."""
        for name in TABLES[out]:
            assert_same_tables(self.undisturbed / name, folder / name, in_any_order=out == "night")
        names = {*TABLES[out], "summary.json"} if out == "r.parquet" else {"night", "summary.json"}
        assert {path.name for path in folder.iterdir()} == names
        assert not list((folder / "night/_batchser/work").glob("*"))
        return int(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["recordings_reused"])


@pytest.fixture(scope="module")
def night(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("night")
    for k in range(6):
        write(folder / f"{k}.wav", call(k, seconds=6.0), call(k + 100, seconds=6.0), subtype="ULAW")
    (folder / "broken.wav").write_bytes(np.random.default_rng(0).bytes(2000))
    lines = ["path,call_id,roles,started_at"]
    for k in range(NUM_RECORDINGS):
        name = "broken.wav" if k % 50 == 7 else f"{k % 6}.wav"
        lines.append(f'{name},c{k},"agent,customer",2026-11-{1 + k % 3:02d}')
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    found = Night(manifest, tiny_bundle.folder or Path(), undisturbed, 0.0)
    for out in TABLES:
        started = time.monotonic()
        process = found.start(undisturbed, out)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 1, errors  # some are broken
    return Night(found.manifest, found.model, undisturbed, time.monotonic() - started)


def processes_of(session: int) -> list[psutil.Process]:
    """All processes that were started from a job, its driver among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it has just ended
        return ""


def assert_nothing_runs(session: int) -> None:
    until = time.monotonic() + _END_S
    while left := processes_of(session):
        assert time.monotonic() < until, [command_of(process) for process in left]
        time.sleep(0.1)


def finish(night: Night, folder: Path, out: str) -> int:
    process = night.start(folder, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert_nothing_runs(process.pid)
    return night.assert_finished(folder, out)


KILLS = [2, pytest.param(50, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_driver_leaves_no_process_and_what_is_done_is_kept(night: Night, tmp_path: Path, kills: int) -> None:
    chance = random.Random(SEED)
    killed = reused = 0
    for k in range(4 * kills):
        out = list(TABLES)[k % 2]
        folder = tmp_path / str(k)
        folder.mkdir()
        process = night.start(folder, out)
        time.sleep(chance.uniform(0.3, 0.95) * night.seconds)
        done = len(list((folder / WORK[out]).glob("calls-*.parquet")))
        alive = process.poll() is None
        process.kill()  # the driver alone
        process.communicate()
        assert_nothing_runs(process.pid)
        found = finish(night, folder, out)
        assert (found > 0) or not done
        killed += alive
        reused += alive and found > 0
        if killed == kills:
            break
    print(f"{killed} drivers killed; {reused} runs went on with work that was done")
    assert killed == kills
    assert reused >= kills // 5


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_worker_costs_nothing(night: Night, tmp_path: Path, kills: int) -> None:
    chance = random.Random(SEED + 1)
    killed = 0
    for k in range(4 * kills):
        folder = tmp_path / str(k)
        folder.mkdir()
        out = list(TABLES)[k % 2]
        process = night.start(folder, out)
        time.sleep(chance.uniform(0.1, 0.9) * night.seconds)
        workers = [found for found in processes_of(process.pid) if "spawn_main" in command_of(found)]
        if workers:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
                chance.choice(workers).kill()
                killed += 1
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 1, errors
        assert_nothing_runs(process.pid)
        assert night.assert_finished(folder, out) == 0
        if killed == kills:
            break
    print(f"{killed} workers killed in {k + 1} runs")
    assert killed == kills
