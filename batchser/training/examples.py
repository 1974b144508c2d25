"""Training windows, composed the way the job meets them: cut at any moment of a call, on a telephone line.

Two kinds: windows with one emotion, for the emotion network; and windows with a timeline of speech, silence, music,
tones and noise, for the gate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from batchser.records import MUSIC, NOISE, SILENCE, SPEECH, TONE, FloatArray, KindArray
from batchser.settings import FeatureSettings
from batchser.training import augment
from batchser.training.augment import AugmentSettings, Sounds
from batchser.training.augment.sounds import composed_music, generated_noise, tone
from batchser.training.recipe import WindowSettings

_SPEEDS: Final = (0.9, 1.0, 1.1)


@dataclass(frozen=True, slots=True)
class Take:
    """One clip to cut windows from: ``whole`` as it was recorded, ``spoken`` without its silent ends, float32 (n,)."""

    whole: FloatArray
    spoken: FloatArray


def make_take(samples: FloatArray, rate_hz: int) -> Take:
    """Find where a clip (n,) is spoken: within 26 dB of its loudest 30 ms, 50 ms more on either side."""
    width = max(1, int(0.03 * rate_hz))
    power = running_sum(samples.astype(np.float64) ** 2, width) / width
    loud = np.flatnonzero(power > 10**-2.6 * power.max(initial=0.0))
    if not loud.size:
        return Take(samples, samples)
    margin = int(0.05 * rate_hz)
    return Take(samples, samples[max(0, int(loud[0]) - margin) : int(loud[-1]) + margin])


def emotion_window(
    rng: np.random.Generator,
    take: Take,
    neighbour: Callable[[np.random.Generator], Take] | None,
    settings: FeatureSettings,
    windows: WindowSettings | None = None,
    lines: AugmentSettings | None = None,
    sounds: Sounds | None = None,
) -> tuple[FloatArray, int]:
    """Cut one window with a clip in it, as the job would from a call that holds it, and send it down a line.

    Parameters
    ----------
    take : the clip
    neighbour : draws a clip of the same speaker and emotion, which may sound before or after it as a turn goes on;
        None where there is no other
    settings : the window's length and rate
    windows, lines, sounds : how windows are cut and what may happen to them; the recipe's

    Returns
    -------
    samples : float32 (window_samples,), a tail padded with zeros
    length : its true length in samples
    """
    windows, lines = windows or WindowSettings(), lines or AugmentSettings()
    rate_hz, size = settings.rate_hz, settings.window_samples
    voice = augment.draw_voice(rng, lines)
    if rng.random() < windows.whole_clips:
        line, end = _whole_clip(rng, voice.change(take.whole, rate_hz), size)
    else:
        line, end = _moment_of_turn(rng, take, neighbour, voice, settings, windows)
    line = augment.scale_to(line, rng.uniform(-32, -20))
    length = size
    if rng.random() < windows.tails:
        length = int(rng.integers(min(size, max(end, rate_hz)), size + 1))
    line[:length] = augment.telephone(rng, line[:length], rate_hz, lines, sounds)
    line[length:] = 0.0
    return line, length


def cut_clip(samples: FloatArray, rate_hz: int, offset_s: float) -> FloatArray:
    """A clip from ``offset_s`` on; one that ends before that, whole: (n,) → (m,)."""
    offset = round(offset_s * rate_hz)
    return samples[offset:] if samples.size > offset else samples


def clip_window(
    rng: np.random.Generator,
    take: Take,
    copy: int,
    settings: FeatureSettings,
    windows: WindowSettings,
    lines: AugmentSettings,
    sounds: Sounds | None = None,
) -> tuple[FloatArray, int]:
    """Take a clip as the published systems do: from its beginning, or an offset, on; what is too long is cut.

    Parameters
    ----------
    copy : which of the clip's windows; it decides the variant

    Returns
    -------
    samples : float32 (window_samples,), padded with zeros
    length : its true length in samples
    """
    variant, rate_hz = windows.variants[copy % len(windows.variants)], settings.rate_hz
    voice = augment.Voice(
        semitones=float(rng.uniform(*lines.pitch_semitones)) if variant == "pitch" else 0.0,
        stretch=float(rng.uniform(*lines.stretch)) if variant == "stretch" else 1.0,
    )
    clip = voice.change(cut_clip(take.whole, rate_hz, windows.offset_s), rate_hz)[: settings.window_samples]
    if variant == "noise":
        noise = rng.standard_normal(clip.size).astype(np.float32)
        clip = augment.add_noise(clip, noise, rng.uniform(*windows.noise_snr_db), rate_hz)
    elif variant == "telephone":
        clip = augment.telephone(rng, clip, rate_hz, lines, sounds)
    line = np.zeros(settings.window_samples, np.float32)
    place(line, 0, clip)
    return line, min(clip.size, line.size)


def _whole_clip(rng: np.random.Generator, clip: FloatArray, size: int) -> tuple[FloatArray, int]:
    """Put a clip from its beginning on, or anywhere that holds it (a long one: any part), into (size,); and its end."""
    room = size - clip.size
    start = 0 if rng.random() < 0.5 else int(rng.integers(min(0, room), max(0, room) + 1))
    line = np.zeros(size, np.float32)
    place(line, start, clip)
    return line, min(size, start + clip.size)


def _moment_of_turn(
    rng: np.random.Generator,
    take: Take,
    neighbour: Callable[[np.random.Generator], Take] | None,
    voice: augment.Voice,
    settings: FeatureSettings,
    windows: WindowSettings,
) -> tuple[FloatArray, int]:
    """A clip cut by the window's edge or not, others before and after it; and where the clip ends."""
    size, rate_hz = settings.window_samples, settings.rate_hz
    clip = voice.change(take.spoken, rate_hz)
    hidden = int((1 - windows.least_visible) * min(clip.size, size))
    start = int(rng.integers(min(0, size - clip.size) - hidden, max(0, size - clip.size) + hidden + 1))
    line = np.zeros(size, np.float32)
    place(line, start, clip)
    for before in (True, False):
        if neighbour and rng.random() < windows.neighbours:
            other = voice.change(neighbour(rng).spoken, rate_hz)
            gap = int(rng.uniform(*windows.gap_s) * rate_hz)
            place(line, start - gap - other.size if before else start + clip.size + gap, other)
    return line, min(size, start + clip.size)


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
    rng: np.random.Generator,
    sounds: GateSounds,
    settings: FeatureSettings,
    num_chunks: int,
    lines: AugmentSettings | None = None,
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
    line = augment.telephone(rng, line, settings.rate_hz, lines)
    middles = ((np.arange(num_chunks) + 0.5) * size / num_chunks).astype(int)
    return line, kinds[middles]


