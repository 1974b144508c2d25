"""Augmentation: voices, rooms and lines that a training window may have met, drawn anew for each window.

Everything random comes from the np.random.Generator that is passed, and from nothing else.

Pitch and tempo are changed by audiomentations (voices.py). The line stays NumPy, soxr and SciPy; milliseconds for 3 s
at 8 kHz, audiomentations 0.43 against ours, and why:

- AddColorNoise 1.8, ours 0.7; AddBackgroundNoise 3.5, ours 0.1: the ratio is to the mean level, which pauses lower, and
  the file is read and resampled anew for each window;
- AddShortNoises 15.5: as above;
- ApplyImpulseResponse 0.9, ours 0.8: it leaves the response's own delay in, and sets every peak to 0.5;
- BandPassFilter 1.7, ours 0.9: the same Butterworth filter (tests/test_augment.py compares them);
- Gain: one multiplication; Mp3Compression: needs another wheel, and MP3 is among our codecs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import scipy.signal

from batchser.audio import open_audio
from batchser.errors import AudioError, ConfigError
from batchser.records import FloatArray, Recording
from batchser.settings import LimitSettings
from batchser.training.augment import codecs
from batchser.training.augment.line import active_level_dbfs, add_noise, band_pass, colour, lose_packets, scale_to
from batchser.training.augment.settings import AugmentSettings
from batchser.training.augment.sounds import coloured_noise
from batchser.training.augment.voices import Voice
from batchser.training.corpora import find_audio

#: Where nothing is louder than this, noise is set against the level that speech usually has.
_NO_SPEECH_DBFS: Final = -60.0
_USUAL_SPEECH_DBFS: Final = -26.0
#: A room's response is cut where less than this part of its energy is left.
_ROOM_TAIL: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Sounds:
    """Sounds from files that the user points to, float32 (n,) each, at the model's rate."""

    noise: Sequence[FloatArray] = ()
    music: Sequence[FloatArray] = ()
    rooms: Sequence[FloatArray] = ()


def read_sounds(noise: Path | None, music: Path | None, rooms: Path | None, rate_hz: int) -> Sounds:
    """Read the sound files directly inside folders (None: no such sounds).

    Each channel of a room's impulse response is a room of its own: from its direct sound on, which is set to 1, to
    where it has died away.

    Raises
    ------
    ConfigError : folders that are missing or hold no sound, and files that cannot be read or are silent, all at once
    """
    faults: list[str] = []
    found: dict[str, list[FloatArray]] = {}
    for what, folder in (("noise", noise), ("music", music), ("rooms", rooms)):
        found[what] = []
        paths = [] if folder is None else find_audio(folder)
        if folder is not None and not paths:
            faults.append(f"{what}: {folder} holds no sound files; expected a folder with some directly inside")
        for path in paths:
            try:
                channels = _read_channels(path, rate_hz)
            except AudioError as error:
                faults.append(f"{what}: {path}: {error}")
                continue
            if not channels.any(axis=1).all():
                faults.append(f"{what}: {path} has a silent channel; remove the file")
            elif what == "rooms":
                found[what] += [_room(channel) for channel in channels]
            else:
                found[what].append(channels.mean(axis=0))
    if faults:
        raise ConfigError(faults)
    return Sounds(**found)


def _read_channels(path: Path, rate_hz: int) -> FloatArray:
    """A whole file as the job decodes it: float32 (num_channels, n)."""
    recording = Recording(0, path.stem, str(path.absolute()))
    with open_audio(recording, rate_hz, LimitSettings(max_duration_s=3600.0)) as reader:
        blocks = [block.samples for block in reader]
    if not blocks:
        raise AudioError("no samples could be decoded")
    return np.concatenate(blocks, axis=1)


def _room(response: FloatArray) -> FloatArray:
    """Begin at the direct sound, scale it to 1, and end where the rest no longer counts: (n,) → (m,), m ≤ n."""
    direct = int(np.argmax(np.abs(response)))
    heard = response[direct:] / response[direct]
    left = np.cumsum(np.square(heard[::-1], dtype=np.float64))[::-1]  # Schroeder's backward integration
    return heard[: max(1, int(np.count_nonzero(left > _ROOM_TAIL * left[0])))].astype(np.float32)


