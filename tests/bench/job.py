"""The whole job as its user starts it: `batchser run` as a process, its seconds and its memory from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import psutil

_SAMPLE_EVERY_S: Final = 0.25
_MB: Final = 2**20
_RUSAGE_UNIT: Final = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, KiB elsewhere


@dataclass(frozen=True, slots=True)
class JobResult:
    """One `batchser run`, from the shell's prompt to the next.

    ``seconds`` is wall time, Python's start included. ``num_windows`` and ``num_speech`` count windows of all
    channels, ``num_scored`` those of the scored channel. Memory is resident and sampled; pages that processes share
    count in each of them. ``worker_growth_mb`` is what a worker's peak lies above that of the run's first fifth.
    """

    seconds: float
    audio_s: float
    num_recordings: int
    num_windows: int
    num_speech: int
    num_scored: int
    peak_all_mb: float
    peak_driver_mb: float
    peak_worker_mb: float
    worker_growth_mb: float = 0.0

    @property
    def x_realtime(self) -> float:
        """Seconds of audio a second."""
        return self.audio_s / self.seconds


def run_job(inputs: Path, out: Path, model: str, workers: int | None = None) -> JobResult:
    """Score ``inputs`` with so many workers, or the default number."""
    command = [*_command(inputs, out, model), *([] if workers is None else ["--workers", str(workers)])]
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with MemoryWatch(process.pid) as memory:
        _, told = process.communicate()
        seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"batchser run ended with {process.returncode}:\n{told}")
    report = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    num_windows, num_speech = _count_windows(Path(report["segments"]))
    return JobResult(
        seconds=seconds,
        audio_s=report["audio_s"],
        num_recordings=report["recordings"],
        num_windows=num_windows,
        num_speech=num_speech,
        num_scored=report["scored_windows"],
        peak_all_mb=memory.all_bytes / _MB,
        peak_driver_mb=memory.driver_bytes / _MB,
        peak_worker_mb=memory.worker_bytes / _MB,
        worker_growth_mb=memory.worker_growth_bytes / _MB,
    )


def run_in_one_process(recording: Path, out: Path, model: str) -> tuple[float, float]:
    """Score one recording with --workers 0; return wall seconds and the process's true peak of memory in MB."""
    command = [*_command(recording, out, model), "--workers", "0", "--channel-roles", "agent,customer"]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    # Linux hands the parent's peak on to the child's ru_maxrss: keep this process small, import nothing heavy here.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
    if process.returncode:
        raise RuntimeError(f"batchser run --workers 0 {recording.name} ended with {process.returncode}")
    return seconds, usage.ru_maxrss * _RUSAGE_UNIT / _MB


def _command(inputs: Path, out: Path, model: str) -> Sequence[str]:
    script = Path(sys.executable).with_name("batchser")
    return [
        str(script), "run", str(inputs), "--out", str(out), "--model", model, "--quiet",
        "--json-summary", str(out.with_suffix(".json")),
    ]  # fmt: skip


def _count_windows(segments: Path) -> tuple[int, int]:
    """Rows of a segments table, and how many of them are speech."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    kinds = pq.read_table(segments, columns=["kind"])["kind"].cast("string")
    return len(kinds), pc.sum(pc.equal(kinds, "speech")).as_py() or 0


class MemoryWatch:
    """Samples the resident memory of a process and all its descendants until left.

    Peaks in bytes: ``all_bytes`` of the sum, ``driver_bytes`` of the process, ``worker_bytes`` of its largest
    descendant, ``worker_growth_bytes`` of that beyond its peak in the first fifth of the time.
    """

    def __init__(self, pid: int) -> None:
        self.all_bytes = self.driver_bytes = 0
        self._largest_workers: list[int] = [0]
        self._process = psutil.Process(pid)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._left.wait(_SAMPLE_EVERY_S):
            driver = _resident_bytes(self._process)
            workers = [_resident_bytes(child) for child in _descendants(self._process)]
            self.all_bytes = max(self.all_bytes, driver + sum(workers))
            self.driver_bytes = max(self.driver_bytes, driver)
            self._largest_workers.append(max(workers, default=0))

    @property
    def worker_bytes(self) -> int:
        return max(self._largest_workers)

    @property
    def worker_growth_bytes(self) -> int:
        return self.worker_bytes - max(self._largest_workers[: len(self._largest_workers) // 5 + 1])


def _descendants(process: psutil.Process) -> list[Any]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:  # it has just ended
        return []


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
