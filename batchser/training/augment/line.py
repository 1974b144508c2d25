"""What a telephone line does to speech: a narrow band, noise, packets that never arrive.

Every function takes and gives float32 mono samples (n,); what is random comes from the np.random.Generator alone.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import scipy.fft
import scipy.signal

from batchser.records import FloatArray

_FRAME_S: Final = 0.02  # a packet of G.711 over RTP, and the step in which activity is measured
_ACTIVE_MARGIN_DB: Final = 15.9  # ITU-T P.56
_LEVELLINGS: Final = 20
_LOWEST_HZ: Final = 100.0  # of a handset's slope


def band_pass(samples: FloatArray, rate_hz: int, low_hz: float = 300.0, high_hz: float = 3400.0) -> FloatArray:
    """Keep a telephone's band (Butterworth, order 4), (n,) → (n,); 300–3400 Hz is ITU-T G.712's."""
    return np.asarray(scipy.signal.sosfilt(_sections(rate_hz, low_hz, high_hz), samples), np.float32)


@functools.lru_cache(maxsize=8)
def _sections(rate_hz: int, low_hz: float, high_hz: float) -> FloatArray:
    return np.asarray(scipy.signal.butter(4, [low_hz, high_hz], "bandpass", fs=rate_hz, output="sos"))


def colour(samples: FloatArray, rate_hz: int, db_per_octave: float) -> FloatArray:
    """Raise what lies above 1 kHz and lower what lies below, by so much an octave, down to 100 Hz: (n,) → (n,).

    The mean level stays, or dull handsets would be the ones that clip.
    """
    power = float(np.mean(np.square(samples, dtype=np.float64))) if samples.size else 0.0
    if not power:
        return samples
    frequencies = np.maximum(np.fft.rfftfreq(samples.size, 1 / rate_hz), _LOWEST_HZ)
    gains = 10 ** (db_per_octave / 20 * np.log2(frequencies / 1000))
    coloured = scipy.fft.irfft(scipy.fft.rfft(samples) * gains, samples.size)
    return scale_to(np.asarray(coloured, np.float32), 10 * np.log10(power))


def scale_to(samples: FloatArray, level_dbfs: float) -> FloatArray:
    """Bring the mean level to ``level_dbfs``; silence stays silent."""
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0
    return samples * np.float32(10 ** (level_dbfs / 20) / rms) if rms > 1e-7 else samples


def active_level_dbfs(samples: FloatArray, rate_hz: int) -> float:
    """Level of the parts that are active, so that pauses do not lower it; −100 for silence.

    As ITU-T P.56 (method B) defines it: the mean level over what lies at most 15.9 dB below that same mean. Measured
    in frames of 20 ms, without P.56's hangover of 0.2 s.
    """
    size = max(1, round(_FRAME_S * rate_hz))
    whole = samples.size // size * size
    frames = samples[:whole].reshape(-1, size) if whole else samples.reshape(1, -1)
    power = np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / max(1, frames.shape[1])
    if not power.any():
        return -100.0
    return max(-100.0, float(10 * np.log10(active_level(power))))


def active_level(power: FloatArray) -> FloatArray:
    """Mean power of those frames (…, T) that lie at most 15.9 dB below that same mean: (…); 0 where all are silent."""
    level = power.mean(axis=-1, keepdims=True)
    for _ in range(_LEVELLINGS):  # it only rises, and settles after a few rounds
        active = power >= level * 10 ** (-_ACTIVE_MARGIN_DB / 10)
        level = (power * active).sum(axis=-1, keepdims=True) / active.sum(axis=-1, keepdims=True)
    return np.asarray(level[..., 0])


def add_noise(samples: FloatArray, noise: FloatArray, snr_db: float, rate_hz: int) -> FloatArray:
    """Add noise (n,) so that it lies ``snr_db`` below the samples' active level; silence stays silent."""
    level_dbfs = active_level_dbfs(samples, rate_hz)
    return samples if level_dbfs <= -100.0 else samples + scale_to(noise, level_dbfs - snr_db)


def lose_packets(
    rng: np.random.Generator,
    samples: FloatArray,
    rate_hz: int,
    share: float,
    mean_burst: float = 2.0,
    concealed: bool = True,
) -> FloatArray:
    """Lose packets of 20 ms in bursts, as a network does (Gilbert 1960): (n,) → (n,).

    Parameters
    ----------
    share : of the packets that are lost, 0…1, in the long run
    mean_burst : packets lost in a row, on average
    concealed : the first packet of a burst is the last one heard, repeated at half its amplitude, and the rest of the
        burst is silent, as a simple jitter buffer plays it; else all of the burst is silent
    """
    size = max(1, round(_FRAME_S * rate_hz))
    draws = rng.random(-(-samples.size // size))
    ends, begins = 1 / mean_burst, share / max(1e-9, 1 - share) / mean_burst
    heard, lost = samples.copy(), False
    for k, draw in enumerate(draws.tolist()):
        before = lost
        lost = draw < (share if k == 0 else 1 - ends if before else begins)
        if lost:
            packet = heard[k * size : (k + 1) * size]
            repeated = concealed and not before and k > 0
            packet[:] = heard[(k - 1) * size : k * size][: packet.size] / 2 if repeated else 0.0
    return heard
