"""Training windows, composed the way the job meets them: cut at any moment of a call, on a telephone line.

Two kinds: windows with one emotion, for the emotion network; and windows with a timeline of speech, silence, music,
tones and noise, for the gate.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from batchser.records import MUSIC, NOISE, SILENCE, SPEECH, TONE, FloatArray, KindArray
from batchser.settings import FeatureSettings
from batchser.training import augment
from batchser.training.sounds import composed_music, generated_noise, tone

_SPEEDS: Final = (0.9, 1.0, 1.1)
_VISIBLE_PART: Final = 0.6  # at least so much of the clip (or of the window) is inside
_TAILS: Final = 0.3  # so many windows end early, as a recording's last one does


def emotion_window(
    rng: np.random.Generator, clip: FloatArray, neighbour: FloatArray | None, settings: FeatureSettings
) -> tuple[FloatArray, int]:
    """One window around a clip, float32 (window_samples,), and its true length: random speed, cut, neighbour, line.

    ``neighbour`` is another clip of the same speaker and emotion, or None; it sounds before or after the clip
    half of the time, as a turn goes on over the edges of a window. A tail is padded with zeros.
    """
    size = settings.window_samples
    speed = float(rng.choice(_SPEEDS))
    voice = augment.change_speed(clip, speed)
    n = voice.size
    hidden = int((1 - _VISIBLE_PART) * min(n, size))
    start = int(rng.integers(min(0, size - n) - hidden, max(0, size - n) + hidden + 1))
    line = np.zeros(size, np.float32)
    place(line, start, voice)
    if neighbour is not None and rng.random() < 0.5:
        other = augment.change_speed(neighbour, speed)
        gap = int(rng.uniform(0.05, 0.5) * settings.rate_hz)
        place(line, start + n + gap if rng.random() < 0.5 else start - gap - other.size, other)
    line = augment.scale_to(line, rng.uniform(-32, -20))
    length = size
    if rng.random() < _TAILS:
        shortest = min(size, max(start + n, settings.rate_hz))
        length = int(rng.integers(shortest, size + 1))
    line[:length] = augment.telephone(rng, line[:length], settings.rate_hz)
    line[length:] = 0.0
    return line, length


def place(line: FloatArray, start: int, sound: FloatArray) -> None:
    """Add ``sound`` (n,) to ``line`` (N,) in place from sample ``start`` on, which may be outside."""
    first, end = max(0, start), min(line.size, start + sound.size)
    if first < end:
        line[first:end] += sound[first - start : end - start]


@dataclass(frozen=True, slots=True)
class GateSounds:
    """What gate windows are made of: clips by speaker, music excerpts and noises, each float32 (n,)."""

    speech: Mapping[str, Sequence[FloatArray]]
    music: Sequence[FloatArray]
    noise: Sequence[FloatArray]


def gate_window(
    rng: np.random.Generator, sounds: GateSounds, settings: FeatureSettings, num_chunks: int
) -> tuple[FloatArray, KindArray]:
    """One window with a timeline of kinds: float32 (window_samples,), and each chunk's kind, int8 (num_chunks,).

    Half of the windows hold one kind, the rest two or three with borders anywhere.
    """
    size = settings.window_samples
    count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    borders = np.sort(rng.choice(np.arange(1, size), count - 1, replace=False))
    edges = [0, *borders.tolist(), size]
    line, kinds = np.zeros(size, np.float32), np.full(size, SILENCE, np.int8)
    for first, end in itertools.pairwise(edges):
        kind = int(rng.choice([SPEECH, SILENCE, MUSIC, TONE, NOISE], p=[0.36, 0.1, 0.27, 0.15, 0.12]))
        sound = _SOURCES[kind](rng, sounds, end - first, settings.rate_hz)
        line[first:end] = sound
        kinds[first:end][_active(sound, settings.rate_hz)] = kind
    line = augment.telephone(rng, line, settings.rate_hz)
    middles = ((np.arange(num_chunks) + 0.5) * size / num_chunks).astype(int)
    return line, kinds[middles]


def _active(sound: FloatArray, rate_hz: int) -> np.ndarray:
    """Where a sound is on, bool (n,): within 26 dB of its loudest 60 ms, short gaps closed."""
    width = max(1, int(0.06 * rate_hz))
    power = np.convolve(sound**2, np.ones(width) / width, "same")[: sound.size]
    loud = power > 10**-2.6 * max(float(power.max(initial=0.0)), 1e-9)
    return np.convolve(loud, np.ones(2 * width + 1), "same")[: sound.size] > 0.5


def _speech(rng: np.random.Generator, sounds: GateSounds, num_samples: int, rate_hz: int) -> FloatArray:
    """Clips of one speaker, one after another, from somewhere inside the first one on."""
    voices = list(sounds.speech)
    clips = sounds.speech[voices[rng.integers(len(voices))]]
    line, at = np.zeros(num_samples, np.float32), 0
    gain = rng.uniform(0.03, 0.12)
    while at < num_samples:
        clip = augment.change_speed(clips[int(rng.integers(len(clips)))], float(rng.choice(_SPEEDS)))
        clip = clip / np.float32(np.sqrt(np.mean(clip**2)) + 1e-6) * np.float32(gain * 10 ** rng.uniform(-0.3, 0.3))
        start = at - int(rng.uniform(0, 0.7) * clip.size) if at == 0 else at
        place(line, start, clip)
        at = max(start + clip.size, 1) + int(rng.uniform(0.0, 0.5) * rate_hz)
    return line


def _music(rng: np.random.Generator, sounds: GateSounds, num_samples: int, rate_hz: int) -> FloatArray:
    """An excerpt two times in three, else music made by code."""
    if sounds.music and rng.random() < 2 / 3:
        music = _excerpt(rng, sounds.music, num_samples)
    else:
        music = composed_music(rng, num_samples, rate_hz)
    return augment.scale_to(music, rng.uniform(-32, -15))


def _noise(rng: np.random.Generator, sounds: GateSounds, num_samples: int, rate_hz: int) -> FloatArray:
    if sounds.noise and rng.random() < 0.5:
        noise = _excerpt(rng, sounds.noise, num_samples)
    else:
        noise = generated_noise(rng, num_samples, rate_hz)
    return augment.scale_to(noise, rng.uniform(-34, -15))


def _excerpt(rng: np.random.Generator, pool: Sequence[FloatArray], num_samples: int) -> FloatArray:
    """``num_samples`` from a random place of a random sound at a random speed, repeated where it is too short."""
    sound = pool[int(rng.integers(len(pool)))]
    factor = float(rng.choice([0.85, 0.93, 1.0, 1.08, 1.17]))
    needed = int(num_samples * factor) + 64
    start = int(rng.integers(0, max(1, sound.size - needed)))
    piece = np.resize(sound[start : start + needed], needed)
    return np.resize(augment.change_speed(piece, factor), num_samples)


def _tone(rng: np.random.Generator, sounds: GateSounds, num_samples: int, rate_hz: int) -> FloatArray:
    return tone(rng, num_samples, rate_hz)


def _silence(rng: np.random.Generator, sounds: GateSounds, num_samples: int, rate_hz: int) -> FloatArray:
    return np.zeros(num_samples, np.float32)


_SOURCES: Final = {SPEECH: _speech, SILENCE: _silence, MUSIC: _music, TONE: _tone, NOISE: _noise}
