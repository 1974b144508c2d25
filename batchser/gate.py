"""The gate: which windows are speech, and how many of their seconds are voiced.

The gate's network (networks.py, weights in the bundle) gives each chunk of a window, some 64 ms, a probability
for every one of KINDS. The rule here turns them into one kind and the voiced seconds of each window. Detectors of
voice activity alone will not do: they take nearly all hold music for speech.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from batchser.records import (
    FLOOR_DBFS,
    KINDS,
    NOISE,
    SILENCE,
    SPEECH,
    BoolArray,
    DoubleArray,
    FloatArray,
    IntArray,
    KindArray,
)
from batchser.settings import GateSettings

#: A window is steady when the network takes so much of it for a silent line.
_STEADY_PART: Final = 0.95


@dataclass(frozen=True, slots=True)
class Gated:
    """What the gate says of B windows: ``kind`` int8 (B,), ``voiced_s`` float64 (B,), and which chunks are voiced,
    bool (B, num_chunks).
    """

    kind: KindArray
    voiced_s: DoubleArray
    voiced: BoolArray


def level_dbfs(samples: FloatArray, num_samples: IntArray) -> FloatArray:
    """Mean level of each window over its true length, dB re full scale, float32 (B,), at least FLOOR_DBFS.

    A constant offset, a common fault of recorders, is no sound and does not count.

    ``samples`` is float32 (B, N), padded with zeros past ``num_samples`` int32 (B,).
    """
    length = np.maximum(num_samples, 1)
    offset = samples @ np.ones(samples.shape[1], np.float32) / length
    centred = samples - offset[:, None].astype(np.float32)
    for row in np.flatnonzero(num_samples < samples.shape[1]):
        centred[row, num_samples[row] :] = 0.0
    with np.errstate(divide="ignore"):
        return np.maximum(10 * np.log10(np.vecdot(centred, centred) / length), FLOOR_DBFS).astype(np.float32)


def decide(
    probabilities: FloatArray,
    num_frames: IntArray,
    length_s: DoubleArray,
    level: FloatArray,
    settings: GateSettings,
) -> Gated:
    """Turn the network's probabilities into kinds and voiced seconds.

    Parameters
    ----------
    probabilities : float32 (B, num_chunks, len(KINDS)), the network's output
    num_frames : int32 (B,), frames inside each window's true length; chunks behind them do not count
    length_s : float64 (B,), true length of each window
    level : float32 (B,), ``level_dbfs`` of each window
    settings : the bundle's GateSettings

    Returns
    -------
    Gated : speech from ``min_voiced_s`` voiced seconds on; else the kind of sound that most of it holds, from
        ``min_sound_s`` on; else silence. ``voiced_s`` lies in [0, length_s].
    """
    num_chunks = probabilities.shape[1]
    chunks_inside = -(-num_frames // settings.chunk_frames)  # (B,)
    inside = np.arange(num_chunks) < chunks_inside[:, None]  # (B, num_chunks)
    audible = (level >= settings.silence_dbfs) & (chunks_inside > 0)
    voiced = inside & audible[:, None] & (probabilities[:, :, SPEECH] >= settings.voiced_probability)
    voiced_s = voiced.sum(axis=1) / np.maximum(chunks_inside, 1) * length_s
    needed_s = np.minimum(settings.min_voiced_s, np.maximum(length_s / 2, 1e-9))
    chunk_s = length_s / np.maximum(chunks_inside, 1)
    likeliest = np.where(inside, probabilities.argmax(axis=2), SILENCE)  # (B, num_chunks)
    sound_s = np.stack([(likeliest == k).sum(axis=1) for k in range(len(KINDS))], axis=1) * chunk_s[:, None]
    sound_s[:, [SPEECH, SILENCE]] = 0.0
    is_sound = audible & (sound_s.max(axis=1) >= np.minimum(settings.min_sound_s, length_s / 2))
    kind = np.where(is_sound, sound_s.argmax(axis=1), SILENCE)
    kind = np.where((kind == NOISE) & (level < settings.quiet_noise_dbfs), SILENCE, kind)
    is_steady = (likeliest == SILENCE).mean(axis=1) >= _STEADY_PART
    kind = np.where((kind == SILENCE) & is_steady & (level >= settings.steady_noise_dbfs), NOISE, kind)
    kind = np.where(audible & (voiced_s >= needed_s), SPEECH, kind)
    return Gated(kind.astype(np.int8), voiced_s, voiced)


def overtalk_s(voiced: BoolArray, num_frames: IntArray, length_s: DoubleArray, settings: GateSettings) -> DoubleArray:
    """Seconds of each window in which a channel and at least one other are voiced at once.

    ``voiced`` is bool (num_channels, B, num_chunks); returns float64 (num_channels, B).
    """
    both = voiced & (voiced.sum(axis=0) > 1)
    chunks_inside = np.maximum(-(-num_frames // settings.chunk_frames), 1)
    return np.asarray(both.sum(axis=2) / chunks_inside * length_s, np.float64)
