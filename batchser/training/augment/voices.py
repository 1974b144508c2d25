"""Voices: the same words faster, slower, higher or lower.

Pitch and tempo are changed by audiomentations, whose transforms draw from the global generators of ``random`` and
``numpy.random``. Here a transform is made for each voice with ranges of one value, which our Generator drew: nothing
is left to chance, and the global generators are put back as they were.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from batchser.extras import load_extra
from batchser.records import FloatArray


@dataclass(frozen=True, slots=True)
class Voice:
    """How one voice is changed; clips of one speaker inside a window are changed alike."""

    speed: float = 1.0
    semitones: float = 0.0
    stretch: float = 1.0

    def change(self, samples: FloatArray, rate_hz: int) -> FloatArray:
        """Speed up, shift and stretch: float32 (n,) → (about n / speed / stretch,).

        Raises
        ------
        ConfigError : pitch or tempo is to be changed and audiomentations is not installed
        """
        changed = change_speed(samples, self.speed)
        if self.semitones:
            shift = load_audiomentations().PitchShift(self.semitones, self.semitones, p=1.0)
            changed = _transform(shift, changed, rate_hz)
        if self.stretch != 1.0:
            stretch = load_audiomentations().TimeStretch(
                self.stretch, self.stretch, leave_length_unchanged=False, p=1.0
            )
            changed = _transform(stretch, changed, rate_hz)
        return changed


def change_speed(samples: FloatArray, factor: float) -> FloatArray:
    """Play ``factor`` times as fast, pitch included (Ko et al. 2015): (n,) → (n / factor,)."""
    if factor == 1.0:
        return samples
    changed: FloatArray = soxr.resample(samples, factor, 1.0, quality="MQ").astype(np.float32)
    return changed


def load_audiomentations() -> Any:
    """Import audiomentations: a second, and only some recipes need it.

    Raises
    ------
    ConfigError : it is not installed
    """
    return load_extra("audiomentations", "train", "augment: changes of pitch and tempo need audiomentations")


def _transform(transform: Any, samples: FloatArray, rate_hz: int) -> FloatArray:
    """Apply one of audiomentations' transforms and leave the global generators as they were: float32 (n,) → (m,)."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  it is theirs that is kept
    try:
        own = np.array(samples, np.float32)  # a copy: it takes no samples that are mapped from a file
        return np.asarray(transform(own, rate_hz), np.float32)
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