def _active(sound: FloatArray, rate_hz: int) -> np.ndarray:
    """Where a sound is on, bool (n,): within 26 dB of its loudest 60 ms, short gaps closed."""
    width = max(1, int(0.06 * rate_hz))
    power = running_sum(sound.astype(np.float64) ** 2, width) / width
    loud = power > 10**-2.6 * max(float(power.max(initial=0.0)), 1e-9)
    return running_sum(loud.astype(np.float64), 2 * width + 1) > 0.5


def running_sum(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """``np.convolve(values, np.ones(width), "same")[: values.size]`` in a time that does not grow with ``width``."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, values.size + 1) + (min(width, values.size) - 1) // 2
    return sums[np.minimum(last, values.size)] - sums[np.maximum(last - width, 0)]


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
        music = _sped_excerpt(rng, sounds.music, num_samples)
    else:
        music = composed_music(rng, num_samples, rate_hz)
    return augment.scale_to(music, rng.uniform(-32, -15))


def _noise(rng: np.random.Generator, sounds: GateSounds, num_samples: int, rate_hz: int) -> FloatArray:
    if sounds.noise and rng.random() < 0.5:
        noise = _sped_excerpt(rng, sounds.noise, num_samples)
    else:
        noise = generated_noise(rng, num_samples, rate_hz)
    return augment.scale_to(noise, rng.uniform(-34, -15))


def _sped_excerpt(rng: np.random.Generator, pool: Sequence[FloatArray], num_samples: int) -> FloatArray:
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
