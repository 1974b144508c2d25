"""A few generated calls, scored: results whose recordings are there to be heard."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile
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
    _score(folder, model, out)
    return folder / out


def score_headerless(folder: Path, model: Path) -> Path:
    """Make a mu-law recording of 12 s without a header, ``folder``/raw.ulaw, and its results; return OUT."""
    soundfile.write(folder / "raw.ulaw", speechlike(12, 7), 8000, format="RAW", subtype="ULAW")
    (folder / "manifest.csv").write_text("call_id,path,roles,encoding\nraw,raw.ulaw,customer,mulaw\n", encoding="utf-8")
    _score(folder, model, "r.parquet")
    return folder / "r.parquet"


def _score(folder: Path, model: Path, out: str) -> None:
    inputs = (str(folder / "manifest.csv"),)
    run(Job(inputs=inputs, out=str(folder / out), model=str(model), settings=RunSettings(), workers=0), Silent())
