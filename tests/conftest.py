"""A tiny bundle that behaves like a trained one, and sounds to feed it: all generated, all seeded.

The tiny bundle's emotion network has random weights, scaled so that windows differ. Its gate is set by hand: it
averages how far the bands of a frame lie below the window's peak. A tone lights few bands and noise nearly all of
them; ``speechlike`` lies between.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, settings

from batchser.bundle import Bundle, NetworkSpec, named_weights, write_bundle
from batchser.features import centre, extract
from batchser.records import KINDS, NOISE, SILENCE, SPEECH, TONE, Recording
from batchser.settings import FeatureSettings, GateSettings

if TYPE_CHECKING:
    from batchser.scoring import Model

# As training sets it: whichever test is the first to start TensorFlow, sums are added up in one order.
os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"

LABELS = ("angry", "disgust", "fearful", "happy", "neutral", "sad")
NEGATIVE = ("angry", "disgust", "fearful", "sad")
RATE_HZ = 8000
WINDOW = 24_000
SCALE = np.float32(10.0)  # deviation of the features, dB
EMOTION = NetworkSpec("conv-dual-lstm", {"filters": [4, 4, 8], "units": [8, 8]})
GATE = NetworkSpec("gate-conv", {"filters": [4, 4, 4, 4], "kernel": 1})


# Property-based tests assert no speed: a machine that stands still for a moment is no fault.
settings.register_profile("batchser", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batchser")


def scheduler_address(file: Path) -> str:
    """Wait for the address in the file of a `dask scheduler`, which for a moment is there and empty."""
    until = time.monotonic() + 240
    while True:
        try:
            return str(json.loads(file.read_text(encoding="utf-8"))["address"])
        except (FileNotFoundError, ValueError):
            assert time.monotonic() < until, f"no scheduler has written {file}"
            time.sleep(0.1)


# ------------------------------------------------------------------------------------------------------- sounds


def speechlike(seconds: float, seed: int = 0, rate_hz: int = RATE_HZ, level: float = 0.1) -> np.ndarray:
    """Syllables of a gliding voice, pitch, brightness and pace drawn anew each second: float32 (n,)."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate_hz)
    t = np.arange(n) / rate_hz
    knots = np.arange(int(seconds) + 2)
    f0 = np.interp(t, knots, rng.uniform(90, 260, knots.size))
    tilt = np.interp(t, knots, rng.uniform(0.2, 1.2, knots.size))
    pace = np.interp(t, knots, rng.uniform(2, 5, knots.size))
    phase = 2 * np.pi * np.cumsum(f0) / rate_hz
    harmonics = range(1, int(0.45 * rate_hz / 260))
    voice = sum(np.sin(h * phase + h) * (h * 1.0) ** -tilt for h in harmonics)
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * np.cumsum(pace) / rate_hz)
    line = voice * syllables / np.sqrt(len(harmonics)) + 3e-3 * rng.standard_normal(n)
    return (level * line).astype(np.float32)


def ring(seconds: float, rate_hz: int = RATE_HZ, level: float = 0.1) -> np.ndarray:
    """Ringback that never pauses (440 and 480 Hz) on a quiet line, float32 (n,)."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    hiss = 1e-4 * np.random.default_rng(1).standard_normal(t.size)
    return (level * (np.sin(2 * np.pi * 440 * t) + np.sin(2 * np.pi * 480 * t) + hiss)).astype(np.float32)


def noise(seconds: float, seed: int = 0, rate_hz: int = RATE_HZ, level: float = 0.1) -> np.ndarray:
    """White noise, float32 (n,)."""
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))).astype(np.float32)


def silence(seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Digital silence, float32 (n,)."""
    return np.zeros(round(seconds * rate_hz), np.float32)


def call(seed: int = 0, seconds: float = 3.0) -> np.ndarray:
    """One party's side of a call, five stretches of ``seconds``: speech, ring, silence, speech, noise; float32 (n,)."""
    return np.concatenate(
        [
            speechlike(seconds, seed),
            ring(seconds),
            silence(seconds),
            speechlike(seconds, seed + 1000),
            noise(seconds, seed),
        ]
    )


