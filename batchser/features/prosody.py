"""Statistics of a whole window, as paper 003 takes them: amplitude, rhythm, pitch by Praat, MFCCs, spectral shape.

One number a window instead of one a frame, through librosa and Praat as in the paper, so some 150 ms a window: the
price of a published system, not of ours. Praat comes with the extra ``batchser[prosody]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from batchser.extras import load_extra
from batchser.records import FloatArray
from batchser.settings import PROSODY, WINDOW_FEATURE_NAMES, FeatureSettings

_TRIM_DB: Final = 40.0  # silence at the ends, under the loudest frame: the paper's "-40 dB"
_PITCH_HZ: Final = (50.0, 500.0)
_EPSILON: Final = 1e-10
# Praat's own defaults for its voice report: shortest and longest period in s, largest factor between two periods, and
# between two amplitudes.
_PERIODS: Final = (0.0001, 0.02, 1.3)
_AMPLITUDE_FACTOR: Final = 1.6


def check_libraries(settings: FeatureSettings) -> None:
    """Say before any work what this machine lacks for these features.

    Raises
    ------
    ConfigError : prosody without Praat
    """
    if "prosody" in settings.names:
        _load_praat()


def _load_praat() -> Any:
    return load_extra("parselmouth", "prosody", "features.names: prosody needs Praat")


def window_statistics(samples: FloatArray, settings: FeatureSettings) -> Mapping[str, FloatArray]:
    """Compute the statistics of settings.WINDOW_FEATURE_NAMES for a batch of windows.

    Parameters
    ----------
    samples : float32 (B, window_samples); silent ends, padding among them, are trimmed first
    settings : rate, frame and hop, and the number of MFCCs

    Returns
    -------
    Mapping : by name, float32 (B, its width); 0 throughout for a window without a sound, and where nothing is voiced;
        prosody is there where the settings name it: it alone needs Praat
    """
    rows = [_one(window, settings) for window in samples]
    return {name: np.array([row[name] for row in rows], np.float32) for name in rows[0]}


def _one(samples: FloatArray, settings: FeatureSettings) -> dict[str, list[float]]:
    import librosa

    if not np.any(samples):
        return {name: [0.0] * settings.width_of(name) for name in WINDOW_FEATURE_NAMES}
    framing: dict[str, Any] = {"frame_length": settings.fft_samples, "hop_length": settings.hop_samples}
    y, _ = librosa.effects.trim(samples, top_db=_TRIM_DB, **framing)
    rate_hz = settings.rate_hz
    whole_frame = np.pad(y, (0, max(0, settings.fft_samples - len(y))))  # a click is shorter than a frame
    magnitude = np.abs(librosa.stft(whole_frame, n_fft=settings.fft_samples, hop_length=settings.hop_samples))
    mel = librosa.feature.melspectrogram(
        S=magnitude**2, sr=rate_hz, n_mels=settings.num_mels, fmin=settings.mel_min_hz, fmax=settings.mel_max_hz,
        n_fft=settings.fft_samples,
    )  # fmt: skip
    mfcc = librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=settings.num_mfcc)
    prosody = _prosody(y, rate_hz, framing) if "prosody" in settings.names else {}
    return {
        "prosody": [prosody[name] for name in PROSODY] if prosody else [],
        "centroid": [float(librosa.feature.spectral_centroid(S=magnitude, sr=rate_hz).mean())],
        "rolloff": [float(librosa.feature.spectral_rolloff(S=magnitude, sr=rate_hz).mean())],
        "flux": [float(librosa.onset.onset_strength(S=librosa.power_to_db(mel), sr=rate_hz).mean())],
        "mfcc_mean": mfcc.mean(axis=1).tolist(),
        "mfcc_deviation": mfcc.std(axis=1).tolist(),
    }


def _prosody(y: FloatArray, rate_hz: int, framing: Mapping[str, Any]) -> dict[str, float]:
    """Every value of settings.PROSODY by its name."""
    import librosa

    rms = librosa.feature.rms(y=y, **framing)[0]
    zcr = librosa.feature.zero_crossing_rate(y, **framing)[0]
    return {
        "duration_s": len(y) / rate_hz,
        "mean_amplitude": float(np.abs(y).mean()),
        "peak_amplitude": float(np.abs(y).max()),
        "rms_mean": float(rms.mean()),
        "rms_std": float(rms.std()),
        "intensity_db": float((20 * np.log10(rms + _EPSILON)).mean()),
        "tempo_bpm": float(librosa.feature.tempo(y=y, sr=rate_hz, hop_length=framing["hop_length"])[0]),
        "zcr_mean": float(zcr.mean()),
        "zcr_std": float(zcr.std()),
        **_voice(y, rate_hz),
    }


def _voice(y: FloatArray, rate_hz: int) -> dict[str, float]:
    """Pitch, jitter and shimmer by Praat; 0 where it hears no voice."""
    parselmouth = _load_praat()
    low, high = _PITCH_HZ
    found = dict.fromkeys(
        ("pitch_mean", "pitch_median", "pitch_std", "pitch_variation", "voiced_ratio", "jitter", "shimmer"), 0.0
    )
    if len(y) < 3 * rate_hz / low:  # Praat wants three of the longest periods
        return found
    sound = parselmouth.Sound(y.astype(np.float64), rate_hz)
    pitch = sound.to_pitch(pitch_floor=low, pitch_ceiling=high).selected_array["frequency"]
    voiced = pitch[pitch > 0]
    if not len(voiced):
        return found
    mean, std = float(voiced.mean()), float(voiced.std())
    pulses = parselmouth.praat.call(sound, "To PointProcess (periodic, cc)", low, high)
    jitter = parselmouth.praat.call(pulses, "Get jitter (local)", 0, 0, *_PERIODS)
    shimmer = parselmouth.praat.call([sound, pulses], "Get shimmer (local)", 0, 0, *_PERIODS, _AMPLITUDE_FACTOR)
    return {
        "pitch_mean": mean,
        "pitch_median": float(np.median(voiced)),
        "pitch_std": std,
        "pitch_variation": 100 * std / mean,
        "voiced_ratio": len(voiced) / len(pitch),
        "jitter": float(np.nan_to_num(jitter)),  # undefined where there are too few periods
        "shimmer": float(np.nan_to_num(shimmer)),
    }
