"""What may happen to a training window: the table ``[augment]`` of a recipe, checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Final

from batchser.errors import ConfigError
from batchser.training.augment import codecs
from batchser.training.augment.voices import load_audiomentations

_CODECS: Final[Mapping[str, float]] = {
    "mu-law": 0.5, "a-law": 0.18, "pcm16": 0.12, "gsm-6.10": 0.1, "opus-12k": 0.05, "mp3-16k": 0.05,
}  # fmt: skip
#: The widest range of a signal-to-noise ratio.
SNR_DB: Final = (-20.0, 100.0)
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "pitch_semitones": (-12, 12),
    "stretch": (0.5, 2),
    "background_snr_db": SNR_DB,
    "music_snr_db": SNR_DB,
    "low_hz": (10, 1000),
    "high_hz": (1500, 20_000),
    "colour_db_per_octave": (-6, 6),
    "noise_snr_db": SNR_DB,
    "noise_slope": (0, 3),
    "packet_loss_share": (0, 0.5),
    "level_db": (-60, 40),
}


@dataclass(frozen=True, slots=True)
class AugmentSettings:
    """What may happen to a training window: the recipe's table ``[augment]``.

    Attributes
    ----------
    speeds
        Factors of speed, pitch included (Ko et al. 2015); one is drawn for each voice.
    pitch_semitones, pitch_probability
        Range of shifts that leave the tempo as it is.
    stretch, stretch_probability
        Range of factors of tempo that leave the pitch as it is.
    room_probability
        Of a room's response, where there are any.
    background_probability, background_snr_db, music_probability, music_snr_db
        Of a noise or music behind the voice, where there are any, and how far below the speech's active level it lies.
    band_pass_probability, low_hz, high_hz
        Of a band, and the ranges of its edges.
    colour_db_per_octave
        Range of what a handset adds for each octave above 1 kHz and takes away for each below; (0, 0): nothing.
    noise_probability, noise_snr_db, noise_slope
        Of the line's own noise, how far below the speech's active level it lies, and its colour (0 white, 1 pink).
    packet_loss_probability, packet_loss_share
        Of packets of 20 ms being lost, and the part of them that is.
    level_db
        Range of gains before the codec, which clips.
    codecs
        Weights of the codecs, by their names in codecs.CODECS; they need not sum to 1.

    Raises
    ------
    ConfigError
        With every value that is out of its range.
    """

    speeds: tuple[float, ...] = (0.88, 0.94, 1.0, 1.0, 1.06, 1.12)
    pitch_semitones: tuple[float, float] = (-2.0, 2.0)
    pitch_probability: float = 0.0
    stretch: tuple[float, float] = (0.9, 1.1)
    stretch_probability: float = 0.0
    room_probability: float = 0.1
    background_probability: float = 0.1
    background_snr_db: tuple[float, float] = (5.0, 30.0)
    music_probability: float = 0.0
    music_snr_db: tuple[float, float] = (10.0, 30.0)
    band_pass_probability: float = 0.9
    low_hz: tuple[float, float] = (200.0, 350.0)
    high_hz: tuple[float, float] = (3200.0, 3700.0)
    colour_db_per_octave: tuple[float, float] = (0.0, 0.0)
    noise_probability: float = 0.8
    noise_snr_db: tuple[float, float] = (0.0, 40.0)
    noise_slope: tuple[float, float] = (0.0, 1.5)
    packet_loss_probability: float = 0.15
    packet_loss_share: tuple[float, float] = (0.01, 0.08)
    level_db: tuple[float, float] = (-14.0, 8.0)
    codecs: Mapping[str, float] = field(default_factory=lambda: dict(_CODECS))

    def __post_init__(self) -> None:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        faults = [
            f"augment.{name}: received {value!r}, expected 0 to 1"
            for name, value in values.items()
            if name.endswith("_probability") and not _inside(value, 0, 1)
        ]
        for name, (least, most) in _RANGES.items():
            value = values[name]
            if not is_rising_pair(value, least, most):
                faults.append(
                    f"augment.{name}: received {value!r}, expected two rising numbers from {least:g} to {most:g}"
                )
        if not (_all_inside(self.speeds, 0.5, 2) and self.speeds):
            faults.append(f"augment.speeds: received {self.speeds!r}, expected factors from 0.5 to 2")
        faults += self._codec_faults()
        if faults:
            raise ConfigError(faults)

    def _codec_faults(self) -> list[str]:
        if not isinstance(self.codecs, Mapping) or not all(map(is_weight, self.codecs.values())):
            return [f"augment.codecs: received {self.codecs!r}, expected a table of weights of 0 or more"]
        unknown = [name for name in self.codecs if name not in codecs.CODECS]
        if unknown:
            return [f"augment.codecs: received {', '.join(unknown)}, expected some of {', '.join(codecs.CODECS)}"]
        if not sum(self.codecs.values()) > 0:
            return [f"augment.codecs: received {dict(self.codecs)}, expected a weight above 0"]
        return []

    def check_libraries(self) -> None:
        """Say before a run what this machine lacks for these settings.

        Raises
        ------
        ConfigError : a codec without encoder, or no audiomentations where pitch or tempo is to be changed
        """
        faults = [
            f"augment.codecs: {name}: the installed libsndfile and FFmpeg have no encoder for it; leave it out"
            for name, weight in self.codecs.items()
            if weight and name not in codecs.encoders()
        ]
        if faults:
            raise ConfigError(faults)
        if self.pitch_probability or self.stretch_probability:
            load_audiomentations()


def is_rising_pair(value: Any, least: float, most: float) -> bool:
    """Whether a value is two numbers from ``least`` to ``most``, the smaller first."""
    return _all_inside(value, least, most) and len(value) == 2 and value[0] <= value[1]


def is_weight(value: Any) -> bool:
    """Whether a value is a finite number of 0 or more."""
    return _inside(value, 0, inf) and value < inf


def _inside(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _all_inside(values: Any, least: float, most: float) -> bool:
    return isinstance(values, tuple) and all(_inside(value, least, most) for value in values)
