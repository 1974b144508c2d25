"""Back to the original recordings: moments cut out to be heard, whole recordings as pictures. Nothing is kept.

A moment is cut from the recording as it is, at its own rate, by pydub: with context around it, and fades at both ends.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from batchser import audio
from batchser.errors import AudioError, UnknownFormatError
from batchser.features import log_mel
from batchser.records import AudioBlock, DoubleArray, FloatArray, IntArray, Recording
from batchser.settings import FeatureSettings, Headerless, LimitSettings
from batchser.windows import cut_windows

if TYPE_CHECKING:
    from pydub import AudioSegment

#: What a recording's length may differ by from the one that it was scored with, and be the same: a hundredth, and this.
_SAME_S: Final = 0.1
_FADE_S: Final = 0.03  # no click where the cut is
_BLOCK_S: Final = 30.0
_FULL_SCALE: Final = 32767
_WAVE_COLUMNS: Final = 1500  # what a wide screen shows
_MEL_COLUMNS: Final = 1200
_MEL_RANGE_DB: Final = 80.0


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a recording in seconds, and the channel to hear, from 0; None: all of them."""

    start_s: float
    end_s: float
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """What a recording looks like, channel by channel; columns are equally long parts of it.

    ``lowest``, ``highest`` : samples in each column, float32 (num_channels, fewer than 3000), full scale ±1
    ``wave_column_s`` : how long one of these is
    ``mel_db`` : loudest log-mel in each column, −80 to 0 below all, int16 (num_channels, num_mels, fewer than 2400)
    ``mel_column_s`` : how long one of these is
    ``mel_hz`` : the middle of each band, float64 (num_mels,)
    """

    duration_s: float
    lowest: FloatArray
    highest: FloatArray
    wave_column_s: float
    mel_db: IntArray
    mel_column_s: float
    mel_hz: DoubleArray


def original(path: str, limits: LimitSettings, headerless: Headerless, duration_s: float | None = None) -> Recording:
    """Find out how a recording of some results is to be read: by what it says itself, or else as ``headerless`` does.

    Parameters
    ----------
    path : its path or fsspec URL, as the calls table has it
    limits : what it may ask of the machine, and where it may lie
    headerless : how it is read if it has no header
    duration_s : how long it was when it was scored, if that is known

    Raises
    ------
    AudioError : it cannot be read, lies where it must not, or is not as long if it is read so
    """
    recording = Recording(0, path, path)
    try:
        audio.probe(recording, limits)
    except UnknownFormatError as error:
        if headerless.encoding is None:
            raise AudioError(
                "the file starts with no known audio header; if it is headerless, say how it is encoded: --encoding "
                "mulaw, alaw or pcm16, and --rate-hz"
            ) from error
    else:
        return recording
    recording = replace(recording, encoding=headerless.encoding, rate_hz=headerless.rate_hz)
    lasts_s = audio.probe(recording, limits).duration_s
    if duration_s is not None and lasts_s is not None and abs(lasts_s - duration_s) > 0.01 * duration_s + _SAME_S:
        raise AudioError(
            f"read as {headerless.encoding} of {headerless.rate_hz} Hz the recording lasts {lasts_s:.1f} s, and lasted "
            f"{duration_s:.1f} s when it was scored; correct --encoding and --rate-hz"
        )
    return recording


