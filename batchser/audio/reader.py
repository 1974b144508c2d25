"""Probing, streaming and comparing channels, within the limits that a recording may ask of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Final

import numpy as np
import soxr

from batchser.audio.decode import Decoder, open_decoder
from batchser.audio.source import Source, open_source
from batchser.errors import AudioError
from batchser.records import AudioBlock, AudioInfo, FloatArray, Recording
from batchser.settings import LimitSettings

#: Decoded blocks hold at most so many samples over all channels (16 MiB), whatever the rate.
_MAX_BLOCK_SAMPLES: Final = 2**22
#: libsndfile 1.2.2 garbles the end of an Opus file that is read in pieces of under 10 ms.
_MIN_BLOCK_FRAMES: Final = 4096
_BYTES_PER_SAMPLE: Final = 4
#: Past this many times full scale a float sample is a fault of the file, and its square would leave float32.
_MAX_FULL_SCALES: Final = 1e6

_COMPARE_BLOCK_S: Final = 1.0
#: Codec noise: how far below the signal the channels' difference may lie.
_SAME_SIGNAL_RATIO: Final = 10 ** (-30 / 10)
#: A difference below −80 dBFS is idle noise of the line or codec (one step of 16-bit PCM is −90 dBFS).
_SILENT_POWER: Final = 10 ** (-80 / 10)


def probe(recording: Recording, limits: LimitSettings) -> AudioInfo:
    """Read what a recording's header says, corrected by the size of the file. Decodes a frame at most.

    Of a recording at an fsspec URL no more is fetched than that takes.

    Parameters
    ----------
    recording
        The recording; ``encoding`` and ``rate_hz`` are used for headerless audio only (one channel).
    limits
        What a recording may ask of the machine.

    Returns
    -------
    AudioInfo
        Rate and channels of the file. ``duration_s`` is an estimate where the header does not state it.

    Raises
    ------
    AudioError
        If the file cannot be read, holds no audio, or its header passes a limit.
    """
    with open_source(recording, limits.trust, fetch=False) as source, _opened(recording, limits, source) as decoder:
        return decoder.info


def open_audio(
    recording: Recording,
    rate_hz: int | None,
    limits: LimitSettings,
    block_s: float = 30.0,
    source: Source | None = None,
) -> AudioReader:
    """Open a recording to be read in blocks at the model's rate; use it in a ``with`` statement.

    Parameters
    ----------
    recording
        The recording; ``encoding`` and ``rate_hz`` are used for headerless audio only (one channel).
    rate_hz
        The rate of the blocks. Where the file has another one it is resampled (soxr HQ), channel by channel. None: the
        file's own.
    limits
        What a recording may ask of the machine; checked on the header and while decoding.
    block_s
        About the length of a block in seconds, within what suits the decoders; the samples do not depend on it.
    source
        The recording's bytes where they are open already (``open_source``); they stay open.

    Returns
    -------
    AudioReader
        Iterate over it once for ``AudioBlock``s of float32 (num_channels, n).

    Raises
    ------
    AudioError
        As ``probe``; while iterating, if nothing can be decoded, a limit is passed, or samples are not finite.
    """
    return AudioReader(recording, rate_hz, limits, block_s, source)


def channels_carry_same_signal(recording: Recording, limits: LimitSettings, source: Source | None = None) -> bool:
    """Tell whether both channels of a recording carry one signal (a mono call stored as stereo).

    Second by second, the power of the channels' difference must lie 30 dB below the louder one's; a difference below
    −80 dBFS proves nothing, so a silent recording has one signal. Ends at the first second that differs. ``source`` as
    for ``open_audio``.

    Returns
    -------
    bool
        False also for a recording that has not two channels.

    Raises
    ------
    AudioError
        As ``open_audio``.
    """
    with _opened(recording, limits, source) as decoder:
        if decoder.info.num_channels != 2:
            return False
        return not any(_differ(block) for block in _checked_blocks(decoder, limits, _COMPARE_BLOCK_S))


class AudioReader:
    """An open recording: a context manager, and an iterable of ``AudioBlock`` that is read once.

    Attributes
    ----------
    info : AudioInfo
        What the header says; ``rate_hz`` is the file's own.
    num_channels : int
        Channels of the file and of every block.
    rate_hz : int
        The rate of the blocks.
    """

    def __init__(
        self,
        recording: Recording,
        rate_hz: int | None,
        limits: LimitSettings,
        block_s: float,
        source: Source | None = None,
    ) -> None:
        self._limits, self._block_s = limits, block_s
        with ExitStack() as stack:
            self._decoder = stack.enter_context(_opened(recording, limits, source))
            self._stack = stack.pop_all()
        self.info: AudioInfo = self._decoder.info
        self.num_channels: int = self.info.num_channels
        self.rate_hz: int = rate_hz or self.info.rate_hz

    @property
    def truncated(self) -> bool:
        """Whether header and file disagree or decoding stopped early; final once all blocks are read."""
        return self.info.truncated or self._decoder.stopped_early

    def __iter__(self) -> Iterator[AudioBlock]:
        start_samples = 0
        for frames in self._resampled(_checked_blocks(self._decoder, self._limits, self._block_s)):
            samples = np.ascontiguousarray(frames.T)  # (num_channels, n)
            yield AudioBlock(start_samples, samples)
            start_samples += samples.shape[1]

    def _resampled(self, blocks: Iterator[FloatArray]) -> Iterator[FloatArray]:
        if self.info.rate_hz == self.rate_hz:
            yield from blocks
            return
        resampler = soxr.ResampleStream(
            self.info.rate_hz, self.rate_hz, self.num_channels, dtype="float32", quality="HQ"
        )
        first: FloatArray | None = None
        num_resampled = 0
        for block in blocks:
            first = block[:1] if first is None else first
            resampled = resampler.resample_chunk(block)
            num_resampled += len(resampled)
            if len(resampled):
                yield resampled
        if first is None:
            return
        rest = resampler.resample_chunk(first[:0], last=True)
        if len(rest):
            yield rest
        elif not num_resampled:  # shorter than half an output sample: keep one, so that no recording vanishes
            yield first

    def close(self) -> None:
        """Close the file; a temporary copy vanishes."""
        self._stack.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _opened(recording: Recording, limits: LimitSettings, source: Source | None = None) -> Iterator[Decoder]:
    with nullcontext(source) if source else open_source(recording, limits.trust) as opened:
        if not opened.size:
            raise AudioError("the file is empty (0 bytes), expected a recording; fetch it again from the recorder")
        decoder = open_decoder(opened, recording)
        try:
            _check_header(decoder, limits)
            yield decoder
        finally:
            decoder.close()


def _check_header(decoder: Decoder, limits: LimitSettings) -> None:
    info = decoder.info
    if not 1 <= info.num_channels <= limits.max_channels:
        raise AudioError(
            f"the file has {info.num_channels} channels, expected 1 to {limits.max_channels}; split it, or raise "
            "limits.max_channels"
        )
    if not limits.min_rate_hz <= info.rate_hz <= limits.max_rate_hz:
        raise AudioError(
            f"the header states a rate of {info.rate_hz} Hz, expected {limits.min_rate_hz} to {limits.max_rate_hz} Hz; "
            "correct the header or convert the recording"
        )
    if decoder.promised_s == 0:
        raise AudioError(_NO_SAMPLES)
    if decoder.promised_s is not None:
        _check_length(decoder.promised_s, round(decoder.promised_s * info.rate_hz) * info.num_channels, limits)


_NO_SAMPLES: Final = "the file has a header but no audio (0 samples); fetch it again from the recorder"


def _check_length(duration_s: float, num_samples: int, limits: LimitSettings) -> None:
    if duration_s > limits.max_duration_s:
        raise AudioError(
            f"the recording lasts {duration_s:.0f} s or more, expected at most {limits.max_duration_s:.0f} s; split "
            "it, or raise limits.max_duration_s"
        )
    num_bytes = num_samples * _BYTES_PER_SAMPLE
    if num_bytes > limits.max_decoded_bytes:
        raise AudioError(
            f"the recording decodes to {num_bytes} bytes or more, expected at most {limits.max_decoded_bytes}; "
            "split it, or raise limits.max_decoded_bytes"
        )


def _checked_blocks(decoder: Decoder, limits: LimitSettings, block_s: float) -> Iterator[FloatArray]:
    """Blocks of float32 (n, num_channels) at the file's rate that have passed the limits and are finite."""
    info = decoder.info
    num_frames = max(_MIN_BLOCK_FRAMES, min(round(block_s * info.rate_hz), _MAX_BLOCK_SAMPLES // info.num_channels))
    num_decoded, num_wrong = 0, 0
    for block in decoder.blocks(num_frames):
        num_decoded += len(block)
        _check_length(num_decoded / info.rate_hz, num_decoded * info.num_channels, limits)
        num_wrong += block.size - int(np.count_nonzero(np.abs(block) < _MAX_FULL_SCALES))
        if not num_wrong:  # from the first wrong sample on only count them, over the whole file
            yield block
    if num_wrong:
        raise AudioError(
            f"{num_wrong} of the file's {num_decoded * info.num_channels} samples are not finite (NaN, infinite, or "
            f"past {_MAX_FULL_SCALES:.0e} times full scale), expected numbers; export the recording again as 16-bit PCM"
        )
    if not num_decoded:
        raise AudioError(_NO_SAMPLES)


def _differ(block: FloatArray) -> bool:
    """Whether two channels, float32 (n, 2), carry different signals."""
    left, right = block[:, 0].astype(np.float64), block[:, 1].astype(np.float64)
    difference = float(np.mean((left - right) ** 2))
    signal = max(float(np.mean(left**2)), float(np.mean(right**2)))
    return difference > _SILENT_POWER and difference > signal * _SAME_SIGNAL_RATIO