def draw_voice(rng: np.random.Generator, settings: AugmentSettings) -> Voice:
    """Draw a voice's speed, and its pitch and tempo with their probabilities."""
    speed = float(rng.choice(settings.speeds))
    pitch, stretch = (rng.random() < p for p in (settings.pitch_probability, settings.stretch_probability))
    return Voice(
        speed,
        float(rng.uniform(*settings.pitch_semitones)) if pitch else 0.0,
        float(rng.uniform(*settings.stretch)) if stretch else 1.0,
    )


def telephone(
    rng: np.random.Generator,
    samples: FloatArray,
    rate_hz: int,
    settings: AugmentSettings | None = None,
    sounds: Sounds | None = None,
) -> FloatArray:
    """Send samples down a random line: room, sounds behind the voice, the handset's colour, band, line noise, lost
    packets, level, codec.

    About 4 ms for 3 s at 8 kHz with the default settings. Noise is set against the active level of what is heard, or
    against a usual voice's where nothing is: a silent line hisses too. Noise and music of ``sounds`` are added only
    where something is heard.

    Parameters
    ----------
    samples : float32 (n,) mono
    settings : the defaults where None
    sounds : none where None

    Returns
    -------
    FloatArray : float32 (n,), within −1…1

    Raises
    ------
    ConfigError : a codec without encoder; ``check_libraries`` tells before
    """
    settings, sounds = settings or AugmentSettings(), sounds or Sounds()
    if not samples.size:
        return samples
    if sounds.rooms and rng.random() < settings.room_probability:
        samples = in_room(samples, sounds.rooms[int(rng.integers(len(sounds.rooms)))])
    for pool, probability, snr_db in (
        (sounds.noise, settings.background_probability, settings.background_snr_db),
        (sounds.music, settings.music_probability, settings.music_snr_db),
    ):
        if pool and rng.random() < probability:
            samples = add_noise(samples, excerpt(rng, pool, samples.size), rng.uniform(*snr_db), rate_hz)
    if any(settings.colour_db_per_octave):
        samples = colour(samples, rate_hz, rng.uniform(*settings.colour_db_per_octave))
    if rng.random() < settings.band_pass_probability:
        high_hz = min(rng.uniform(*settings.high_hz), 0.49 * rate_hz)
        samples = band_pass(samples, rate_hz, rng.uniform(*settings.low_hz), high_hz)
    if rng.random() < settings.noise_probability:  # now and then a line without any: digital silence between words
        level_dbfs = active_level_dbfs(samples, rate_hz)
        speech_dbfs = level_dbfs if level_dbfs > _NO_SPEECH_DBFS else _USUAL_SPEECH_DBFS
        noise = coloured_noise(rng, samples.size, rng.uniform(*settings.noise_slope))
        samples = samples + scale_to(noise, speech_dbfs - rng.uniform(*settings.noise_snr_db))
    if rng.random() < settings.packet_loss_probability:
        share, concealed = rng.uniform(*settings.packet_loss_share), bool(rng.random() < 0.5)
        samples = lose_packets(rng, samples, rate_hz, share, concealed=concealed)
    samples = np.clip(samples * np.float32(10 ** (rng.uniform(*settings.level_db) / 20)), -1.0, 1.0)
    weights = np.array(list(settings.codecs.values()), np.float64)
    return codecs.round_trip(samples, rate_hz, str(rng.choice(list(settings.codecs), p=weights / weights.sum())))


def in_room(samples: FloatArray, response: FloatArray) -> FloatArray:
    """Convolve with a room's response that begins at its direct sound, at the same mean level: float32 (n,) → (n,)."""
    heard = scipy.signal.oaconvolve(samples, response)[: samples.size].astype(np.float32)
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return scale_to(heard, 10 * np.log10(power)) if power > 0 else samples


def excerpt(rng: np.random.Generator, pool: Sequence[FloatArray], num_samples: int) -> FloatArray:
    """Take ``num_samples`` from a random place of a random sound on, going round at its end: float32 (num_samples,)."""
    sound = pool[int(rng.integers(len(pool)))]
    start = int(rng.integers(sound.size))
    return np.take(sound, np.arange(start, start + num_samples), mode="wrap")
