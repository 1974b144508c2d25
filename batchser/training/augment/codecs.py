"""Round trips through real codecs, in memory: what a recorder or a telephone network leaves of a sound.

libsndfile encodes and decodes G.711, GSM 6.10, G.726 and PCM; PyAV's FFmpeg does Opus, MP3, AMR and G.722. What comes
back is as long as what went in and lies where it lay: a codec's delay is cut off.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import soundfile
import soxr

from batchser.errors import ConfigError
from batchser.records import FloatArray

if TYPE_CHECKING:
    import av


@dataclass(frozen=True, slots=True)
class Codec:
    """An encoder with its decoder.

    ``rates_hz`` are the rates that the encoder takes (none stated: any); samples at another rate are resampled to the
    next higher one of them, or to the highest. ``available`` says whether this machine's libraries can encode it.
    """

    name: str
    describe: str
    rates_hz: tuple[int, ...]
    available: Callable[[], bool]
    run: Callable[[FloatArray, int], FloatArray]


@dataclass(frozen=True, slots=True)
class _Ffmpeg:
    """How FFmpeg encodes and decodes: ``delay_samples`` at the codec's rate are what its decoder leaves at the front.

    FFmpeg takes the delays of Opus and MP3 away by itself, and leaves those of the telephone codecs.
    """

    encoder: str
    decoder: str
    sample_format: str
    bits_per_s: int
    options: Mapping[str, str] = field(default_factory=dict)
    delay_samples: int = 0

    def available(self) -> bool:
        import av  # slow to import, and most round trips are made by libsndfile

        try:
            av.codec.Codec(self.encoder, "w")
            av.codec.Codec(self.decoder, "r")
        except av.codec.codec.UnknownCodecError:
            return False
        return True

    def run(self, samples: FloatArray, rate_hz: int) -> FloatArray:
        """There and back: float32 (n,) → (n or more,), float32."""
        import av

        encoder: Any = self._context(self.encoder, "w", rate_hz)
        encoder.open()
        size = encoder.frame_size
        padded = np.zeros(-(-(samples.size + self.delay_samples + size) // size) * size, np.float32)
        padded[: samples.size] = samples
        coded = padded if self.sample_format == "fltp" else np.round(padded * 32767).astype(np.int16)
        packets = []
        for start in range(0, coded.size, size):
            frame = av.AudioFrame.from_ndarray(coded[None, start : start + size], self.sample_format, "mono")
            frame.sample_rate, frame.pts = rate_hz, start
            packets += encoder.encode(frame)
        packets += encoder.encode(None)
        decoder: Any = self._context(self.decoder, "r", rate_hz)
        decoder.extradata = encoder.extradata
        frames = [frame for packet in (*packets, None) for frame in decoder.decode(packet)]
        decoded = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
        if decoded.dtype == np.int16:
            decoded = decoded / np.float32(32768)
        if frames[0].sample_rate != rate_hz:  # FFmpeg decodes Opus at 48 kHz whatever went in
            decoded = soxr.resample(decoded.astype(np.float32), frames[0].sample_rate, rate_hz)
        return decoded.astype(np.float32)[self.delay_samples :]

    def _context(self, name: str, mode: Any, rate_hz: int) -> av.CodecContext:
        import av

        context: Any = av.CodecContext.create(name, mode)
        context.sample_rate, context.layout = rate_hz, "mono"
        if mode == "w":
            context.format, context.bit_rate = self.sample_format, self.bits_per_s
            context.options = dict(self.options)
        return context


def _through_wav(subtype: str, samples: FloatArray, rate_hz: int) -> FloatArray:
    """There and back as a WAV file in one of libsndfile's encodings: float32 (n,) → (n or more,)."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, subtype=subtype, format="WAV")
    buffer.seek(0)
    decoded, _ = soundfile.read(buffer, dtype="float32")
    return np.asarray(decoded, np.float32)


def _sndfile(name: str, subtype: str, describe: str, rates_hz: tuple[int, ...] = ()) -> Codec:
    available = functools.partial(soundfile.check_format, "WAV", subtype)
    return Codec(name, describe, rates_hz, available, functools.partial(_through_wav, subtype))


def _ffmpeg(name: str, describe: str, rates_hz: tuple[int, ...], codec: _Ffmpeg) -> Codec:
    return Codec(name, describe, rates_hz, codec.available, codec.run)


