"""From windows to features: one STFT for a batch, and every feature of paper 000's stack, and pitch, from it.

A window's features depend on that window alone, frames lie wholly inside it (``center=False``), and each of the stack
equals librosa's function on the same 3 seconds (tests/test_features.py states the tolerance). So streaming
equals the whole file by construction, whatever the blocks and batches.

    samples (B, N) → frames (B, T, fft) → |STFT| (B, T, fft/2 + 1) → mel, chroma, contrast, pitch → mfcc, delta, tonnetz

All spectra are float32 and all sums matrix products; delta is librosa's Savitzky-Golay filter written as a
matrix over the window's frames, edges included.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal

from batchser.features.prosody import window_statistics
from batchser.records import FloatArray, IntArray
from batchser.settings import FeatureSettings

_AMIN = 1e-10  # librosa.power_to_db's floor on power
_DELTA_WIDTH = 9  # librosa.feature.delta's default
_CONTRAST_QUANTILE = 0.02  # librosa.feature.spectral_contrast's default
HARMONIC_HZ = 900.0  # where voices are harmonic: a bin's weight for pitch falls with frequency as exp(−(f / 900)²)
_PITCH_EDGES_HZ = (80.0, 1800.0)  # hum lies below; above, weights are next to nothing
_CHUNK_WINDOWS = 4  # frames and spectra of this many windows stay in the processor's cache
_MEL_GROUPS = 4  # mel filters are narrow: in groups, each over the bins that it hears, they are a quarter of the work


@dataclass(frozen=True, slots=True)
class Features:
    """Features of a batch: ``mel_db`` float32 (B, T, num_mels) for the gate, ``stack`` float32 (B, T, num_features)
    for the network, in the order of ``FeatureSettings.names``; (B, 1, num_features) where they are of whole windows.
    """

    mel_db: FloatArray
    stack: FloatArray


@dataclass(frozen=True, slots=True)
class _Matrices:
    """The constant matrices of one FeatureSettings, all float32."""

    window: FloatArray  # (fft,)
    mel: tuple[tuple[slice, FloatArray], ...]  # for groups of bands from low to high: bins, (those bins, those bands)
    dct: FloatArray  # (num_mels, num_mfcc)
    delta: FloatArray  # (T, T)
    chroma: FloatArray  # (fft/2 + 1, num_chroma)
    tonnetz: FloatArray  # (num_chroma, 6)
    contrast_bands: tuple[tuple[int, int, int], ...]  # first bin, end bin, bins in a quantile
    pitch: FloatArray  # (the bins that count, num_pitches + 1); of no use where pitch is not named


@functools.lru_cache(maxsize=8)
def _matrices(settings: FeatureSettings) -> _Matrices:
    import librosa  # heavy (numba), and needed for its filter banks only

    s = settings
    mel = librosa.filters.mel(
        sr=s.rate_hz, n_fft=s.fft_samples, n_mels=s.num_mels, fmin=s.mel_min_hz, fmax=s.mel_max_hz
    )
    chroma = librosa.filters.chroma(sr=s.rate_hz, n_fft=s.fft_samples, tuning=0.0, n_chroma=s.num_chroma)
    dct = scipy.fft.dct(np.eye(s.num_mels), axis=0, type=2, norm="ortho")[: s.num_mfcc]
    delta = np.eye(s.num_frames)
    if s.num_frames >= _DELTA_WIDTH:
        delta = scipy.signal.savgol_filter(delta, _DELTA_WIDTH, deriv=1, polyorder=1, axis=0, mode="interp")
    return _Matrices(
        window=_taper(s),
        mel=_mel_groups(mel.T),
        dct=np.ascontiguousarray(dct.T, np.float32),
        delta=delta.astype(np.float32),
        chroma=np.ascontiguousarray(chroma.T, np.float32),
        tonnetz=_tonnetz_matrix(s.num_chroma),
        contrast_bands=_contrast_bands(s),
        pitch=_pitch_matrix(s) if "pitch" in s.names else np.empty((0, 0), np.float32),
    )


def _mel_groups(mel: FloatArray) -> tuple[tuple[slice, FloatArray], ...]:
    """Cut a mel filter bank (fft/2 + 1, num_mels) into groups of bands, each with only the bins that it hears."""
    groups = []
    for bands in np.array_split(mel, min(_MEL_GROUPS, mel.shape[1]), axis=1):
        heard = np.flatnonzero(bands.any(axis=1))
        bins = slice(heard[0], heard[-1] + 1) if len(heard) else slice(0, 1)
        groups.append((bins, np.ascontiguousarray(bands[bins], np.float32)))
    return tuple(groups)


def _taper(settings: FeatureSettings) -> FloatArray:
    """The window function of a frame, zeros on either side where it is shorter, as librosa.stft does it: (fft,)."""
    size = settings.taper_samples or settings.fft_samples
    before = (settings.fft_samples - size) // 2
    taper = np.zeros(settings.fft_samples, np.float32)
    taper[before : before + size] = scipy.signal.get_window(settings.taper, size, fftbins=True)
    return taper


def _tonnetz_matrix(num_chroma: int) -> FloatArray:
    """Chroma to tonal centroids (fifths, minor and major thirds), Harte et al. 2006, as in librosa.feature.tonnetz."""
    dim_map = np.linspace(0, 12, num=num_chroma, endpoint=False)
    scale = np.asarray([7.0 / 6, 7.0 / 6, 3.0 / 2, 3.0 / 2, 2.0 / 3, 2.0 / 3])
    phase = np.multiply.outer(scale, dim_map)
    phase[::2] -= 0.5
    radius = np.array([1, 1, 1, 1, 0.5, 0.5])
    return (radius[:, np.newaxis] * np.cos(np.pi * phase)).T.astype(np.float32)


def _contrast_bands(settings: FeatureSettings) -> tuple[tuple[int, int, int], ...]:
    """Octave bands of spectral contrast (Jiang et al. 2002), cut at the very bins where librosa cuts them."""
    bins_hz = np.fft.rfftfreq(settings.fft_samples, 1 / settings.rate_hz)
    edges_hz = np.zeros(settings.num_contrast_bands + 2)
    edges_hz[1:] = settings.contrast_min_hz * 2.0 ** np.arange(settings.num_contrast_bands + 1)
    bands = []
    for k, (low_hz, high_hz) in enumerate(itertools.pairwise(edges_hz)):
        inside = np.flatnonzero((bins_hz >= low_hz) & (bins_hz <= high_hz))
        first, end = int(inside[0]), int(inside[-1]) + 1
        if k > 0:
            first -= 1  # each band but the lowest also takes its lower neighbour's last bin
        last_band = k == settings.num_contrast_bands
        if last_band:
            end = len(bins_hz)
        num_quantile = max(1, round(_CONTRAST_QUANTILE * (end - first)))
        bands.append((first, end if last_band else end - 1, int(num_quantile)))
    return tuple(bands)


def pitch_bins_hz(settings: FeatureSettings) -> FloatArray:
    """Frequencies of the bins of a spectrum that pitch is heard in, from 0 on: float32 (bins,)."""
    bins_hz = np.fft.rfftfreq(settings.fft_samples, 1 / settings.rate_hz).astype(np.float32)
    return bins_hz[bins_hz <= _PITCH_EDGES_HZ[1]]


def _pitch_matrix(settings: FeatureSettings) -> FloatArray:
    """Compressed spectrum to its autocorrelation at the period of each pitch, and, last, at none: its sum."""
    bins_hz = pitch_bins_hz(settings).astype(np.float64)
    pitches_hz = np.geomspace(settings.pitch_min_hz, settings.pitch_max_hz, settings.num_pitches, endpoint=False)
    periods_s = np.append(1 / pitches_hz, 0.0)
    weight = np.exp(-np.square(bins_hz / HARMONIC_HZ)) * (bins_hz > _PITCH_EDGES_HZ[0])
    return (weight[:, None] * np.cos(2 * np.pi * bins_hz[:, None] * periods_s)).astype(np.float32)


def extract(samples: FloatArray, settings: FeatureSettings) -> Features:
    """Compute the features of a batch of windows.

    Parameters
    ----------
    samples : float32 (B, window_samples) at ``settings.rate_hz``, shorter windows padded with zeros
    settings : which features, and how

    Returns
    -------
    Features : ``mel_db`` float32 (B, T, num_mels) and ``stack`` float32 (B, T, num_features)

    Raises
    ------
    ConfigError : statistics of whole windows where Praat is not installed
    """
    mel_db = np.empty((len(samples), settings.num_frames, settings.num_mels), np.float32)
    num_steps = 1 if settings.of_windows else settings.num_frames
    stack = np.empty((len(samples), num_steps, settings.num_features), np.float32)
    for start in range(0, len(samples), _CHUNK_WINDOWS):
        chunk = slice(start, start + _CHUNK_WINDOWS)
        mel_db[chunk], parts = _extract_chunk(samples[chunk], settings)
        at = 0
        for part in parts:
            stack[chunk, :, at : at + part.shape[2]] = part
            at += part.shape[2]
    return Features(mel_db, stack)


def log_mel(samples: FloatArray, settings: FeatureSettings) -> FloatArray:
    """What the gate hears, as ``extract`` has it, without the features: (B, window_samples) → (B, T, num_mels)."""
    mel_db = np.empty((len(samples), settings.num_frames, settings.num_mels), np.float32)
    for start in range(0, len(samples), _CHUNK_WINDOWS):
        chunk = slice(start, start + _CHUNK_WINDOWS)
        mel_db[chunk] = _mel_db(_power(samples[chunk], settings), settings)
    return mel_db


def _mel_db(power: FloatArray, settings: FeatureSettings) -> FloatArray:
    """Log-mel of power spectra: (b, T, fft/2 + 1) → float32 (b, T, num_mels)."""
    mel = np.empty((*power.shape[:2], settings.num_mels), np.float32)
    band = 0
    for bins, bands in _matrices(settings).mel:
        np.matmul(power[:, :, bins], bands, out=mel[:, :, band : band + bands.shape[1]])
        band += bands.shape[1]
    return power_to_db(mel, settings.top_db, out=mel)


def _power(samples: FloatArray, settings: FeatureSettings) -> FloatArray:
    """Power spectra of the frames inside each window: (b, N) → float32 (b, T, fft/2 + 1)."""
    magnitude = np.abs(_stft(samples, settings, _matrices(settings).window))
    return np.asarray(np.square(magnitude, out=magnitude))


def _extract_chunk(samples: FloatArray, settings: FeatureSettings) -> tuple[FloatArray, list[FloatArray]]:
    """Log-mel (b, T, num_mels), and each feature named in the settings, (b, T, its width)."""
    m = _matrices(settings)
    power = _power(samples, settings)  # (b, T, fft/2 + 1)
    mel_db = _mel_db(power, settings)  # (b, T, num_mels)
    below_peak = mel_db - mel_db.max(axis=(1, 2), keepdims=True) if settings.below_peak else mel_db
    found: dict[str, FloatArray] = {"mel": below_peak}
    if settings.of_windows:
        statistics = window_statistics(samples, settings)
        return mel_db, [statistics[name][:, None] for name in settings.names]
    wanted = set(settings.names)
    if wanted & {"mfcc", "delta"}:
        found["mfcc"] = mel_db @ m.dct  # (b, T, num_mfcc)
    if "delta" in wanted:
        found["delta"] = m.delta @ found["mfcc"]  # (T, T) @ (b, T, num_mfcc)
    if wanted & {"chroma", "tonnetz"}:
        found["chroma"] = _normalise(power @ m.chroma, np.inf)  # (b, T, num_chroma)
    if "tonnetz" in wanted:
        found["tonnetz"] = _normalise(found["chroma"], 1) @ m.tonnetz  # (b, T, 6)
    if "contrast" in wanted:
        found["contrast"] = _contrast(np.sqrt(power), m.contrast_bands)
    if "pitch" in wanted:
        found["pitch"] = pitch_strength(_compressed(power, settings), settings)
    return mel_db, [found[name] for name in settings.names]


def _stft(samples: FloatArray, settings: FeatureSettings, window: FloatArray) -> FloatArray:
    """Spectra of the frames inside each window, complex64 (b, T, fft/2 + 1); frames are a view, not copies."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, settings.fft_samples, axis=1)
    frames = frames[:, :: settings.hop_samples][:, : settings.num_frames]  # (b, T, fft)
    spectrum: FloatArray = scipy.fft.rfft(frames * window, axis=2, overwrite_x=True)
    return spectrum


