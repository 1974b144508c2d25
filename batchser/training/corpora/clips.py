"""A labelled clip, what can be wrong with one, and its samples as the job would decode them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from batchser.audio import open_audio
from batchser.errors import AudioError
from batchser.records import AUDIO_SUFFIXES, FloatArray, Recording
from batchser.settings import LimitSettings, fingerprint_of

#: What a Fault can be, in the order of the table.
FAULTS: Final = ("missing", "unreadable", "silent", "duplicate", "contradictory", "unlabelled")
#: A clip whose loudest sample lies below this is silent.
SILENT_DBFS: Final = -60.0

_BLOCK_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance: where it is, who speaks, the emotion meant, and its speaker-independent fold (None: no fold).

    ``votes`` are listeners' answers from the voice alone, (label, count) by label;
    empty where nobody was asked. A part of a longer recording has ``start_s`` and ``end_s`` (None: to its end) and its
    ``channel`` (None: all channels, mixed to mono). ``sex`` is ``female`` or ``male``, ``age`` in years. ``encoding``
    and ``rate_hz`` are those of headerless audio.
    """

    corpus: str
    path: Path
    speaker: str
    emotion: str
    fold: int | None
    votes: tuple[tuple[str, int], ...] = ()
    start_s: float = 0.0
    end_s: float | None = None
    channel: int | None = None
    sex: str | None = None
    age: int | None = None
    encoding: str | None = None
    rate_hz: int | None = None

    @property
    def recording(self) -> Recording:
        """The recording that holds it."""
        where = str(self.path.absolute())
        return Recording(0, self.path.stem, where, encoding=self.encoding, rate_hz=self.rate_hz)

    @property
    def place(self) -> str:
        """The path and, for a part of a recording, its seconds and channel."""
        part = f" {self.start_s:g}-{'' if self.end_s is None else f'{self.end_s:g}'} s"
        part = "" if self.start_s == 0 and self.end_s is None else part
        return f"{self.path}{part}{'' if self.channel is None else f' channel {self.channel}'}"


@dataclass(frozen=True, slots=True)
class Fault:
    """A clip that was not taken: ``fault`` is one of FAULTS, ``path`` the clip's place."""

    corpus: str
    path: str
    fault: str
    detail: str


def fault_rows(faults: Sequence[Fault]) -> list[dict[str, str]]:
    """Make rows for a CSV writer, sorted by corpus, fault and path: columns corpus, fault, path, detail."""
    ordered = sorted(faults, key=lambda fault: (fault.corpus, FAULTS.index(fault.fault), fault.path))
    return [{"corpus": f.corpus, "fault": f.fault, "path": f.path, "detail": f.detail} for f in ordered]


def render_faults(faults: Sequence[Fault], max_rows: int = 20) -> str:
    """Write all faults as one text: a table of counts, then one of clips, ``max_rows`` of each corpus and fault."""
    if not faults:
        return "No faults."
    rows = fault_rows(faults)
    counts = Counter((row["corpus"], row["fault"]) for row in rows)
    summary = [(corpus, fault, str(count)) for (corpus, fault), count in counts.items()]
    shown: Counter[tuple[str, str]] = Counter()
    listed = []
    for row in rows:
        kind = (row["corpus"], row["fault"])
        shown[kind] += 1
        if shown[kind] <= max_rows:
            listed.append((*kind, row["path"], row["detail"]))
        elif shown[kind] == max_rows + 1:
            listed.append((*kind, f"and {counts[kind] - max_rows} more", ""))
    parts = [_aligned([("corpus", "fault", "clips"), *summary])]
    parts.append(_aligned([("corpus", "fault", "path", "detail"), *listed]))
    return "\n\n".join(parts)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def read_clip(clip: Clip, rate_hz: int) -> FloatArray:
    """Read a clip as the job decodes it: float32 (n,) at ``rate_hz``, its own seconds and channel only.

    An ``end_s`` past the recording's end means the end.

    Raises
    ------
    AudioError : as for any recording, or the recording has no such channel or ends before the clip begins
    """
    first = round(clip.start_s * rate_hz)
    end = None if clip.end_s is None else round(clip.end_s * rate_hz)
    blocks = [block[first_of:] for first_of, block in _blocks(clip, rate_hz, first, end)]
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not samples.size:
        raise AudioError(f"{clip.path}: it ends before the clip begins at {clip.start_s:g} s; correct start_s")
    return samples.astype(np.float32) if end is None else samples[: end - first].astype(np.float32)


def _blocks(clip: Clip, rate_hz: int, first: int, end: int | None) -> Iterator[tuple[int, FloatArray]]:
    """Blocks (n,) that reach into samples first…end, each with the place in it where the clip begins or goes on."""
    block_s = _BLOCK_S if clip.end_s is None else min(_BLOCK_S, clip.end_s)  # decode no more than is asked for
    with open_audio(clip.recording, rate_hz, LimitSettings(), block_s) as reader:
        if clip.channel is not None and clip.channel >= reader.num_channels:
            raise AudioError(
                f"{clip.path}: received channel {clip.channel}, expected one of 0 to {reader.num_channels - 1}"
            )
        for block in reader:
            mono = block.samples.mean(axis=0) if clip.channel is None else block.samples[clip.channel]
            if block.start_samples + mono.size > first:
                yield max(0, first - block.start_samples), mono
            if end is not None and block.start_samples + mono.size >= end:
                return


def read_samples(path: Path, rate_hz: int) -> FloatArray:
    """Read a whole sound, mixed to mono, as the job decodes it: float32 (n,) at ``rate_hz``.

    Raises
    ------
    AudioError : as for any recording
    """
    return read_clip(Clip("", path, "", "", None), rate_hz)


def check_audio(clip: Clip, samples: FloatArray) -> Fault | None:
    """Say what is wrong with a clip's samples, float32 (n,): silence, or nothing (None)."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak >= 10 ** (SILENT_DBFS / 20):
        return None
    level = f"its peak is {20 * np.log10(peak):.0f} dBFS" if peak else "every sample is 0"
    return Fault(clip.corpus, clip.place, "silent", f"{level}, expected {SILENT_DBFS:g} dBFS or more")


def unreadable(clip: Clip, error: AudioError) -> Fault:
    """Make the fault of a clip that ``read_clip`` refused."""
    return Fault(clip.corpus, clip.place, "unreadable", str(error).removeprefix(f"{clip.path}: "))


def walk(folder: Path) -> list[Path]:
    """Every visible file below a folder, sorted; links are followed. macOS archives hide copies as ``._name``."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(found)


def is_audio(path: Path) -> bool:
    """Say whether a file is audio by its suffix."""
    return path.suffix.lower() in AUDIO_SUFFIXES


def find_audio(folder: Path) -> list[Path]:
    """Sound files directly inside a folder of music or noise, sorted by name (none where there is no folder)."""
    return sorted(path for path in folder.glob("*") if is_audio(path) and not path.name.startswith("."))


def clips_key(clips: Sequence[Clip]) -> str:
    """Stand for clips wherever their folder lies: name, part, size, speaker, label and votes of each."""
    return fingerprint_of([
        [c.corpus, c.path.name, c.path.stat().st_size, c.start_s, c.end_s, c.channel, c.speaker, c.emotion, c.votes,
         *([c.encoding, c.rate_hz] if c.encoding else [])]
        for c in clips
    ])  # fmt: skip
