"""Whatever a recorder leaves: thousands of damaged files, one that kills its decoder, one that never ends.

Three hundred in `make test`, ten thousand in `make chaos`. Every one has its row, and no process outgrows its limit.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import soundfile
import test_audio as formats
from conftest import call, write

from batchser.bundle import Bundle
from batchser.errors import ConfigError
from batchser.manifest import read_inputs

SEED = 20261123
#: What one of the job's processes may weigh, whatever it is given.
MOST_MB = 1300
STATUSES = {"ok", "no_speech", "too_short", "not_scored", "unreadable"}


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One file in one of the ways in which files go wrong, or several of them."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randrange(min(len(changed), chance.choice([16, 64, 256, 10**9])) or 1)
        match chance.randrange(9):
            case 0:  # bits flip
                for _ in range(chance.choice([1, 8, 64])):
                    if changed:
                        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            case 1:  # a field has an extreme value
                changed[at : at + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
            case 2:  # it ends early
                del changed[at:]
            case 3:  # a piece is missing
                del changed[at : at + chance.randrange(1, 300)]
            case 4:  # a piece stands there twice
                changed[at:at] = changed[at : at + chance.randrange(1, 300)]
            case 5:  # a piece is noise
                length = chance.randrange(1, 300)
                changed[at : at + length] = chance.randbytes(length)
            case 6:  # a piece is silence
                length = chance.randrange(1, 3000)
                changed[at : at + length] = bytes(length)
            case 7:  # another file's end
                changed[at:] = chance.randbytes(chance.randrange(200))
            case 8:  # bytes in another order
                changed[at : at + 4] = changed[at : at + 4][::-1]
    return bytes(changed)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A second in every format that can be written here."""
    folder = tmp_path_factory.mktemp("originals")
    for name, container, subtype, rate_hz in formats.SNDFILE:
        formats.write_sndfile(folder / name, formats.speechlike(rate_hz, 1.0), container, subtype, rate_hz)
    for name, container, codec, rate_hz, bit_rate in formats.FFMPEG:
        formats.write_ffmpeg(folder / name, formats.speechlike(rate_hz, 1.0), container, codec, rate_hz, bit_rate)
    return sorted(folder.iterdir())


class Watch:
    """Samples what the processes of a job weigh; ``peak_mb`` is the most that one of them did."""

    def __init__(self, pid: int) -> None:
        self.peak_mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(psutil.Process(pid),))
        self._thread.start()

    def _look(self, driver: psutil.Process) -> None:
        while not self._ended.wait(0.1):
            try:
                for process in [driver, *driver.children(recursive=True)]:
                    self.peak_mb = max(self.peak_mb, process.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                continue

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def run_watched(manifest: Path, out: Path, model: Path, *options: str, **environment: str) -> tuple[int, str, float]:
    """The job as a process: exit code, stderr, and the peak of its heaviest process in MB."""
    command = [str(Path(sys.executable).with_name("batchser")), "run", str(manifest), "--out", str(out)]
    command += ["--model", str(model), "--workers", "2", *options]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        with Watch(process.pid) as watch:
            _, errors = process.communicate(timeout=3000)
        return process.returncode, errors, watch.peak_mb


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_damaged_file_has_its_row(originals: list[Path], tiny_bundle: Bundle, tmp_path: Path, count: int) -> None:
    chance = random.Random(SEED + count)
    folder = tmp_path / "damaged"
    folder.mkdir()
    manifest = tmp_path / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "call_id", "roles", "encoding"])
        for number in range(count):
            original = chance.choice(originals)
            path = folder / f"{number}{original.suffix}"
            path.write_bytes(damaged(original.read_bytes(), chance))
            stated = chance.choice(["", "", "", "", "mulaw", "pcm16"])
            rows.writerow([path, f"{number}-{original.name}", "", stated])
    code, errors, peak_mb = run_watched(manifest, tmp_path / "r.parquet", tiny_bundle.folder or Path())
    assert code == 1, errors
    assert "Traceback" not in errors
    calls = pd.read_parquet(tmp_path / "r.parquet").drop_duplicates("call_id")
    assert len(calls) == count
    found = Counter(calls["status"])
    print(f"{count} damaged files: {dict(found)}; the heaviest process weighs {peak_mb:.0f} MB")
    assert set(found) <= STATUSES, calls[~calls["status"].isin(STATUSES)][["call_id", "error"]].to_dict("records")
    assert calls.loc[calls["status"] == "unreadable", "error"].str.len().min() > 20
    assert found["unreadable"] > count // 10
    assert found["ok"] + found["no_speech"] > count // 10
    assert peak_mb < MOST_MB