def power_to_db(power: FloatArray, top_db: float, out: FloatArray | None = None) -> FloatArray:
    """Power in decibels, at most ``top_db`` below the window's own peak: float32, the shape of ``power`` (B, …).

    librosa.power_to_db of each window alone; into ``out`` where it is given, which may be ``power`` itself.
    """
    db = np.maximum(power, np.float32(_AMIN), out=out)
    np.log10(db, out=db)
    db *= np.float32(10)
    peak = db.max(axis=tuple(range(1, db.ndim)), keepdims=True)
    return np.asarray(np.maximum(db, peak - np.float32(top_db), out=db))


def _normalise(values: FloatArray, order: float) -> FloatArray:
    """Scale each frame to unit norm (1 or max) over its last axis; frames without energy stay as they are."""
    length = np.linalg.norm(values, ord=order, axis=2, keepdims=True)
    tiny = np.finfo(np.float32).tiny
    return values / np.where(length < tiny, np.float32(1.0), length)


def _contrast(magnitude: FloatArray, bands: tuple[tuple[int, int, int], ...]) -> FloatArray:
    """Peak minus valley in dB per octave band, float32 (b, T, bands), as librosa.feature.spectral_contrast."""
    peaks, valleys = [], []
    for first, end, num_quantile in bands:
        band = np.sort(magnitude[:, :, first:end], axis=2)
        valleys.append(band[:, :, :num_quantile].mean(axis=2))
        peaks.append(band[:, :, -num_quantile:].mean(axis=2))
    peak, valley = np.stack(peaks, axis=2), np.stack(valleys, axis=2)
    return power_to_db(peak, 80.0) - power_to_db(valley, 80.0)


