"""The lines that a model is evaluated on: clean, and through each degradation that calls meet.

Each degradation takes an np.random.Generator, float32 mono samples (n,) and their rate, and gives float32 (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from batchser.records import FloatArray
from batchser.training.augment import codecs
from batchser.training.augment.line import add_noise, band_pass, lose_packets
from batchser.training.augment.sounds import coloured_noise

_LOST_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Degradation:
    """One row of the evaluation's table; ``codec`` is the one that it needs (None: none)."""

    name: str
    describe: str
    apply: Callable[[np.random.Generator, FloatArray, int], FloatArray]
    codec: str | None = None


def _clean() -> Degradation:
    return Degradation(
        "clean",
        "the clip at the model's rate, no further degradation",
        lambda rng, samples, rate_hz: samples.astype(np.float32, copy=False),
    )


def _coded(codec: str) -> Degradation:
    def apply(rng: np.random.Generator, samples: FloatArray, rate_hz: int) -> FloatArray:
        return codecs.round_trip(band_pass(samples, rate_hz), rate_hz, codec)

    return Degradation(codec, f"300–3400 Hz, then {codecs.CODECS[codec].describe}", apply, codec)


def _noisy(snr_db: int) -> Degradation:
    def apply(rng: np.random.Generator, samples: FloatArray, rate_hz: int) -> FloatArray:
        speech = band_pass(samples, rate_hz)
        noise = band_pass(coloured_noise(rng, samples.size, 1.0), rate_hz)
        return codecs.round_trip(add_noise(speech, noise, snr_db, rate_hz), rate_hz, "mu-law")

    describe = f"300–3400 Hz, pink noise of that band {snr_db} dB below the speech's active level, then mu-law"
    return Degradation(f"noise-{snr_db}db", describe, apply, "mu-law")


def _lossy() -> Degradation:
    def apply(rng: np.random.Generator, samples: FloatArray, rate_hz: int) -> FloatArray:
        line = codecs.round_trip(band_pass(samples, rate_hz), rate_hz, "mu-law")
        return lose_packets(rng, line, rate_hz, _LOST_SHARE)

    describe = (
        "300–3400 Hz, then mu-law; 5 % of the 20 ms packets lost, two in a row on average: the first of a burst "
        "repeats the packet before it at half its amplitude, the rest is silent"
    )
    return Degradation("packet-loss", describe, apply, "mu-law")


#: Every degradation by name, in the order of the evaluation's table.
DEGRADATIONS: Final[Mapping[str, Degradation]] = {
    degradation.name: degradation
    for degradation in (
        _clean(),
        *(_coded(codec) for codec in ("mu-law", "gsm-6.10", "opus-12k", "mp3-16k", "amr-12.2k")),
        _noisy(20),
        _noisy(10),
        _lossy(),
    )
}


def available() -> list[str]:
    """Names of the degradations that this machine's libraries can make, in the table's order."""
    encoders = codecs.encoders()
    return [name for name, it in DEGRADATIONS.items() if it.codec is None or it.codec in encoders]