# ---------------------------------------------------------------------------------------------------- poison

POISON = '''
"""A protocol whose files kill the process that reads them, eat its memory, or never end."""
import os, signal, time
from fsspec import AbstractFileSystem

class Poison(AbstractFileSystem):
    protocol = "poison"
    cachable = False

    def info(self, path, **kwargs):
        return {"name": path, "size": 1000, "type": "file", "mtime": 1}

    def _open(self, path, *_, **__):
        if "kills" in path:
            os.kill(os.getpid(), signal.SIGSEGV)
        while "never-ends" in path:
            pass
        eaten = []
        while "eats-memory" in path:
            eaten.append(b"x" * 2**24)
            time.sleep(0.0025)
        raise OSError("neither")
'''


@pytest.fixture
def poisonous(tmp_path: Path) -> dict[str, str]:
    """An environment whose fsspec knows the protocol ``poison``."""
    package = tmp_path / "package"
    (package / "poison-1.dist-info").mkdir(parents=True)
    (package / "poison.py").write_text(POISON)
    (package / "poison-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: poison\nVersion: 1\n")
    (package / "poison-1.dist-info/entry_points.txt").write_text("[fsspec.specs]\npoison = poison:Poison\n")
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": str(package) + (f"{os.pathsep}{inherited}" if inherited else "")}