def compressed_spectra(samples: FloatArray, settings: FeatureSettings) -> FloatArray:
    """What pitch is found in, square roots of magnitudes: (B, N) → float32 (B, T, bins of ``pitch_bins_hz``)."""
    spectra = np.empty((len(samples), settings.num_frames, len(pitch_bins_hz(settings))), np.float32)
    for start in range(0, len(samples), _CHUNK_WINDOWS):
        chunk = slice(start, start + _CHUNK_WINDOWS)
        spectra[chunk] = _compressed(_power(samples[chunk], settings), settings)
    return spectra


def _compressed(power: FloatArray, settings: FeatureSettings) -> FloatArray:
    """Take the square roots of magnitudes in the bins that pitch is heard in, of power (b, T, fft/2 + 1)."""
    return np.sqrt(np.sqrt(power[:, :, : len(pitch_bins_hz(settings))]))


def pitch_strength(spectra: FloatArray, settings: FeatureSettings) -> FloatArray:
    """How strongly each pitch sounds, −1 to 1, float32 (B, T, num_pitches): the autocorrelation of spectra there.

    Generalised autocorrelation (Tolonen and Karjalainen 2000): magnitudes are compressed to their square root, so that
    harmonics count more than formants, and a voice keeps its pitch where a telephone has taken its fundamental away.
    Level has no effect, but what lies more than ``floor_db`` under the window's loudest frame fades, such as hum and a
    line's idle code in pauses.

    Parameters
    ----------
    spectra : float32 (B, T, bins), as ``compressed_spectra`` gives them
    settings : the pitches, and ``floor_db``; they name "pitch"
    """
    matrix = _matrices(settings).pitch
    strength = spectra @ matrix
    total = strength[:, :, -1:]
    floor = total.max(axis=1, keepdims=True) * np.float32(10 ** (-settings.floor_db / 40))  # of roots of magnitudes
    nothing = np.float32(_AMIN**0.25) * matrix[:, -1].sum()
    return np.asarray(strength[:, :, :-1] * (1 / np.maximum(total, np.maximum(floor, nothing))))


