"""The two decoders, libsndfile and FFmpeg, behind one face: blocks of float32 (frames, channels) at the file's rate."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import soundfile as sf

from batchser.audio.formats import Format, format_of, id3_bytes
from batchser.audio.headers import FileView, WavLayout, corrected_wav, ends_early, wav_layout
from batchser.audio.source import Source
from batchser.errors import AudioError
from batchser.records import AudioInfo, FloatArray, Recording

if TYPE_CHECKING:
    import av

#: A length that libsndfile does not know is its largest integer.
_UNKNOWN_FRAMES: Final = 2**60
#: WAV codecs that go to FFmpeg: IMA ADPCM (libsndfile's overflows, CVE-2026-37555) and MPEG (see formats.py).
_FFMPEG_WAV_TAGS: Final = frozenset({0x11, 0x50, 0x55})
#: Containers whose header states a length that FFmpeg hands on; elsewhere it guesses from the bit rate.
_EXACT_DEMUXERS: Final = frozenset({"mp4", "matroska", "asf", "wav", "w64", "caf", "aiff", "au", "flac"})
#: A last read of libsndfile is longer than this: one packet of Opus.
_TAIL_S: Final = 0.02
#: What one packet that does not decode may stand for: its stated length could be damaged too.
_MAX_PACKET_GAP_S: Final = 1.0
#: How much shorter than that a whole file may be: encoders count their padding.
_SLACK_S: Final = 0.5


class Decoder(Protocol):
    """An open recording.

    ``promised_s`` is the length in seconds where the header states it (``info.duration_s`` may be a guess), and
    ``stopped_early`` is True once decoding met damage or fell short of it.
    """

    info: AudioInfo
    promised_s: float | None
    stopped_early: bool

    def blocks(self, num_frames: int) -> Iterator[FloatArray]:
        """Blocks of about ``num_frames``: float32 (n, num_channels), n ≥ 1. To be called once."""
        ...

    def close(self) -> None:
        """Free the decoder; the source stays open."""
        ...


def open_decoder(source: Source, recording: Recording) -> Decoder:
    """Choose a decoder by content, then suffix; libsndfile first, where it is trusted with the format.

    Raises
    ------
    AudioError
        If no decoder opens the file.
    """
    kind = format_of(source, recording)
    layout = wav_layout(source) if kind.name == "wav" else None
    truncated = layout.truncated if layout else ends_early(source, kind.name)
    if kind.soundfile and not (layout and layout.codec_tag in _FFMPEG_WAV_TAGS):
        try:
            return SoundFileDecoder(source, kind, layout, truncated)
        except (sf.SoundFileError, OSError, ValueError, TypeError) as error:
            if kind.demuxer is None:
                raise AudioError(_broken(kind.name, error)) from error
    return FfmpegDecoder(source, kind, layout, truncated)


def _broken(container: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or getattr(error, "error_string", None) or type(error).__name__
    return (
        f"the file looks like {container} but cannot be decoded ({str(reason).strip(' .')}), expected whole audio; it "
        "may be damaged or cut off: fetch it again from the recorder"
    )


class SoundFileDecoder:
    """What libsndfile reads: G.711, PCM, GSM 6.10, MS ADPCM, FLAC, Ogg, AU, AIFF, CAF, VOX and headerless audio."""

    def __init__(self, source: Source, kind: Format, layout: WavLayout | None, truncated: bool) -> None:
        corrected = corrected_wav(source, layout) if layout and not layout.readable else None
        raw: dict[str, Any] = {}
        if kind.raw_subtype:
            endian = "LITTLE" if kind.raw_subtype == "PCM_16" else None
            raw = {"format": "RAW", "subtype": kind.raw_subtype, "samplerate": kind.raw_rate_hz, "channels": 1}
            raw["endian"] = endian
        whole = source.file.fileno() if source.on_disk else FileView(source)
        # By descriptor: libsndfile reads it without Python in between, and sees no name to guess a format from.
        source.file.seek(0)
        self._file = sf.SoundFile(corrected or whole, closefd=False, **raw)
        num_frames = self._file.frames if 0 <= self._file.frames < _UNKNOWN_FRAMES else None
        self._num_frames: int | None = num_frames
        self.promised_s = None if num_frames is None else num_frames / self._file.samplerate
        self.stopped_early = False
        self.info = AudioInfo(
            kind.name,
            self._file.subtype.lower(),
            self._file.samplerate,
            self._file.channels,
            self.promised_s,
            truncated,
        )

    def blocks(self, num_frames: int) -> Iterator[FloatArray]:
        """See Decoder."""
        num_decoded = 0
        while True:
            # Opus: libsndfile decodes a last read of less than a packet wrongly; the block before takes it along.
            tail = (self._num_frames or 0) - num_decoded - num_frames
            size = num_frames + tail if 0 < tail <= self.info.rate_hz * _TAIL_S else num_frames
            block = np.full((size, self.info.num_channels), np.nan, np.float32)
            broke_off = False
            try:
                block = self._file.read(out=block)
            except (sf.SoundFileError, OSError, ValueError):
                # libsndfile does not say how much of the block it filled before the fault: the rest is still NaN.
                filled = np.flatnonzero(~np.isnan(block).all(axis=1))
                block = block[: filled[-1] + 1 if filled.size else 0]
                broke_off = True
            num_decoded += len(block)
            if len(block):
                yield block
            if broke_off or not len(block):
                break
        self.stopped_early = broke_off or num_decoded < (self._num_frames or 0)

    def close(self) -> None:
        """See Decoder."""
        self._file.close()


class FfmpegDecoder:
    """What FFmpeg reads besides: MP3, AAC/MP4, WebM, AMR, 3GP, WMA, G.722, G.726, G.723.1, IMA ADPCM.

    One packet is decoded at a time. The demuxer is named, so that no file makes FFmpeg open others (playlists).
    PyAV keeps FFmpeg's own log silent unless told otherwise.
    """

    def __init__(self, source: Source, kind: Format, layout: WavLayout | None, truncated: bool) -> None:
        import av  # slow to import, and most recordings are read without it

        assert kind.demuxer is not None  # noqa: S101  only headerless formats have none, and libsndfile reads those
        self._errors = (av.FFmpegError, OSError, ValueError, EOFError, RuntimeError)
        self.stopped_early = False
        view = corrected_wav(source, layout) if layout and not layout.readable else FileView(source)
        with ExitStack() as stack:
            try:
                self._container = stack.enter_context(av.open(view, "r", format=kind.demuxer, metadata_errors="ignore"))
                if not self._container.streams.audio:
                    raise AudioError(
                        f"the {kind.name} file has no audio stream, expected one; export the recording with its sound"
                    )
                self._stream = self._container.streams.audio[0]
                self._arrays = self._decoded()
                # The first frame tells the true rate and channels: headers do not know of AAC's SBR and PS.
                self._first = next(self._arrays, None)
            except self._errors as error:
                raise AudioError(_broken(kind.name, error)) from error
            if self._first is None:
                raise AudioError(f"nothing in the {kind.name} file can be decoded; fetch it again from the recorder")
            duration_s = self._stated_duration_s()
            self.promised_s = duration_s if _is_exact(source, kind) else None
            codec = self._stream.codec_context.name
            self.info = AudioInfo(kind.name, codec, self._rate_hz, self._first.shape[1], duration_s, truncated)
            self._stack = stack.pop_all()

    def _stated_duration_s(self) -> float | None:
        """What the header says, or FFmpeg guesses; None where that is nothing, or nonsense."""
        stream, container = self._stream, self._container
        if stream.duration and stream.time_base:
            stated_s = float(stream.duration * stream.time_base)
        else:
            stated_s = (container.duration or 0) / 1_000_000
        return stated_s if stated_s > 0 else None

    def _decoded(self) -> Generator[FloatArray, None, None]:
        """Decode packet by packet: float32 (n, num_channels), until the layout changes or the demuxer fails.

        A packet that does not decode becomes silence of its length once another one does, so that later times hold.
        """
        self._rate_hz, num_channels, gap_s = 0, 0, 0.0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._errors:
                self.stopped_early = True
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except self._errors:
                self.stopped_early = True
                gap_s += min(float((packet.duration or 0) * (packet.time_base or 0)), _MAX_PACKET_GAP_S)
                continue
            for frame in frames:
                array = _as_float(frame)
                if not len(array):
                    continue
                if not num_channels:
                    self._rate_hz, num_channels, gap_s = frame.sample_rate, array.shape[1], 0.0
                if (frame.sample_rate, array.shape[1]) != (self._rate_hz, num_channels):
                    self.stopped_early = True
                    return
                if gap_s:
                    yield np.zeros((round(gap_s * self._rate_hz), num_channels), np.float32)
                    gap_s = 0.0
                yield array

    def blocks(self, num_frames: int) -> Iterator[FloatArray]:
        """See Decoder."""
        assert self._first is not None  # noqa: S101  __init__ made sure
        parts, num_held, num_decoded = [self._first], len(self._first), 0
        self._first = None
        for array in self._arrays:
            if num_held >= num_frames:
                yield np.concatenate(parts)
                num_decoded += num_held
                parts, num_held = [], 0
            parts.append(array)
            num_held += len(array)
        yield np.concatenate(parts)
        decoded_s = (num_decoded + num_held) / self._rate_hz
        self.stopped_early = self.stopped_early or decoded_s < (self.promised_s or 0.0) - _SLACK_S

    def close(self) -> None:
        """See Decoder."""
        self._arrays.close()
        self._stack.close()


def _is_exact(source: Source, kind: Format) -> bool:
    """Whether the header states the length. An MP3 does so in the Xing or Info frame behind its ID3 tag."""
    if kind.demuxer != "mp3":
        return kind.demuxer in _EXACT_DEMUXERS
    frame = source.read_at(id3_bytes(source), 200)
    return b"Xing" in frame or b"Info" in frame


def _as_float(frame: av.AudioFrame) -> FloatArray:
    """A decoded frame as float32 (n, num_channels), full scale ±1."""
    array: npt.NDArray[Any] = frame.to_ndarray()  # planar (num_channels, n), packed (1, n * num_channels)
    array = array.T if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels)
    with np.errstate(over="ignore"):  # a double past float32 becomes infinite, and is counted as such
        samples = np.ascontiguousarray(array, np.float32)
    if array.dtype == np.uint8:
        return (samples - np.float32(128)) / np.float32(128)
    if array.dtype.kind == "i":
        return samples / np.float32(2.0 ** (8 * array.dtype.itemsize - 1))
    return samples
