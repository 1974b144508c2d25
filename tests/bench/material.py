"""The recordings that the benchmark scores: two-party calls, 8 kHz mu-law, agent left and customer right.

They are cut together from the generated calls of sample_data/: speech, pauses, ringing and hold music in the shares
of a real call. All is seeded, so that two runs score the same audio.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import soundfile

from batchser.records import FloatArray

RATE_HZ: Final = 8000
ROLES: Final = ("agent", "customer")
CALL_S: Final = 300.0
#: Calls of different content; the others are the same files under other names, which costs a decoder as much.
MOST_DISTINCT: Final = 12

_SAMPLES: Final = Path(__file__).parents[2] / "sample_data"
_PIECE_S: Final = (8.0, 40.0)
_GAIN_DB: Final = (-6.0, 3.0)
_HISS: Final = 10 ** (-65 / 20)  # no piece is quite like another, and no pause is digital silence


def make_calls(folder: Path, hours: float) -> list[Path]:
    """Write calls of five minutes (one shorter call where ``hours`` are fewer) and a manifest.csv that names them."""
    call_s = min(CALL_S, hours * 3600)
    return write_calls(folder, max(1, round(hours * 3600 / call_s)), call_s)


def write_calls(folder: Path, count: int, seconds: float) -> list[Path]:
    """Write calls of one length, of which MOST_DISTINCT differ, and a manifest.csv that names them."""
    sources = _sources()
    calls: list[Path] = []
    for number in range(count):
        path = folder / f"call-{number:05d}.wav"
        if number < MOST_DISTINCT:
            write_call(path, seconds, seed=number, sources=sources)
        else:
            _same_file(calls[number % MOST_DISTINCT], path)
        calls.append(path)
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "roles"])
        rows.writerows([path.name, ",".join(ROLES)] for path in calls)
    return calls


def write_call(path: Path, seconds: float, seed: int, sources: list[FloatArray] | None = None) -> None:
    """Write one call of any length, a piece at a time."""
    rng = np.random.default_rng(seed)
    with soundfile.SoundFile(path, "w", RATE_HZ, len(ROLES), "ULAW", format="WAV") as file:
        for piece in _pieces(sources or _sources(), round(seconds * RATE_HZ), rng):
            file.write(piece)


def _pieces(sources: list[FloatArray], num_samples: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Stretches of the sources from random places on, with random gains: float32 (n, 2)."""
    while num_samples > 0:
        source = sources[rng.integers(len(sources))]
        length = min(num_samples, round(rng.uniform(*_PIECE_S) * RATE_HZ))
        at = (rng.integers(len(source)) + np.arange(length)) % len(source)
        gains = 10 ** (rng.uniform(*_GAIN_DB, size=len(ROLES)) / 20)
        piece = source[at] * gains + _HISS * rng.standard_normal((length, len(ROLES)))
        yield np.clip(piece, -1, 1).astype(np.float32)
        num_samples -= length


def _sources() -> list[FloatArray]:
    """The two-channel calls of sample_data/, float32 (n, 2), the agent first."""
    with (_SAMPLES / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sources = []
    for row in rows:
        roles = row["roles"].split(",")
        if sorted(roles) != sorted(ROLES):
            continue
        try:
            samples, rate_hz = soundfile.read(_SAMPLES / row["path"], dtype="float32", always_2d=True)
        except soundfile.SoundFileError:
            continue  # one file there is broken on purpose
        if rate_hz == RATE_HZ and samples.shape == (len(samples), len(ROLES)):
            sources.append(samples[:, [roles.index(role) for role in ROLES]])
    if not sources:
        raise FileNotFoundError(f"{_SAMPLES}: holds no two-channel call of {RATE_HZ} Hz to make calls from")
    return sources


def _same_file(original: Path, path: Path) -> None:
    try:
        os.link(original, path)
    except OSError:  # a file system without hard links
        shutil.copyfile(original, path)
