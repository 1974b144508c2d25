"""Frozen settings: what changes results, and what only changes how a run goes.

Sizes are derived here, once, by exact division; contradictory settings raise before any work starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from batchser.errors import ConfigError

#: Every feature of frames: paper 000's stack, in its order, and pitch. A bundle names those its network reads.
FEATURE_NAMES: Final = ("mfcc", "delta", "chroma", "mel", "contrast", "tonnetz", "pitch")
#: The prosody of paper 003, in the order of its table. Its sample rate is left out: it is one and the same.
PROSODY: Final = (
    "duration_s", "mean_amplitude", "peak_amplitude", "rms_mean", "rms_std", "intensity_db", "tempo_bpm", "zcr_mean",
    "zcr_std", "pitch_mean", "pitch_median", "pitch_std", "pitch_variation", "voiced_ratio", "jitter", "shimmer",
)  # fmt: skip
#: Statistics of a whole window (prosody.py), which stand alone: a network reads these or features of frames.
WINDOW_FEATURE_NAMES: Final = ("prosody", "centroid", "rolloff", "flux", "mfcc_mean", "mfcc_deviation")
_TAPERS: Final = ("hann", "hamming")
_CENTRED: Final = (("mel",), ("mel", "pitch"))
#: Pitches that are heard unless settings say otherwise; networks that take them are built for as many.
NUM_PITCHES: Final = 48

#: Frames that the gate's network judges together: its two strided layers halve the frames twice.
CHUNK_FRAMES: Final = 4
#: The bundle that is used where none is named.
DEFAULT_MODEL: Final = "telephone-6"
#: Protocols of fsspec that manifests may name unless told otherwise: object stores, whose keys the operator gave.
DEFAULT_PROTOCOLS: Final = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
#: Encodings that may be stated for headerless audio.
ENCODINGS: Final = ("mulaw", "alaw", "pcm16")
#: The quickest engine that is here and knows a bundle's networks (scoring.choose_engine); the default.
AUTO_ENGINE: Final = "auto"
#: What may run a bundle's networks.
ENGINES: Final = (AUTO_ENGINE, "openvino", "tensorflow")
_WORKER_BYTES: Final = 1_300_000_000  # what a worker weighs at its peak in TensorFlow (make bench); in OpenVINO half


def exact_div(numerator: int, denominator: int, what: str) -> int:
    """Divide without remainder, or say which settings contradict each other."""
    if denominator <= 0 or numerator % denominator:
        raise ConfigError(f"{what}: {numerator} is not a whole multiple of {denominator}; choose values that divide")
    return numerator // denominator


@dataclass(frozen=True, slots=True)
class FeatureSettings:
    """How a window becomes features; kept in the model bundle, which always wins.

    The defaults are those of the telephone models: 3 s at 8 kHz, 64 ms frames every 16 ms, 64 mel bands over what a
    telephone lets through. ``centred`` (log-mel, with pitch or without) takes out level, and with it the colour of
    voice and line unless ``keep_colour``: see features.centre. ``pitch`` says how strongly each of ``num_pitches``
    pitches sounds, from ``pitch_min_hz`` to below ``pitch_max_hz`` in equal steps of an octave.
    ``taper`` is the window function of a frame, ``taper_samples`` long in its middle (0: as long as the frame).
    ``below_peak`` gives mel in dB below the window's loudest, not below full scale.
    ``steps`` averages the frames inside a window over so many equal stretches (0: frames as they are; 1: their mean).
    """

    names: tuple[str, ...] = ("mel",)
    rate_hz: int = 8000
    window_ms: int = 3000
    fft_samples: int = 512
    hop_samples: int = 128
    taper: str = "hann"
    taper_samples: int = 0
    steps: int = 0
    below_peak: bool = False
    num_mels: int = 64
    num_mfcc: int = 40
    num_chroma: int = 12
    num_contrast_bands: int = 4
    mel_min_hz: float = 200.0
    mel_max_hz: float = 3700.0
    contrast_min_hz: float = 200.0
    num_pitches: int = NUM_PITCHES
    pitch_min_hz: float = 62.5
    pitch_max_hz: float = 500.0
    top_db: float = 80.0
    centred: bool = True
    keep_colour: bool = False
    active_db: float = 25.0
    floor_db: float = 55.0
    centred_min_db: float = -30.0

    def __post_init__(self) -> None:
        faults = [
            f"features.{name}: received {getattr(self, name)!r}, expected true or false"
            for name in ("centred", "keep_colour", "below_peak")
            if not isinstance(getattr(self, name), bool)
        ]
        known = [set(FEATURE_NAMES), set(WINDOW_FEATURE_NAMES)]
        if not self.names or not any(set(self.names) <= each for each in known):
            faults.append(
                f"features.names: received {self.names!r}, expected one or more of {', '.join(FEATURE_NAMES)}, or one "
                f"or more of {', '.join(WINDOW_FEATURE_NAMES)}"
            )
        if self.taper not in _TAPERS:
            faults.append(f"features.taper: received {self.taper!r}, expected one of {', '.join(_TAPERS)}")
        if not 0 <= self.taper_samples <= self.fft_samples:
            faults.append(
                f"features.taper_samples: received {self.taper_samples}, expected 0 to fft_samples ({self.fft_samples})"
            )
        if self.steps < 0 or (self.steps and (self.centred or set(self.names) & set(WINDOW_FEATURE_NAMES))):
            faults.append(
                f"features.steps: received {self.steps}; expected 0 or more, and 0 with centred or features of windows"
            )
        if self.centred and tuple(self.names) not in _CENTRED:
            faults.append(
                f"features.centred: received true with names {self.names!r}; it is for mel alone, or mel and pitch"
            )
        if self.keep_colour and not self.centred:
            faults.append("features.keep_colour: received true without centred; features that are not centred keep it")
        if self.mel_max_hz > self.rate_hz / 2:
            faults.append(f"features.mel_max_hz: {self.mel_max_hz} Hz lies above half of the rate {self.rate_hz} Hz")
        if self.contrast_min_hz * 2 ** (self.num_contrast_bands - 1) >= self.rate_hz / 2:
            faults.append(
                f"features.num_contrast_bands: {self.num_contrast_bands} octaves from {self.contrast_min_hz} Hz pass "
                f"half of the rate {self.rate_hz} Hz; choose fewer"
            )
        lowest_hz = 2 * self.rate_hz / (self.taper_samples or self.fft_samples)  # a frame holds two periods
        rising = lowest_hz <= self.pitch_min_hz < self.pitch_max_hz <= self.rate_hz / 4
        if "pitch" in self.names and not (self.num_pitches > 0 and rising):
            faults.append(
                f"features.pitch_min_hz, pitch_max_hz: received {self.num_pitches} pitches from {self.pitch_min_hz} to "
                f"{self.pitch_max_hz} Hz; expected one or more, rising, from {lowest_hz:g} Hz on (two periods in a "
                f"frame) to {self.rate_hz / 4:g} Hz"
            )
        if self.hop_samples < 1 or self.fft_samples < self.hop_samples:
            faults.append(f"features.hop_samples: received {self.hop_samples}, expected 1 to {self.fft_samples}")
        if faults:
            raise ConfigError(faults)
        exact_div(self.rate_hz * self.window_ms, 1000, "features.window_ms x rate_hz / 1000")

    @property
    def window_samples(self) -> int:
        """Samples in a whole window."""
        return exact_div(self.rate_hz * self.window_ms, 1000, "features.window_ms x rate_hz / 1000")

    @property
    def num_frames(self) -> int:
        """Frames that lie wholly inside a window (``center=False``)."""
        return 1 + (self.window_samples - self.fft_samples) // self.hop_samples

    @property
    def of_windows(self) -> bool:
        """Whether the features are statistics of whole windows, and not of frames."""
        return self.names[0] in WINDOW_FEATURE_NAMES

    @property
    def around_zero(self) -> bool:
        """Whether every feature lies around 0 in speech, so that a scaler need not take its mean out."""
        return self.centred and not self.keep_colour and "pitch" not in self.names

    @property
    def num_steps(self) -> int:
        """Steps of a window that the network reads: its frames, stretches of frames, or 1 for the whole."""
        return 1 if self.of_windows else self.steps or self.num_frames

    @property
    def num_bands(self) -> int:
        """Features, the first ones, that are no pitches: noise is added to them, and warps move them, as bands."""
        return self.num_features - (self.num_pitches if self.names[-1] == "pitch" else 0)

    @property
    def num_features(self) -> int:
        """Features per step, over all of ``names``."""
        return sum(self.width_of(name) for name in self.names)

    def width_of(self, name: str) -> int:
        """Features per step of one of FEATURE_NAMES or WINDOW_FEATURE_NAMES."""
        return {
            "mfcc": self.num_mfcc,
            "delta": self.num_mfcc,
            "chroma": self.num_chroma,
            "mel": self.num_mels,
            "contrast": self.num_contrast_bands + 1,
            "tonnetz": 6,
            "pitch": self.num_pitches,
            "prosody": len(PROSODY),
            "centroid": 1,
            "rolloff": 1,
            "flux": 1,
            "mfcc_mean": self.num_mfcc,
            "mfcc_deviation": self.num_mfcc,
        }[name]


@dataclass(frozen=True, slots=True)
class GateSettings:
    """When a window is speech; kept in the model bundle. Chosen on training folds (see the model card).

    The gate's network judges chunks of ``chunk_frames`` frames (64 ms). A chunk is voiced from ``voiced_probability``
    on; a window is speech from ``min_voiced_s`` voiced seconds on (a tail shorter than twice that: when half of it is
    voiced). It is silence whatever the network says when it is quieter than ``silence_dbfs``; else it is the kind of
    sound, music, tone or noise, that has most of it, from ``min_sound_s`` on: ringing is a tone in its pauses too. The
    network does not hear level: noise quieter than ``quiet_noise_dbfs`` is silence, and a steady hiss, which it takes
    for a silent line, is noise from ``steady_noise_dbfs`` on.
    """

    chunk_frames: int = 4
    min_voiced_s: float = 0.5
    min_sound_s: float = 0.4
    voiced_probability: float = 0.5
    silence_dbfs: float = -65.0
    quiet_noise_dbfs: float = -50.0
    steady_noise_dbfs: float = -35.0

    def __post_init__(self) -> None:
        if self.chunk_frames != CHUNK_FRAMES:
            raise ConfigError(f"gate.chunk_frames: received {self.chunk_frames}, the gate's network has {CHUNK_FRAMES}")


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """How far manifests are trusted, which may come from anywhere. None of it changes what a recording's scores are.

    ``root``: a folder or URL that recordings must lie in, links and ``..`` followed; None: anywhere. ``protocols``: of
    fsspec URLs that may be opened; chained ones, all of them. ``max_rows``: of a manifest, before it is taken in.
    """

    root: str | None = None
    protocols: tuple[str, ...] = DEFAULT_PROTOCOLS
    max_rows: int = 1_000_000


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What a recording may ask of the machine; past one of these it is ``unreadable`` and its row gives the number."""

    max_duration_s: float = 24 * 3600.0
    max_channels: int = 8
    min_rate_hz: int = 4000
    max_rate_hz: int = 192_000
    max_decoded_bytes: int = 64 * 2**30
    trust: TrustSettings = field(default_factory=TrustSettings)


