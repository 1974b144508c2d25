"""What a training window meets anew each time it is drawn: noise, warps, masks, mixup.

Windows are composed once and read in every epoch; these changes cost little and are never the same twice. Everything
random comes from the np.random.Generator that is passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from batchser.features import HARMONIC_HZ, centre, compressed_spectra, log_mel, pitch_bins_hz, pitch_strength
from batchser.records import FloatArray, IntArray
from batchser.settings import FeatureSettings
from batchser.training.augment.line import active_level
from batchser.training.recipe import FitSettings

_MASKS: Final = 2  # SpecAugment masks of each kind
_WARPED: Final = 2 / 3  # of the examples
_NOISE_S: Final = 300  # of noise to draw from
_SLOPE: Final = (0.0, 1.5)  # power falls with frequency to this power: white to a little over pink
_LOW_HZ: Final = (100.0, 350.0)  # the noise's own band: a line's, or wider
_HIGH_HZ: Final = (3200.0, 4000.0)
_HIDDEN: Final = 2.5  # a noise hides pitch as if its magnitude were so much larger (measured: tests/test_perturb.py)
_TO_THE_END: Final = 0.5  # of noisy windows: their silent end is the line's, else the recording has ended


@dataclass(frozen=True, slots=True)
class LineNoise:
    """A line's noise for centred log-mel windows, added in the mel domain, where powers of voice and noise add up.

    The windows must have kept their colour: where each band has lost its own mean, powers no longer compare.
    On average it gives what log-mel of the noisy sound would be, and the sound itself is not needed; how voice and
    noise interfere in a moment is lost. ``power`` float32 (n, bands) are frames of white noise, of mean 1 in each band,
    and ``spectra`` float32 (n, bins) their compressed spectra (no bins where pitch is not named);
    ``centre_hz`` and ``width_hz`` float32 (F,) are the bands'.
    """

    features: FeatureSettings
    power: FloatArray
    spectra: FloatArray
    centre_hz: FloatArray
    width_hz: FloatArray

    @classmethod
    def of(cls, features: FeatureSettings) -> LineNoise:
        """Make noise for features, always the same."""
        import librosa  # heavy (numba)

        rng = np.random.default_rng(0)
        windows = max(2, _NOISE_S * 1000 // features.window_ms)
        sound = rng.standard_normal((windows, features.window_samples)).astype(np.float32)
        power = 10 ** (log_mel(sound, features).reshape(-1, features.num_mels) / 10)
        has_pitch = features.num_bands < features.num_features
        spectra = compressed_spectra(sound, features) if has_pitch else np.empty((*power.shape[:1], 0), np.float32)
        edges_hz = librosa.mel_frequencies(features.num_mels + 2, fmin=features.mel_min_hz, fmax=features.mel_max_hz)
        return cls(
            features, (power / power.mean(axis=0)).astype(np.float32), spectra.reshape(len(power), -1),
            edges_hz[1:-1].astype(np.float32), ((edges_hz[2:] - edges_hz[:-2]) / 2).astype(np.float32),
        )  # fmt: skip

    def add(self, rng: np.random.Generator, x: FloatArray, settings: FitSettings) -> FloatArray:
        """Make ``noise_probability`` of the windows ``x`` float32 (B, T, F), centred log-mel and perhaps pitch, noisy.

        Noise lies ``noise_snr_db`` below the voice's active level, and has a colour and a band of its own; a window
        without a voice has none. Silence at a window's end is noisy, too, or lies past the recording's end and stays
        silent: one is as likely as the other.
        """
        noisy = np.flatnonzero(rng.random(len(x)) < settings.noise_probability)
        heard = frames_heard(x[noisy, :, : self.features.num_bands])
        noisy, heard = noisy[heard > 0], heard[heard > 0]  # silence has no level that noise could lie below
        if not noisy.size:
            return x
        found = x.copy()
        found[noisy] = self._noisy(rng, x[noisy], heard, settings.noise_snr_db)
        return found

    def _noisy(
        self, rng: np.random.Generator, x: FloatArray, heard: IntArray, snr_db: tuple[float, float]
    ) -> FloatArray:
        """Add noise to every window of ``x`` (b, T, F), of which ``heard`` (b,) frames sound, and centre it again."""
        x, pitch = np.split(x, [self.features.num_bands], axis=2)
        num_frames = np.where(rng.random(len(x)) < _TO_THE_END, x.shape[1], heard)
        inside = np.arange(x.shape[1]) < num_frames[:, None]  # (b, T)
        voice = np.where(inside[:, :, None], 10 ** (x / 10), np.float32(0.0))
        level = active_level(voice @ self.width_hz)
        slope = rng.uniform(*_SLOPE, (len(x), 1))
        shape = (self.centre_hz / 1000) ** -slope  # (b, F)
        low_hz, high_hz = (rng.uniform(*edges_hz, (len(x), 1)) for edges_hz in (_LOW_HZ, _HIGH_HZ))
        shape *= (self.centre_hz > low_hz) & (self.centre_hz < high_hz)
        wanted = level * 10 ** (-rng.uniform(*snr_db, len(x)) / 10)
        shape *= (wanted / np.maximum(shape @ self.width_hz, np.finfo(np.float32).tiny))[:, None]
        starts = rng.integers(0, len(self.power) - x.shape[1] + 1, len(x))
        rows = starts[:, None] + np.arange(x.shape[1])  # (b, T)
        noise = self.power[rows] * shape[:, None].astype(np.float32)
        if pitch.size:
            noises = self._pitch_of_noise(rows, slope, low_hz)
            # Past the end there is no noise to hide anything.
            part = np.where(inside, self._part_heard(voice, noise), np.float32(1.0))[:, :, None]
            pitch = part * pitch + (1 - part) * noises
        together = 10 * np.log10(np.maximum(voice + noise, np.float32(1e-10)))
        return np.concatenate([centre(together.astype(np.float32), num_frames, self.features), pitch], axis=2)

    def _part_heard(self, voice: FloatArray, noise: FloatArray) -> FloatArray:
        """How much of a voice's pitch is left beside a noise, 0 to 1, by powers (b, T, bands) of both: (b, T)."""
        harmonic = self.width_hz * np.exp(-np.square(self.centre_hz / HARMONIC_HZ))
        heard, hides = (np.sqrt(power @ harmonic) for power in (voice, noise))
        return np.asarray(heard / np.maximum(heard + _HIDDEN * hides, np.finfo(np.float32).tiny))

    def _pitch_of_noise(self, rows: IntArray, slope: FloatArray, low_hz: FloatArray) -> FloatArray:
        """The pitch in frames ``rows`` (b, T) of a noise by chance, and by its colour and band, both (b, 1)."""
        bins_hz = np.maximum(pitch_bins_hz(self.features), 1)
        tint = (bins_hz / 1000) ** (-slope / 4)  # (b, bins), of square roots of magnitudes
        tint *= (1 + (low_hz / bins_hz) ** 8) ** -0.25  # a line's edge, as augment.line.band_pass has it
        return pitch_strength(self.spectra[rows] * tint[:, None].astype(np.float32), self.features)


