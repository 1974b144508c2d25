"""Corpora: labelled clips from the layouts that their owners publish.

A reader takes a data folder and returns Clips. READERS has one per corpus; a corpus is added by adding its reader.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from batchser.audio import open_audio, probe
from batchser.errors import AudioError, ConfigError
from batchser.records import FloatArray, Recording
from batchser.settings import LimitSettings

_INDEX_COLUMNS: Final = ("corpus", "path", "speaker", "emotion", "fold")


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a model card must say of the data behind a model."""

    name: str
    licence: str
    commercial_use: bool
    note: str
    read: Callable[[Path], list[Clip]]


@dataclass(frozen=True, slots=True)
class Clip:
    """One acted utterance: its file, speaker, the emotion meant, and its speaker-independent fold (None: no fold)."""

    corpus: str
    path: Path
    speaker: str
    emotion: str
    fold: int | None


def read_crema_d(data: Path) -> list[Clip]:
    """CREMA-D by ``index.csv`` (columns corpus, path, speaker, emotion, fold)."""
    return _read_index(data, "CREMA-D")


def _read_index(data: Path, corpus: str) -> list[Clip]:
    index = data / "index.csv"
    if not index.is_file():
        raise ConfigError(
            f"{index}: no such file. Expected the corpora's folder with index.csv (columns corpus, path, speaker, "
            "emotion, fold); say where it is with --data"
        )
    with index.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        missing = [name for name in _INDEX_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ConfigError(f"{index}: no column {', '.join(missing)}; expected {', '.join(_INDEX_COLUMNS)}")
        rows = [row for row in reader if row["corpus"] == corpus]
    faults = [
        f"{index}: {row['path']} has fold {row['fold']!r}, expected a whole number or nothing"
        for row in rows
        if row["fold"] and not row["fold"].isdecimal()
    ]
    faults += [f"{index}: {row['path']} is listed but not there" for row in rows if not (data / row["path"]).is_file()]
    if faults:
        raise ConfigError(faults)
    return [
        Clip(corpus, data / row["path"], row["speaker"], row["emotion"], int(row["fold"]) if row["fold"] else None)
        for row in rows
    ]


_CREMA_D_NOTE: Final = (
    "actors speak twelve English sentences; human listeners, from the voice alone, name the emotion meant in 40.9 % of "
    "the clips."
)
READERS: Final[Mapping[str, Corpus]] = {
    "CREMA-D": Corpus("CREMA-D", "ODbL 1.0 + DbCL 1.0", commercial_use=True, note=_CREMA_D_NOTE, read=read_crema_d),
}


def read_corpora(data: Path, names: Sequence[str]) -> list[Clip]:
    """All clips of the named corpora, without those whose very audio stands under two labels.

    Raises
    ------
    ConfigError : a corpus without a reader, or one without clips under ``data``
    """
    unknown = [name for name in names if name not in READERS]
    if unknown:
        raise ConfigError(f"corpora: received {', '.join(unknown)}; readers exist for {', '.join(READERS)}")
    clips: list[Clip] = []
    for name in names:
        found = READERS[name].read(data)
        if not found:
            raise ConfigError(f"corpora: {data} holds no clip of {name}; say where it is with --data")
        clips += found
    return _without_contradictions(clips)


def _without_contradictions(clips: Iterable[Clip]) -> list[Clip]:
    """Drop clips whose identical audio carries two emotions (CREMA-D has three such pairs): no label can be right.

    Compared is what is heard, as copies of a clip may be packed into different bytes; only clips of one speaker and one
    length are decoded for it. A clip that cannot be read stays, and is told when it is read.
    """
    same_length: dict[object, list[Clip]] = defaultdict(list)
    for clip in clips:
        same_length[clip.corpus, clip.speaker, _length_s(clip)].append(clip)
    kept = []
    for group in same_length.values():
        by_sound: dict[object, list[Clip]] = defaultdict(list)
        for clip in group:
            by_sound[_sound(clip) if len(group) > 1 else 0].append(clip)
        kept += [clip for same in by_sound.values() if len({c.emotion for c in same}) == 1 for clip in same]
    return sorted(kept, key=lambda clip: (clip.corpus, clip.path))


def _length_s(clip: Clip) -> float | None:
    try:
        return probe(_recording(clip.path), LimitSettings()).duration_s
    except AudioError:
        return None


def _sound(clip: Clip) -> object:
    """Stand for what a clip sounds like; a clip that cannot be read is like no other."""
    try:
        return hashlib.sha256(read_samples(clip.path, 8000).tobytes()).hexdigest()
    except AudioError:
        return clip


def _recording(path: Path) -> Recording:
    return Recording(0, path.stem, str(path.absolute()))


def read_samples(path: Path, rate_hz: int) -> FloatArray:
    """A whole clip, mixed to mono, as the job decodes it: float32 (n,) at ``rate_hz``.

    Raises
    ------
    AudioError : as for any recording
    """
    with open_audio(_recording(path), rate_hz, LimitSettings(max_duration_s=3600.0)) as reader:
        blocks = [block.samples.mean(axis=0) for block in reader]
    if not blocks:
        raise AudioError(f"{path}: no samples could be decoded")
    return np.concatenate(blocks).astype(np.float32)


def find_audio(folder: Path) -> list[Path]:
    """Sound files directly inside a folder of music or noise, sorted by name (none where there is no folder)."""
    suffixes = {".wav", ".opus", ".ogg", ".flac", ".mp3"}
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes)