def cut(
    recording: Recording, spans: Sequence[Span], limits: LimitSettings, context_s: float = 1.0
) -> Iterator[tuple[int, AudioSegment]]:
    """Cut parts out of a recording, which is read once, as far as is needed.

    Parameters
    ----------
    recording : as ``original`` gives it
    spans : what to cut
    limits : what it may ask of the machine, and where it may lie
    context_s : seconds before and after each part, as far as there are any

    Yields
    ------
    Each span's number and its sound; spans that the recording is too short for are left out.

    Raises
    ------
    AudioError : it cannot be read, or lies where it must not
    """
    with audio.open_audio(recording, None, limits, _BLOCK_S) as reader:
        for span in spans:
            if span.channel is not None and not 0 <= span.channel < reader.num_channels:
                raise AudioError(f"channel {span.channel} was asked for, the recording has {reader.num_channels}")
        bounds = [
            (round(max(span.start_s - context_s, 0) * reader.rate_hz), round((span.end_s + context_s) * reader.rate_hz))
            for span in spans
        ]
        for number, samples in _parts(reader, bounds):
            channel = spans[number].channel
            chosen = samples if channel is None else samples[channel : channel + 1]
            yield number, _sound(chosen, reader.rate_hz)


def _parts(blocks: Iterable[AudioBlock], bounds: Sequence[tuple[int, int]]) -> Iterator[tuple[int, FloatArray]]:
    """Give the samples float32 (num_channels, n) between each pair of bounds, those first that end first."""
    open_parts = sorted(range(len(bounds)), key=lambda number: bounds[number][1])
    held: dict[int, list[FloatArray]] = {number: [] for number in open_parts}
    for block in blocks:
        first, end = block.start_samples, block.start_samples + block.samples.shape[1]
        for number in open_parts:
            start, stop = bounds[number]
            if start < end and stop > first:
                held[number].append(block.samples[:, max(start - first, 0) : stop - first].copy())
        while open_parts and bounds[open_parts[0]][1] <= end:
            number = open_parts.pop(0)
            yield number, np.concatenate(held.pop(number), axis=1)
        if not open_parts:
            return
    for number in open_parts:
        if held[number]:
            yield number, np.concatenate(held[number], axis=1)