def frames_inside(num_samples: IntArray, settings: FeatureSettings) -> IntArray:
    """How many frames lie wholly inside the true length of each window, int32 (B,)."""
    inside = 1 + (num_samples - settings.fft_samples) // settings.hop_samples
    return np.clip(inside, 0, settings.num_frames).astype(np.int32)


def centre(mel_db: FloatArray, num_frames: IntArray, settings: FeatureSettings) -> FloatArray:
    """Take level and the line's colour out of log-mel: each band relative to its mean over the speech, (B, T, F).

    The mean is over active frames only, those whose loudest band lies within ``active_db`` of the window's: however
    much of a window is silence, the same speech looks the same. What lies more than ``floor_db`` under the window's
    peak counts as that, and nothing falls below ``centred_min_db``, so that a noisy line's silence looks like a clean
    one's; frames past the true length (``num_frames`` int32 (B,)) are silent. A louder copy has the same features.

    With ``keep_colour`` all bands are relative to one mean, and level alone is taken out: who speaks up speaks
    brighter, which a band's own mean would hide. ``floor_db`` is then the floor that counts: it lies some 15 dB under
    that mean, where quiet bands lower it.
    """
    outside = np.arange(mel_db.shape[1]) >= num_frames[:, None]  # (B, T)
    loudest = np.where(outside, -np.inf, mel_db.max(axis=2))  # (B, T)
    peak = loudest.max(axis=1, initial=-200.0, keepdims=True).astype(np.float32)  # (B, 1)
    active = (loudest >= peak - np.float32(settings.active_db)).astype(np.float32)
    floor = peak - np.float32(settings.floor_db)
    centred = np.maximum(mel_db, floor[:, :, None])
    windows, frames = np.nonzero(outside)
    centred[windows, frames] = floor[windows]
    count = np.maximum(active.sum(axis=1, keepdims=True), 1)  # (B, 1)
    mean = active[:, None, :] @ centred / count[:, :, None]  # (B, 1, F)
    centred -= mean.mean(axis=2, keepdims=True) if settings.keep_colour else mean
    return np.asarray(np.maximum(centred, np.float32(settings.centred_min_db), out=centred))