# Opus at complexity 0 and LAME at quality 7 take half the time of their defaults: 10 and 8 ms for 3 s.
_OPUS: Final = _Ffmpeg("libopus", "opus", "s16", 12_000, {"application": "voip", "compression_level": "0"})
_MP3: Final = _Ffmpeg("libmp3lame", "mp3float", "fltp", 16_000, {"compression_level": "7"})
_AMR: Final = functools.partial(_Ffmpeg, "libopencore_amrnb", "amrnb", "s16", delay_samples=40)
_G722: Final = _Ffmpeg("g722", "g722", "s16", 64_000, delay_samples=22)

#: Every codec by name.
CODECS: Final[Mapping[str, Codec]] = {
    codec.name: codec
    for codec in (
        _sndfile("mu-law", "ULAW", "G.711 mu-law, 64 kbit/s at 8 kHz", (8000,)),
        _sndfile("a-law", "ALAW", "G.711 A-law, 64 kbit/s at 8 kHz", (8000,)),
        _sndfile("pcm16", "PCM_16", "16-bit PCM"),
        _sndfile("gsm-6.10", "GSM610", "GSM 06.10 full rate, 13 kbit/s", (8000,)),
        _sndfile("g726-32k", "G721_32", "G.726 (ADPCM), 32 kbit/s", (8000,)),
        _ffmpeg("g722", "G.722, 64 kbit/s", (16_000,), _G722),
        _ffmpeg("opus-12k", "Opus for speech, 12 kbit/s", (8000, 12_000, 16_000, 24_000, 48_000), _OPUS),
        _ffmpeg("mp3-16k", "MP3, 16 kbit/s", (8000, 11_025, 12_000, 16_000, 22_050, 24_000), _MP3),
        _ffmpeg("amr-12.2k", "AMR narrow band, 12.2 kbit/s", (8000,), _AMR(bits_per_s=12_200)),
        _ffmpeg("amr-4.75k", "AMR narrow band, 4.75 kbit/s", (8000,), _AMR(bits_per_s=4750)),
    )
}


@functools.cache
def _available(name: str) -> bool:
    return bool(CODECS[name].available())


def encoders() -> list[str]:
    """Names of the codecs that this machine's libraries can encode, in CODECS's order."""
    return [name for name in CODECS if _available(name)]


def round_trip(samples: FloatArray, rate_hz: int, codec: str) -> FloatArray:
    """Encode and decode, aligned within 2 ms.

    Parameters
    ----------
    samples : float32 (n,) mono; what lies outside −1…1 is clipped, as an encoder's input is
    rate_hz : their rate
    codec : a name in CODECS

    Returns
    -------
    FloatArray : float32 (n,)

    Raises
    ------
    ConfigError : an unknown codec, or one whose encoder this machine lacks
    """
    if codec not in CODECS:
        raise ConfigError(f"codec: received {codec!r}, expected one of {', '.join(CODECS)}")
    if not _available(codec):
        raise ConfigError(
            f"codec {codec}: the installed libsndfile and FFmpeg have no encoder for it, expected one of "
            f"{', '.join(encoders())}; choose another codec, or install the `av` wheel from PyPI"
        )
    if not samples.size:
        return samples
    rates_hz = CODECS[codec].rates_hz or (rate_hz,)
    codec_hz = min((rate for rate in rates_hz if rate >= rate_hz), default=max(rates_hz))
    clipped = np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)
    decoded = _fit(
        CODECS[codec].run(_resample(clipped, rate_hz, codec_hz), codec_hz), round(samples.size * codec_hz / rate_hz)
    )
    return _fit(_resample(decoded, codec_hz, rate_hz), samples.size)


def _resample(samples: FloatArray, from_hz: int, to_hz: int) -> FloatArray:
    if from_hz == to_hz:
        return samples
    resampled: FloatArray = soxr.resample(samples, from_hz, to_hz)
    return resampled


def _fit(samples: FloatArray, size: int) -> FloatArray:
    """Cut samples (n,) at ``size``, or add zeros to it: float32 (size,)."""
    fitted = np.zeros(size, np.float32)
    kept = samples[:size]
    fitted[: kept.size] = kept
    return fitted
