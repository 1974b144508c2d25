"""A few generated calls, scored: results whose recordings are there to be heard."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from conftest import silence, speechlike, write

from batchser.runner import Job, run
from batchser.settings import RunSettings


class Silent:
    """A Progress that says nothing."""

    def begin(self, run_id: str) -> None: ...
    def say(self, line: str) -> None: ...
    def start(self, total_s: float, recordings: int) -> None: ...
    def advance(self, seconds: float, recordings: int, stages: object) -> None: ...


def score_calls(
    folder: Path, model: Path, out: str = "r.parquet", names: tuple[str, ...] = ("one", "two", "three")
) -> Path:
    """Make stereo recordings of 21 s in ``folder``/audio, one file that is broken, and their results; return OUT."""
    audio = folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, name in enumerate(names):
        customer = np.concatenate([silence(3), speechlike(9, 10 + number), silence(3), speechlike(6, 30 + number)])
        write(audio / f"{number}.wav", speechlike(21, 50 + number), customer)
        rows.append([name, f"audio/{number}.wav", "agent,customer", f"2026-11-2{number % 3}T08:0{number}:00", name])
    (audio / "broken.wav").write_bytes(b"RIFF")
    rows.append(["broken", "audio/broken.wav", "agent,customer", "2026-11-20T09:00:00", "sales"])
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["call_id", "path", "roles", "started_at", "queue"], *rows])
    job = Job(
        inputs=(str(folder / "manifest.csv"),),
        out=str(folder / out),
        model=str(model),
        settings=RunSettings(),
        workers=0,
    )
    run(job, Silent())
    return folder / out
