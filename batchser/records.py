"""What flows from the manifest to the tables. Frozen records; imports nothing of ours.

``Recording`` → ``AudioBlock`` → ``WindowBatch`` → ``WindowScores`` → ``CallSummary`` → ``Outcome``
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

# Each docstring states the exact dtype: float32 for samples, features, scores; float64 for seconds; int32 for counts.
FloatArray = npt.NDArray[np.floating[Any]]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]
KindArray = npt.NDArray[np.int8]
BoolArray = npt.NDArray[np.bool_]

#: What a window holds. ``WindowScores.kind`` holds indices into this tuple.
KINDS: Final = ("speech", "silence", "music", "tone", "noise")
SPEECH, SILENCE, MUSIC, TONE, NOISE = range(len(KINDS))

#: Who speaks on a channel.
ROLES: Final = ("agent", "customer", "mixed", "unknown")

#: What became of a recording; the first three are faults (exit code 1).
STATUSES: Final = ("crashed", "failed", "unreadable", "not_scored", "too_short", "no_speech", "ok")
FAULTS: Final = frozenset({"crashed", "failed", "unreadable"})

#: What a folder is searched for: suffixes of what can be decoded as it lies there. Headerless files (``.ulaw``,
#: ``.raw``) must be named, as only a manifest can say what they hold.
AUDIO_SUFFIXES: Final = frozenset(
    {".3g2", ".3gp", ".3gpp", ".aac", ".adts", ".aif", ".aifc", ".aiff", ".amr", ".asf", ".au", ".awb", ".bw64"}
    | {".bwf", ".caf", ".flac", ".g722", ".m4a", ".m4b", ".mka", ".mkv", ".mp2", ".mp3", ".mp4", ".oga", ".ogg"}
    | {".opus", ".rf64", ".snd", ".sph", ".voc", ".vox", ".w64", ".wav", ".wave", ".webm", ".wma"}
)

#: ``level_dbfs`` of digital silence.
FLOOR_DBFS: Final = -100.0


@dataclass(frozen=True, slots=True)
class Recording:
    """One row of the manifest, or one file found.

    ``path`` is absolute, or an fsspec URL. ``roles`` has one entry per channel, or is None where the
    manifest states none. ``encoding`` and ``rate_hz`` describe headerless audio only. ``index`` is the
    position in the manifest, from 0: tables keep this order. ``started_at`` is UTC.
    """

    index: int
    call_id: str
    path: str
    roles: tuple[str, ...] | None = None
    started_at: datetime | None = None
    encoding: str | None = None
    rate_hz: int | None = None


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a recording's header says, corrected by the size of the file.

    ``duration_s`` is an estimate where the format has no exact length (it is None where only decoding
    tells). ``truncated`` is True where the header promises more than the file holds, or hides bytes
    behind a too-small size.
    """

    container: str
    codec: str
    rate_hz: int
    num_channels: int
    duration_s: float | None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class AudioBlock:
    """Consecutive samples at the model's rate: float32 (num_channels, n), from ``start_samples`` on."""

    start_samples: int
    samples: FloatArray


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Consecutive windows of all channels of one recording.

    ``samples`` is float32 (num_channels, num_windows, window_samples); the last window of a recording may
    be shorter: it is padded with zeros, and ``num_samples`` int32 (num_windows,) has the true lengths.
    """

    first_segment: int
    samples: FloatArray
    num_samples: IntArray


@dataclass(frozen=True, slots=True)
class WindowScores:
    """All windows of one channel of one recording, in order; they tile [0, duration) exactly.

    Shapes (n windows, L labels): ``start_s``, ``end_s``, ``voiced_s``, ``overtalk_s`` float64 (n,);
    ``kind`` int8 (n,), index into KINDS; ``level_dbfs`` float32 (n,); ``probabilities`` float32 (n, L),
    calibrated, a row of NaN for a window that was not scored. ``overtalk_s`` is the time inside the
    window in which this channel and another one are voiced at once (0 where there is only one).
    ``threshold`` is the bundle's: below it the largest probability abstains.
    """

    channel: int
    role: str
    start_s: DoubleArray
    end_s: DoubleArray
    kind: KindArray
    voiced_s: DoubleArray
    overtalk_s: DoubleArray
    level_dbfs: FloatArray
    probabilities: FloatArray
    threshold: float

    @property
    def scored(self) -> BoolArray:
        """Which windows have an emotion, bool (n,)."""
        return np.asarray(~np.isnan(self.probabilities).any(axis=1))

    @property
    def confidence(self) -> FloatArray:
        """The largest probability of each window, float32 (n,); NaN where not scored."""
        if not self.probabilities.size:
            return np.full(len(self.kind), np.nan, np.float32)
        return np.asarray(self.probabilities.max(axis=1))  # NaN rows stay NaN

    @property
    def abstained(self) -> BoolArray:
        """Which scored windows are too uncertain to name an emotion, bool (n,)."""
        return self.scored & (self.confidence < self.threshold)


@dataclass(frozen=True, slots=True)
class CallSummary:
    """One row of the calls table: a call and one scored channel, or a call without any (``channel`` None).

    Field names are the table's columns (DESIGN.md, "Tables"); ``means`` and ``shares`` hold one value per
    label, in the bundle's order, and become ``mean_<label>`` and ``share_<label>``. None becomes null.
    """

    channel: int | None = None
    role: str | None = None
    status: str = "ok"
    error: str | None = None
    duration_s: float | None = None
    speech_s: float | None = None
    silence_s: float | None = None
    music_s: float | None = None
    tone_s: float | None = None
    noise_s: float | None = None
    voiced_s: float | None = None
    talk_share: float | None = None
    overtalk_s: float | None = None
    num_segments: int = 0
    num_scored: int = 0
    emotion: str | None = None
    confidence: float | None = None
    means: tuple[float, ...] | None = None
    shares: tuple[float, ...] | None = None
    negativity: float | None = None
    negativity_q: tuple[float | None, float | None, float | None, float | None] = (None, None, None, None)
    trend: str | None = None
    trend_slope: float | None = None
    escalated: bool | None = None
    escalation_s: float | None = None
    peak_emotion: str | None = None
    peak_start_s: float | None = None
    peak_score: float | None = None
    level_dbfs: float | None = None
    abstained_share: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that one recording gave: its rows of both tables.

    ``windows`` has every channel (none where nothing could be decoded), ``summaries`` one entry per
    scored channel or exactly one with ``channel`` None. ``status`` is the recording's: the first of
    its summaries' in the order of STATUSES, except that one ``ok`` channel makes it ``ok``.
    """

    recording: Recording
    summaries: tuple[CallSummary, ...]
    windows: tuple[WindowScores, ...] = field(default=())
    truncated: bool = False
    duration_s: float | None = None
    source_sha256: str | None = None
    scored_at: datetime | None = None

    @property
    def status(self) -> str:
        """The recording's status, one of STATUSES."""
        found = {summary.status for summary in self.summaries}
        return "ok" if "ok" in found else next(status for status in STATUSES if status in found)