def test_poison_costs_its_own_rows(poisonous: dict[str, str], tiny_bundle: Bundle, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.wav", call(number, seconds=1.0))
    names = [f"{number % 3}.wav" for number in range(30)]
    names[7], names[13], names[19] = "poison://kills.wav", "poison://eats-memory.wav", "poison://never-ends.wav"
    lines = ["path,call_id,roles", *(f"{name},c{number:02d},mixed" for number, name in enumerate(names))]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ("--protocols", "poison", "--time-limit", "4")
    code, errors, peak_mb = run_watched(
        tmp_path / "m.csv", tmp_path / "night", tiny_bundle.folder or Path(), *options, **poisonous
    )
    assert peak_mb < 4200  # so much a worker may weigh, and no more
    assert code == 1, errors
    calls = pd.read_parquet(tmp_path / "night/calls").set_index("call_id")
    assert len(calls) == 30
    assert calls.index[calls["status"] != "ok"].tolist() == ["c07", "c13", "c19"]
    assert set(calls.loc[["c07", "c13", "c19"], "status"]) == {"crashed"}
    assert "the process that read this recording died" in calls.loc["c07", "error"]
    assert "the process that read this recording died" in calls.loc["c13", "error"]
    assert "died, or was ended after 4 s (--time-limit), twice" in calls.loc["c19", "error"]

    # The same poison is not taken every night, unless somebody asks for it.
    more = ("--json-summary", str(tmp_path / "s.json"))
    code, errors, _ = run_watched(
        tmp_path / "m.csv", tmp_path / "night", tiny_bundle.folder or Path(), *options, *more, **poisonous
    )
    assert (code, json.loads((tmp_path / "s.json").read_text())["recordings_reused"]) == (1, 30), errors
    code, errors, _ = run_watched(
        tmp_path / "m.csv", tmp_path / "night", tiny_bundle.folder or Path(), *options, *more, "--retry-failed",
        **poisonous,
    )  # fmt: skip
    assert (code, json.loads((tmp_path / "s.json").read_text())["recordings_reused"]) == (1, 27), errors


def test_a_bomb_of_thirty_hours_is_stopped_at_its_limit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Silence of thirty hours is a FLAC of a few megabytes; its header does not say so."""
    minute = np.zeros(8000 * 60, np.int16)
    with soundfile.SoundFile(tmp_path / "bomb.flac", "w", 8000, 1, "PCM_16") as file:
        for _ in range(60 * 30):
            file.write(minute)
    data = bytearray((tmp_path / "bomb.flac").read_bytes())
    data[21] &= 0xF0  # total samples, 36 bits behind rate, channels and depth: 0 is unknown
    data[22:26] = bytes(4)
    (tmp_path / "bomb.flac").write_bytes(data)
    code, errors, peak_mb = run_watched(tmp_path / "bomb.flac", tmp_path / "r.parquet", tiny_bundle.folder or Path())
    assert code == 1, errors
    (row,) = pd.read_parquet(tmp_path / "r.parquet").to_dict("records")
    assert row["status"] == "unreadable"
    assert "the recording lasts 864" in row["error"]
    assert peak_mb < MOST_MB


# ---------------------------------------------------------------------------------------------------- a soak


@pytest.mark.slow
def test_twenty_thousand_recordings_do_not_make_it_grow(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Memory of each process is flat after the first tenth of the run."""
    for number in range(8):
        write(tmp_path / f"{number}.wav", call(number, seconds=1.0), subtype="ULAW")
    lines = ["path,call_id,roles", *(f"{number % 8}.wav,c{number},mixed" for number in range(20_000))]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    samples: list[tuple[float, dict[int, float]]] = []
    command = [str(Path(sys.executable).with_name("batchser")), "run", str(tmp_path / "m.csv"), "--workers", "2"]
    command += ["--out", str(tmp_path / "r.parquet"), "--model", str(tiny_bundle.folder), "--log-format", "json"]
    progress = 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        driver = psutil.Process(process.pid)
        assert process.stderr is not None
        for line in process.stderr:
            told = json.loads(line)
            if told.get("event") == "shard":
                progress = told["recordings_done"] / 20_000
                every = [driver, *driver.children(recursive=True)]
                samples.append((progress, {one.pid: one.memory_info().rss / 2**20 for one in every}))
    assert process.returncode == 0
    assert progress == 1.0
    early = {pid: mb for share, found in samples if share <= 0.1 for pid, mb in found.items()}
    late = {pid: max(found.get(pid, 0.0) for share, found in samples if share > 0.1) for pid in early}
    growth = {pid: round(late[pid] - early[pid]) for pid in early}
    print(f"MB after a tenth: { ({pid: round(mb) for pid, mb in early.items()}) }; grown by {growth}")
    assert max(growth.values()) < 60


# ---------------------------------------------------------------------------------------------------- manifests


def wild_manifests(count: int) -> Iterator[bytes]:
    chance = random.Random(SEED)
    head = b"path,call_id,roles,started_at,queue\n"
    body = b'a.wav,1,"agent,customer",2026-11-20T09:14:05+01:00,billing\nb.wav,2,mixed,,x\n'
    for _ in range(count):
        yield damaged(head + body * chance.randrange(1, 4), chance)


@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_manifests_are_read_or_refused_in_sentences(tmp_path: Path, count: int) -> None:
    path = tmp_path / "m.csv"
    faults = []
    for data in wild_manifests(count):
        path.write_bytes(data)
        try:
            read_inputs([str(path)], frozenset({"status"}))
        except ConfigError as error:
            faults.append(error.faults)
    assert count // 5 < len(faults) < count
    assert all(fault.startswith(str(path)) for of_one in faults for fault in of_one)