def frames_heard(x: FloatArray) -> IntArray:
    """How many frames of each centred window (B, T, F) there are up to the last that is not all floor: int32 (B,)."""
    loud = x.max(axis=2) > x.min(axis=(1, 2))[:, None] + 1e-3  # (B, T)
    last = x.shape[1] - loud[:, ::-1].argmax(axis=1)
    return np.where(loud.any(axis=1), last, 0).astype(np.int32)


def warp(rng: np.random.Generator, x: FloatArray, settings: FitSettings, num_bands: int | None = None) -> None:
    """Stretch the bands and the frames of each (T, F) example of ``x`` (B, T, F), in place.

    Bands, the first ``num_bands`` features (None: all), from the lowest on, as another vocal tract would (VTLP: Jaitly
    and Hinton 2013), frames about the middle; either of two examples in three, by up to ``frequency_warp`` and
    ``time_warp`` of their distance. Beyond an edge its last one is repeated.
    """
    bands, middle = x[:, :, :num_bands], (x.shape[1] - 1) / 2
    for axis, most, origin, part in ((1, settings.frequency_warp, 0.0, bands), (0, settings.time_warp, middle, x)):
        if most:
            places = np.arange(part.shape[1 + axis], dtype=np.float32) - origin
            for example in part:
                if rng.random() < _WARPED:
                    example[:] = _interpolated(example, places * (1 + rng.uniform(-most, most)) + origin, axis)


def _interpolated(x: FloatArray, places: FloatArray, axis: int) -> FloatArray:
    """``x`` (T, F) at fractional places (n,) of an axis, linearly."""
    places = np.clip(places, 0, x.shape[axis] - 1)
    below = np.minimum(places.astype(np.int32), x.shape[axis] - 2)
    part = (places - below).astype(np.float32)
    part = part if axis else part[:, None]
    return (1 - part) * x.take(below, axis) + part * x.take(below + 1, axis)


def mask(rng: np.random.Generator, x: FloatArray, settings: FitSettings) -> None:
    """Set stripes of each (T, F) example of ``x`` (B, T, F) to 0, in place: SpecAugment (Park et al. 2019)."""
    num_frames, num_features = x.shape[1:]
    for example in x:
        for _ in range(_MASKS):
            width = int(rng.integers(0, settings.frequency_mask + 1))
            first = int(rng.integers(0, num_features - width + 1))
            example[:, first : first + width] = 0
            width = int(rng.integers(0, settings.time_mask + 1))
            first = int(rng.integers(0, num_frames - width + 1))
            example[first : first + width] = 0


def mix(rng: np.random.Generator, x: FloatArray, y: FloatArray, alpha: float) -> tuple[FloatArray, FloatArray]:
    """Blend each example with another one of the batch, inputs and targets alike: mixup (Zhang et al. 2018)."""
    order = rng.permutation(len(x))
    part = rng.beta(alpha, alpha, len(x)).astype(np.float32)
    part_x = part.reshape(-1, *[1] * (x.ndim - 1))
    part_y = part.reshape(-1, *[1] * (y.ndim - 1))
    return part_x * x + (1 - part_x) * x[order], part_y * y + (1 - part_y) * y[order]
