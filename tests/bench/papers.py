"""The way of the papers that batchser descends from: librosa's functions window by window, one `predict` a window.

Paper 000 ("dual-layer LSTM"): 40 MFCC with deltas, chroma, mel, spectral contrast and tonnetz at 22,050 Hz, then
LSTM 256 → LSTM 128 → Dense 256 → 8 emotions. Weights are random: they cost the same. Tonnetz is librosa's own example,
of a window's harmonic part: most of the time goes there, so it has a line of its own, and the whole is told without it,
too (tonnetz from the chroma at hand).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import soundfile
from material import RATE_HZ, ROLES

from batchser.records import FloatArray
from batchser.scoring import start_tensorflow

if TYPE_CHECKING:
    import keras

PAPER_RATE_HZ: Final = 22_050
WINDOW_S: Final = 3
_NUM_MFCC: Final = 40
_NUM_EMOTIONS: Final = 8
_WARM_UP: Final = 3  # numba compiles, TensorFlow traces


@dataclass(frozen=True, slots=True)
class PapersWay:
    """Milliseconds a window by step, the mean of ``num_windows`` windows; one thread."""

    num_windows: int
    resample_ms: float
    features_ms: float
    tonnetz_ms: float
    predict_ms: float

    @property
    def window_ms(self) -> float:
        """All steps of a window."""
        return self.cheap_window_ms + self.tonnetz_ms

    @property
    def cheap_window_ms(self) -> float:
        """All steps of a window, but for what tonnetz takes beyond the chroma at hand."""
        return self.resample_ms + self.features_ms + self.predict_ms


def measure_papers(calls: Sequence[Path], num_windows: int) -> PapersWay:
    """Score ``num_windows`` windows of the customers' channels, taken evenly from the calls."""
    start_tensorflow(1)
    windows = some_windows(calls, num_windows + _WARM_UP)
    network: keras.Model | None = None
    taken_ms = np.zeros((len(windows), 4))
    for k, window in enumerate(windows):
        started = time.perf_counter()
        samples = resample(window)
        resampled = time.perf_counter()
        features = extract(samples)
        extracted = time.perf_counter()
        harmonic_tonnetz(samples)
        heard = time.perf_counter()
        network = network or build(*features.shape)
        built = time.perf_counter()
        network.predict(features[np.newaxis], verbose=0)
        taken_ms[k] = resampled - started, extracted - resampled, heard - extracted, time.perf_counter() - built
    return PapersWay(num_windows, *(taken_ms[_WARM_UP:].mean(axis=0) * 1000).tolist())


def some_windows(calls: Sequence[Path], count: int) -> list[FloatArray]:
    """Whole windows of the scored channel, float32 (WINDOW_S · RATE_HZ,) each."""
    num_samples = WINDOW_S * RATE_HZ
    windows: list[FloatArray] = []
    while len(windows) < count:
        for k, call in enumerate(calls[: count - len(windows)]):
            samples, _ = soundfile.read(call, dtype="float32", always_2d=True)
            at = (7 * len(windows) + k) % max(1, len(samples) // num_samples) * num_samples
            window = samples[at : at + num_samples, ROLES.index("customer")]
            windows.append(np.pad(window, (0, num_samples - len(window))))
    return windows


def resample(window: FloatArray) -> FloatArray:
    """What librosa.load(sr=22050) does to 8 kHz audio."""
    import librosa

    return librosa.resample(window, orig_sr=RATE_HZ, target_sr=PAPER_RATE_HZ)


def extract(samples: FloatArray) -> FloatArray:
    """Paper 000's features of one window, float32 (130, 233); tonnetz of the chroma at hand."""
    import librosa

    mfcc = librosa.feature.mfcc(y=samples, sr=PAPER_RATE_HZ, n_mfcc=_NUM_MFCC)
    chroma = librosa.feature.chroma_stft(y=samples, sr=PAPER_RATE_HZ)
    stack = [
        mfcc,
        librosa.feature.delta(mfcc),
        chroma,
        librosa.feature.melspectrogram(y=samples, sr=PAPER_RATE_HZ),
        librosa.feature.spectral_contrast(y=samples, sr=PAPER_RATE_HZ),
        librosa.feature.tonnetz(sr=PAPER_RATE_HZ, chroma=chroma),
    ]
    return np.concatenate(stack).T.astype(np.float32)


def harmonic_tonnetz(samples: FloatArray) -> FloatArray:
    """Tonnetz as librosa's documentation has it: of the harmonic part, by a constant-Q transform."""
    import librosa

    return librosa.feature.tonnetz(y=librosa.effects.harmonic(samples), sr=PAPER_RATE_HZ)


def build(num_frames: int, num_features: int) -> keras.Model:
    """Paper 000's best network, configuration D."""
    from keras import Input, Sequential, layers

    return Sequential(
        [
            Input((num_frames, num_features)),
            layers.LSTM(256, return_sequences=True),
            layers.BatchNormalization(),
            layers.Dropout(0.4),
            layers.LSTM(128),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(_NUM_EMOTIONS, activation="softmax"),
        ]
    )