@dataclass(frozen=True, slots=True)
class Headerless:
    """How recordings without a header are read where no manifest says it; ``encoding`` None: not at all."""

    encoding: str | None = None
    rate_hz: int = 8000


@dataclass(frozen=True, slots=True)
class SummarySettings:
    """The constants behind a call's trend and escalation (documented in summary.py and the README)."""

    trend_threshold: float = 0.15
    trend_min_windows: int = 4
    escalation_rise: float = 0.25
    escalation_level: float = 0.5
    escalation_windows: int = 3
    escalation_lasting_windows: int = 9
    escalation_sigmas: float = 3.0


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings that change a run's results, besides the model: its fingerprint is ``settings_sha256``.

    Paths, workers, block and batch sizes are not here: results do not depend on them beyond 1e-5 in a score.
    """

    roles: tuple[str, ...] = ("customer", "mixed")
    channel_roles: tuple[str, ...] | None = None
    min_duration_s: float = 0.5
    limits: LimitSettings = field(default_factory=LimitSettings)
    summary: SummarySettings = field(default_factory=SummarySettings)

    def stated(self) -> dict[str, Any]:
        """These settings as JSON-able values, without whom they trust."""
        settings = dataclasses.asdict(self)
        del settings["limits"]["trust"]
        return settings

    def fingerprint(self) -> str:
        """The sha256 of what is ``stated`` in canonical JSON, 64 hexadecimal digits."""
        return fingerprint_of(self.stated())


def fingerprint_of(value: Any) -> str:
    """The sha256 of a JSON-able value, independent of the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def available_cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """One worker a processor, but no more than the memory holds."""
    return max(1, min(available_cores(), available_memory_bytes() // _WORKER_BYTES))


def available_memory_bytes() -> int:
    """Return the memory of this machine, or the container's limit where that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limits)


def has_fast_bfloat16() -> bool:
    """Say whether bfloat16 is quicker than float32 here: on a GPU, or a processor with AMX."""
    try:
        if "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
            return True
    except OSError:
        pass  # no Linux: what a GPU says decides
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