def write(path: Path, *channels: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> Path:
    """Write channels (n,) of one length as a recording in the container of the path's suffix."""
    soundfile.write(path, np.stack(channels, axis=1), rate_hz, subtype=subtype)
    return path


def recording(path: Path | str, index: int = 0, roles: Sequence[str] | None = None) -> Recording:
    """A manifest's row for one file."""
    return Recording(index, Path(path).stem, str(path), None if roles is None else tuple(roles))


# ------------------------------------------------------------------------------------------------------- bundle


def gate_weights(num_mels: int = 64) -> list[np.ndarray]:
    """Weights of ``GATE`` that tell kinds by m, the mean over the bands of a chunk's first frame, −1…1.

    The layers pass m + 1 on to logits that are straight lines crossing at m = −0.9 (silence, tone), −0.5 (tone,
    speech) and 0.5 (speech, noise).
    """
    steep = 40.0
    first = np.zeros((1, num_mels, 4), np.float32)
    first[0, :, 0] = 1 / num_mels
    copy = np.zeros((1, 4, 4), np.float32)
    copy[0, 0, 0] = 1
    slopes, offsets = np.zeros((1, 4, len(KINDS)), np.float32), np.full(len(KINDS), -1e3, np.float32)
    for kind, slope, offset in ((SILENCE, -1, 0.1), (TONE, 0, 0), (SPEECH, 1, -0.5), (NOISE, 2, -2.0)):
        slopes[0, 0, kind], offsets[kind] = steep * slope, steep * offset
    none = np.zeros(4, np.float32)
    return [first, np.array([1, 0, 0, 0], np.float32), copy, none, copy, none, copy, none, slopes, offsets]


def emotion_weights(features: FeatureSettings, seed: int = 7) -> list[np.ndarray]:
    """Random weights of ``EMOTION``, the last layer's scaled and centred so that windows get different answers."""
    from batchser import networks
    from batchser.scoring import start_tensorflow

    start_tensorflow(1)
    network = networks.build(EMOTION.name, features.num_frames, features.num_features, len(LABELS), EMOTION.options)
    rng = np.random.default_rng(seed)
    weights = []
    for weight in network.weights:
        fan_in = max(1, int(np.prod(weight.shape[:-1])))
        drawn = rng.standard_normal(weight.shape) / np.sqrt(fan_in)
        weights.append((drawn if len(weight.shape) > 1 else weight.numpy()).astype(np.float32))
    weights[-2] *= 40.0  # the logits' kernel
    network.set_weights(weights)
    samples = speechlike(48, seed)[: 16 * features.window_samples].reshape(-1, features.window_samples)
    frames = np.full(len(samples), features.num_frames, np.int32)
    stack = centre(extract(samples, features).stack, frames, features) / SCALE
    weights[-1] = -network(stack, training=False).numpy().mean(axis=0)
    return weights


def tiny_arrays(features: FeatureSettings | None = None) -> dict[str, np.ndarray]:
    """All arrays of the tiny bundle's weights.npz."""
    features = features or FeatureSettings()
    return {
        **named_weights("gate", gate_weights(features.num_mels)),
        **named_weights("emotion", emotion_weights(features)),
        "scaler/mean": np.zeros(features.num_features, np.float32),
        "scaler/std": np.full(features.num_features, SCALE, np.float32),
    }


def tiny_description(name: str = "tiny") -> Bundle:
    """What the tiny bundle's bundle.json says."""
    return Bundle(
        name=name,
        labels=LABELS,
        negative_labels=NEGATIVE,
        network=EMOTION,
        gate_network=GATE,
        features=FeatureSettings(),
        gate=GateSettings(),
        temperature=1.5,
        abstain_threshold=0.3,
        licence="commercial use allowed",
        data=({"name": "generated", "licence": "none needed", "commercial_use": True},),
        training={"recipe": name, "seed": 7, "folds": [], "versions": {}},
        scores={},
    )


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A whole bundle on disk that hears speech in ``speechlike``; copy its folder before you change a file in it."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", tiny_description(), tiny_arrays(), {}, "# tiny\n")


@pytest.fixture(scope="session")
def tiny_model(tiny_bundle: Bundle) -> Model:
    """The tiny bundle, loaded once for all tests."""
    from batchser.scoring import load_model

    assert tiny_bundle.folder is not None
    return load_model(tiny_bundle.folder, tiny_bundle.sha256)
