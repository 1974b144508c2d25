"""Sounds made by code that are not speech: line signals, music and noises. They teach the gate.

Every function takes its np.random.Generator and gives float32 mono samples (n,); all are seeded by it alone.
"""

from __future__ import annotations

import numpy as np
import scipy.signal

from batchser.records import FloatArray

#: Ringback and busy cadences: frequencies in Hz, seconds on, seconds off (North America, Europe, UK-like double ring).
_CADENCES = (
    ((440.0, 480.0), 2.0, 4.0),
    ((425.0,), 1.0, 4.0),
    ((400.0, 450.0), 0.4, 0.2),
    ((480.0, 620.0), 0.5, 0.5),
    ((425.0,), 0.25, 0.25),
    ((350.0, 440.0), 30.0, 0.1),
)
_DTMF_LOW_HZ = (697.0, 770.0, 852.0, 941.0)
_DTMF_HIGH_HZ = (1209.0, 1336.0, 1477.0, 1633.0)


def coloured_noise(rng: np.random.Generator, num_samples: int, slope: float) -> FloatArray:
    """Noise of unit deviation whose power falls with frequency to the power ``slope`` (0 white, 1 pink, 2 brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    spectrum /= np.maximum(1, np.arange(spectrum.size)) ** (slope / 2)
    noise = np.fft.irfft(spectrum, num_samples)
    return (noise / (noise.std() + 1e-9)).astype(np.float32)


def tone(rng: np.random.Generator, num_samples: int, rate_hz: int) -> FloatArray:
    """Line signals, (n,): ringing, busy, dial tone, DTMF, beeps, a fax's or modem's whistle."""
    at_s = np.arange(num_samples) / rate_hz
    kind = rng.choice(["cadence", "dtmf", "beep", "whistle"], p=[0.45, 0.25, 0.2, 0.1])
    if kind == "dtmf":
        return _dtmf(rng, num_samples, rate_hz)
    if kind == "beep":
        frequencies_hz: tuple[float, ...] = (float(rng.choice([800.0, 950.0, 1000.0, 1400.0, 1800.0])),)
        on_s, off_s = rng.uniform(0.15, 0.8), rng.uniform(0.2, 5.0)
    elif kind == "whistle":
        frequencies_hz, on_s, off_s = (rng.uniform(1000, 2800),), rng.uniform(1, 10), rng.uniform(0.1, 1)
    else:
        frequencies_hz, on_s, off_s = _CADENCES[rng.integers(len(_CADENCES))]
    detune = rng.uniform(0.97, 1.03)
    signal = np.sum([np.sin(2 * np.pi * f * detune * at_s + rng.uniform(0, 6)) for f in frequencies_hz], axis=0)
    on = ((at_s + rng.uniform(0, on_s)) % (on_s + off_s)) < on_s
    return (signal * on * rng.uniform(0.03, 0.2)).astype(np.float32)


def _dtmf(rng: np.random.Generator, num_samples: int, rate_hz: int) -> FloatArray:
    signal = np.zeros(num_samples, np.float32)
    step, at = int(rate_hz * rng.uniform(0.12, 0.5)), 0
    while at < num_samples:
        t = np.arange(min(int(step * rng.uniform(0.4, 0.8)), num_samples - at)) / rate_hz
        pair = (rng.choice(_DTMF_LOW_HZ), rng.choice(_DTMF_HIGH_HZ))
        signal[at : at + t.size] = sum(np.sin(2 * np.pi * f * t) for f in pair)
        at += step
    return signal * np.float32(rng.uniform(0.05, 0.2))


def composed_music(rng: np.random.Generator, num_samples: int, rate_hz: int) -> FloatArray:
    """Music made by code, (n,): chords, a melody and sometimes a beat, in random keys, tempi and timbres."""
    signal = np.zeros(num_samples)
    beat = int(rate_hz * rng.uniform(0.25, 0.8))
    root_hz, brightness, decay = rng.uniform(80, 280), rng.uniform(0.25, 0.85), rng.uniform(0.5, 6)
    progression = rng.permutation([0, 5, 7, 9, 2, 4])[:4]
    third, vibrato, drums = rng.choice([3, 4]), rng.uniform(0, 0.01), rng.random() < 0.5
    melody = np.array([0, 2, 4, 7, 9, 11, 12])
    for k, start in enumerate(range(0, num_samples, beat)):
        t = np.arange(min(beat, num_samples - start)) / rate_hz
        chord = progression[(k // 4) % 4]
        notes = [chord, chord + third, chord + 7]
        if rng.random() < 0.8:
            notes.append(12 + chord + rng.choice(melody))
        envelope = np.exp(-t * decay) * np.minimum(1, t * 100)
        for note in notes:
            note_hz = root_hz * 2 ** (note / 12)
            phase = 2 * np.pi * note_hz * (t + vibrato * np.sin(2 * np.pi * 5 * t) / 5)
            for harmonic in range(1, 1 + int(min(8, 0.48 * rate_hz / note_hz))):
                signal[start : start + t.size] += brightness**harmonic * np.sin(harmonic * phase) * envelope
        if drums:
            signal[start : start + t.size] += rng.standard_normal(t.size) * np.exp(-t * 30) * rng.uniform(0.2, 1)
    return (signal / (np.abs(signal).max() + 1e-9)).astype(np.float32)


def generated_noise(rng: np.random.Generator, num_samples: int, rate_hz: int) -> FloatArray:
    """Noise that is not the line's own steady hiss, (n,): gusts, clicks and knocks, hum."""
    kind = rng.choice(["gusts", "knocks", "hum"])
    at_s = np.arange(num_samples) / rate_hz
    noise = coloured_noise(rng, num_samples, rng.uniform(0, 2))
    if kind == "gusts":
        swell = scipy.signal.sosfilt(
            scipy.signal.butter(2, rng.uniform(0.5, 6), fs=rate_hz, output="sos"), rng.standard_normal(num_samples)
        )
        noise = noise * np.exp(1.5 * swell / (swell.std() + 1e-9))
    elif kind == "knocks":
        hits = np.zeros(num_samples)
        hits[rng.integers(0, num_samples, int(rng.uniform(2, 12) * num_samples / rate_hz / 1.5) + 1)] = 1
        body = np.exp(-np.arange(rate_hz // 5) / rate_hz * rng.uniform(20, 200)) * rng.standard_normal(rate_hz // 5)
        noise = scipy.signal.fftconvolve(hits * rng.uniform(0.3, 1, num_samples), body)[:num_samples]
    elif kind == "hum":
        base_hz = rng.choice([50.0, 60.0, 100.0, 120.0])
        hum = sum(rng.uniform(0, 1) * np.sin(2 * np.pi * base_hz * h * at_s) for h in range(3, 30))
        noise = 0.3 * noise + hum
    return (noise / (np.abs(noise).max() + 1e-9)).astype(np.float32)