def _sound(samples: FloatArray, rate_hz: int) -> AudioSegment:
    """Samples float32 (num_channels, n) as 16-bit sound that fades in and out."""
    whole = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE).astype("<i2")
    sound = _pydub().AudioSegment(
        np.ascontiguousarray(whole.T).tobytes(), sample_width=2, frame_rate=rate_hz, channels=len(whole)
    )
    fade_ms = min(round(_FADE_S * 1000), len(sound) // 2)
    return sound.fade_in(fade_ms).fade_out(fade_ms) if fade_ms else sound


def encoded(sound: AudioSegment, file_format: str) -> bytes:
    """Return a sound as the bytes of a WAV or MP3 file."""
    file = BytesIO()
    if file_format == "mp3":
        import imageio_ffmpeg

        type(sound).converter = imageio_ffmpeg.get_ffmpeg_exe()
    sound.export(file, format=file_format, **({"bitrate": "64k"} if file_format == "mp3" else {}))
    return file.getvalue()


def _pydub() -> Any:
    """Import pydub, which warns of an ffmpeg that it does not find, and of a module that Python has dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pydub
    return pydub


def draw(recording: Recording, limits: LimitSettings) -> Picture:
    """Look at a whole recording, in bounded memory: the outline of its waves and its mel spectrogram.

    ``recording`` and ``limits`` as for ``cut``.

    Raises
    ------
    AudioError : it cannot be read, or lies where it must not
    """
    import librosa

    settings = FeatureSettings()
    with audio.open_audio(recording, settings.rate_hz, limits, _BLOCK_S) as reader:
        waves, mels = _Pooled(_WAVE_COLUMNS), _Pooled(_MEL_COLUMNS)
        num_samples = 0
        for batch in cut_windows(_watched(reader, waves), settings.window_samples, 16):
            mel = np.stack([log_mel(samples, settings) for samples in batch.samples])  # (C, B, T, num_mels)
            mels.add(mel.reshape(len(mel), -1, settings.num_mels))
            num_samples += int(batch.num_samples.sum())
    lowest, highest = waves.columns()  # (C, columns, 1)
    mel_db = mels.columns()[1].transpose(0, 2, 1)  # (C, num_mels, columns)
    # The frames of a window lie a little closer than it is long; those behind the end are padding.
    mel_column_s = mels.unit * settings.window_ms / 1000 / settings.num_frames
    duration_s = num_samples / settings.rate_hz
    mel_db = mel_db[:, :, : math.ceil(duration_s / mel_column_s)]
    bands_hz = librosa.mel_frequencies(n_mels=settings.num_mels + 2, fmin=settings.mel_min_hz, fmax=settings.mel_max_hz)
    return Picture(
        duration_s=duration_s,
        lowest=lowest[..., 0],
        highest=highest[..., 0],
        wave_column_s=waves.unit / settings.rate_hz,
        mel_db=np.clip(np.rint(mel_db - mel_db.max()), -_MEL_RANGE_DB, 0).astype(np.int16),
        mel_column_s=mel_column_s,
        mel_hz=bands_hz[1:-1],
    )


def _watched(blocks: Iterable[AudioBlock], waves: _Pooled) -> Iterator[AudioBlock]:
    for block in blocks:
        waves.add(block.samples[:, :, None])
        yield block


class _Pooled:
    """Rows of values, (C, n, F) at a time, kept as the lowest and highest of every ``unit`` of them.

    The unit doubles whenever there are twice as many columns as asked for, so that the length need not be known.
    """

    def __init__(self, columns: int) -> None:
        self.unit = 1
        self._most = 2 * columns
        self._whole: list[FloatArray] = []  # each (2, C, columns, F): lowest, highest
        self._num_columns = 0
        self._begun: FloatArray | None = None  # (2, C, 1, F) of the ``_num_begun`` rows behind the last whole column
        self._num_begun = 0

    def add(self, rows: FloatArray) -> None:
        """Take rows in, float32 (C, n, F)."""
        both = np.stack([rows, rows])  # (2, C, n, F)
        if self._begun is not None:
            missing = self.unit - self._num_begun
            self._begin(both[:, :, :missing])
            both = both[:, :, missing:]
        num_whole = both.shape[2] // self.unit
        if num_whole:
            self._push(_pooled(both[:, :, : num_whole * self.unit], self.unit))
        if both.shape[2] > num_whole * self.unit:
            self._begin(both[:, :, num_whole * self.unit :])
        while self._num_columns >= self._most:
            self._double()

    def columns(self) -> tuple[FloatArray, FloatArray]:
        """Return the lowest and the highest of each column, float32 (C, columns, F) each."""
        parts = [*self._whole, *([] if self._begun is None else [self._begun])]
        lowest, highest = np.concatenate(parts, axis=2)
        return lowest, highest

    def _push(self, columns: FloatArray) -> None:
        self._whole.append(columns)
        self._num_columns += columns.shape[2]

    def _begin(self, rows: FloatArray) -> None:
        """Add rows, at most as many as are missing, to the column that is begun."""
        joined = rows if self._begun is None else np.concatenate([self._begun, rows], axis=2)
        self._begun, self._num_begun = _pooled(joined, joined.shape[2]), self._num_begun + rows.shape[2]
        if self._num_begun == self.unit:
            self._push(self._begun)
            self._begun, self._num_begun = None, 0

    def _double(self) -> None:
        columns = np.concatenate(self._whole, axis=2)
        if columns.shape[2] % 2:  # the last one is half of a new one
            last = columns[:, :, -1:]
            self._begun = last if self._begun is None else _pooled(np.concatenate([last, self._begun], axis=2), 2)
            self._num_begun += self.unit
            columns = columns[:, :, :-1]
        self.unit *= 2
        self._whole, self._num_columns = [_pooled(columns, 2)], columns.shape[2] // 2


def _pooled(both: FloatArray, unit: int) -> FloatArray:
    """Lowest and highest of every ``unit`` columns: (2, C, n · unit, F) → (2, C, n, F)."""
    folded = both.reshape(*both.shape[:2], -1, unit, both.shape[3])
    return np.stack([folded[0].min(axis=2), folded[1].max(axis=2)])