def network_input(stack: FloatArray, num_frames: IntArray, settings: FeatureSettings) -> FloatArray:
    """What the network reads of extracted features: centred, averaged over stretches, or as they are.

    Parameters
    ----------
    stack : float32 (B, T, F), as ``extract`` gives it
    num_frames : int32 (B,), frames inside each window's true length; beside centred log-mel there is no pitch past it
    settings : ``steps``, and ``centred`` with all that ``centre`` goes by

    Returns
    -------
    FloatArray : float32 (B, num_steps, F)
    """
    if settings.centred and settings.num_bands == settings.num_features:
        return centre(stack, num_frames, settings)
    if settings.centred:
        read = np.empty_like(stack)
        read[:, :, : settings.num_bands] = centre(stack[:, :, : settings.num_bands], num_frames, settings)
        read[:, :, settings.num_bands :] = stack[:, :, settings.num_bands :]
        read[np.arange(stack.shape[1]) >= num_frames[:, None], settings.num_bands :] = 0.0
        return read
    if not settings.steps or settings.of_windows:
        return stack
    averaged = np.empty((len(stack), settings.steps, stack.shape[2]), np.float32)
    for count in np.unique(num_frames):
        rows = num_frames == count
        averaged[rows] = _stretches(settings.num_frames, max(1, int(count)), settings.steps) @ stack[rows]
    return averaged


@functools.lru_cache(maxsize=512)
def _stretches(num_frames: int, inside: int, steps: int) -> FloatArray:
    """Means over ``steps`` equal stretches of the first ``inside`` frames, each of one frame at least: (steps, T)."""
    edges = np.linspace(0, inside, steps + 1)
    means = np.zeros((steps, num_frames), np.float32)
    for row, (low, high) in zip(means, itertools.pairwise(edges), strict=True):
        first = min(int(low), inside - 1)
        end = max(int(high), first + 1)
        row[first:end] = 1 / (end - first)
    return means


def level_below_peak(mel_db: FloatArray, num_frames: IntArray, top_db: float) -> FloatArray:
    """Log-mel from −1 (``top_db`` under the window's peak, or padding) to 1 (the peak): the gate's input, (B, T, F)."""
    outside = np.arange(mel_db.shape[1]) >= num_frames[:, None]
    levels = np.where(outside[:, :, None], np.float32(-np.inf), mel_db) if outside.any() else mel_db
    peak = levels.max(axis=(1, 2), initial=-200.0, keepdims=True)
    levels = levels - peak
    levels /= np.float32(top_db / 2)
    levels += np.float32(1.0)
    return np.asarray(np.maximum(levels, np.float32(-1.0), out=levels))
