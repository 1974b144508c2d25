"""Composing: clips and sounds → training windows' features, on disk under a fingerprint of all that made them.

A window depends on the seed and its clip's number alone, so that any number of workers composes the same; what is on
disk is mapped into memory, where workers share it.
"""

from __future__ import annotations

import functools
import json
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from batchser.errors import AudioError
from batchser.features import extract, frames_inside, level_below_peak, log_mel, network_input
from batchser.records import FloatArray, IntArray
from batchser.settings import fingerprint_of
from batchser.training.augment import Sounds, read_sounds
from batchser.training.corpora import (
    Clip,
    Fault,
    check_audio,
    clips_key,
    find_audio,
    read_clip,
    read_samples,
    unreadable,
)
from batchser.training.examples import GateSounds, Take, clip_window, emotion_window, gate_window, make_take
from batchser.training.recipe import Recipe
from batchser.training.store import Store, allocate, sounds_key
from batchser.training.workers import Report, Workers

_PART: Final = 250  # clips, or gate windows, a worker composes at once


@dataclass(frozen=True, slots=True)
class ClipAudio:
    """The samples of many clips in one file, float32 (total,): clip k's are ``offsets[k]`` to ``offsets[k + 1]``.

    ``key`` stands for all of them by their content.
    """

    folder: Path
    offsets: IntArray
    key: str

    def open(self) -> list[FloatArray]:
        """Map the file into memory: float32 (n,) for each clip."""
        samples = np.load(self.folder / "samples.npy", mmap_mode="r")
        return [samples[a:b] for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]


def read_audio(
    clips: Sequence[Clip], rate_hz: int, store: Store, workers: Workers
) -> tuple[list[Clip], ClipAudio, list[Fault]]:
    """Decode all clips at the model's rate into one file; clips that are silent or cannot be read are faults.

    What was decoded of the same files before is taken from the store.

    Returns
    -------
    clips : those that were taken
    audio : their samples
    faults : the others
    """
    key = [clips_key(clips), [clip.path.stat().st_mtime_ns for clip in clips], rate_hz]
    folder = store.make("audio", key, lambda path: _read_all(clips, rate_hz, path, workers))
    read = json.loads((folder / "read.json").read_text())
    told = list(zip(clips, read, strict=True))
    faults = [Fault(clip.corpus, clip.place, **item) for clip, item in told if "fault" in item]
    heard = [(clip, item) for clip, item in told if "fault" not in item]
    taken = [clip for clip, _ in heard]
    offsets = np.cumsum([0, *(item["samples"] for _, item in heard)], dtype=np.int64)
    content = fingerprint_of([clips_key(taken), rate_hz, [item for _, item in heard]])
    return taken, ClipAudio(folder, offsets, content), faults


def _read_all(clips: Sequence[Clip], rate_hz: int, path: Path, workers: Workers) -> None:
    """Write ``samples.npy``, and ``read.json`` with what each clip gave."""
    starts = range(0, len(clips), _PART)
    files = [path / f"{start}.f32" for start in starts]
    jobs = [(list(clips[k : k + _PART]), rate_hz, file) for k, file in zip(starts, files, strict=True)]
    read = [item for part in workers.run(_read_part, jobs) for item in part]
    total = sum(item.get("samples", 0) for item in read)
    with (path / "samples.npy").open("wb") as whole:
        header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (total,)}
        np.lib.format.write_array_header_1_0(whole, header)
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, whole)
            file.unlink()  # one at a time: the room for all of them twice may not be there
    (path / "read.json").write_text(json.dumps(read))


def _read_part(clips: Sequence[Clip], rate_hz: int, file: Path, report: Report) -> list[dict[str, Any]]:
    """Write clips' samples one after another; the number and checksum of each one's, or what is wrong with it."""
    read: list[dict[str, Any]] = []
    with file.open("wb") as out:
        for clip in clips:
            try:
                samples = np.ascontiguousarray(read_clip(clip, rate_hz), np.float32)
                fault = check_audio(clip, samples)
            except AudioError as error:
                fault = unreadable(clip, error)
            if fault is not None:
                read.append({"fault": fault.fault, "detail": fault.detail})
                continue
            content = samples.tobytes()
            read.append({"samples": samples.size, "crc32": zlib.crc32(content)})
            out.write(content)
    return read


@dataclass(frozen=True, slots=True)
class SoundFiles:
    """The folders of noises, music and rooms' impulse responses that may lie behind a voice."""

    noise: Path
    music: Path
    rooms: Path

    def key(self) -> list[list[list[Any]]]:
        """Stand for the sounds by name and content, wherever they lie."""
        return [sounds_key(find_audio(folder)) for folder in (self.noise, self.music, self.rooms)]


def compose_emotions(
    recipe: Recipe,
    clips: Sequence[Clip],
    audio: ClipAudio,
    sounds: SoundFiles,
    apart: frozenset[int],
    store: Store,
    workers: Workers,
) -> Path:
    """Compose every clip's training windows: ``inputs.npy`` float16 (n, copies, T, F), features as in the job.

    Clips of a speaker lie beside each other in windows, but none of ``apart`` beside others: a random protocol's test
    clips, which no window of a training clip may hold.
    """
    settings = recipe.features
    if recipe.windows.cut == "clip":
        apart = frozenset()  # each window holds its clip alone: those of another protocol are the same
    key = {
        "seed": recipe.seed, "features": asdict(settings), "windows": asdict(recipe.windows),
        "augment": asdict(recipe.augment), "clips": clips_key(clips), "sounds": sounds.key(), "audio": audio.key,
        "apart": sorted(apart),
    }  # fmt: skip
    shape = (len(clips), recipe.windows.copies, settings.num_steps, settings.num_features)

    def fill(path: Path) -> None:
        allocate(path / "inputs.npy", shape, np.float16)
        starts = range(0, len(clips), _PART)
        jobs = [(recipe, clips, audio, sounds, apart, path, k, min(k + _PART, len(clips))) for k in starts]
        workers.run(_compose_part, jobs)

    return store.make("windows", key, fill)


def _compose_part(
    recipe: Recipe, clips: Sequence[Clip], audio: ClipAudio, files: SoundFiles, apart: frozenset[int], path: Path,
    start: int, stop: int, report: Report,
) -> None:  # fmt: skip
    settings = recipe.features
    sounds = _line_sounds(recipe, files)
    samples_of = audio.open()
    take = functools.cache(lambda k: make_take(np.asarray(samples_of[k]), settings.rate_hz))
    pools = _pools(clips, apart)
    out = np.load(path / "inputs.npy", mmap_mode="r+")
    for k in range(start, stop):
        rng = np.random.default_rng([recipe.seed, 2, k])
        neighbour = _drawing([j for j in pools[_pool_of(clips[k])] if j != k], take)
        windows = [
            clip_window(rng, take(k), copy, settings, recipe.windows, recipe.augment, sounds)
            if recipe.windows.cut == "clip"
            else emotion_window(rng, take(k), neighbour, settings, recipe.windows, recipe.augment, sounds)
            for copy in range(recipe.windows.copies)
        ]
        frames = frames_inside(np.array([length for _, length in windows], np.int32), settings)
        stack = extract(np.stack([samples for samples, _ in windows]), settings).stack  # (copies, T, F)
        out[k] = network_input(stack, frames, settings)
    out.flush()
    report(f"windows of clips {start + 1} to {stop} of {len(clips)} composed")


def _drawing(rows: Sequence[int], take: Callable[[int], Take]) -> Callable[[np.random.Generator], Take] | None:
    """Draw one of ``rows``; only those drawn are looked at."""
    return (lambda rng: take(rows[int(rng.integers(len(rows)))])) if rows else None


def _pools(clips: Sequence[Clip], apart: frozenset[int]) -> dict[tuple[str, str, str], list[int]]:
    """Clips that may lie beside each other."""
    pools: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for k, clip in enumerate(clips):
        if k not in apart:
            pools[_pool_of(clip)].append(k)
    return pools


def _pool_of(clip: Clip) -> tuple[str, str, str]:
    return clip.corpus, clip.speaker, clip.emotion


def _line_sounds(recipe: Recipe, files: SoundFiles) -> Sounds:
    """What may lie behind a voice, as far as the recipe uses it."""
    augment = recipe.augment
    return _read_sounds(
        files.noise if augment.background_probability and files.noise.is_dir() else None,
        files.music if augment.music_probability and files.music.is_dir() else None,
        files.rooms if augment.room_probability and files.rooms.is_dir() else None,
        recipe.features.rate_hz,
    )


#: Sounds are decoded once a process, not once a part: that took longer than composing its windows.
_read_sounds = functools.lru_cache(maxsize=1)(read_sounds)


@functools.lru_cache(maxsize=4)  # music and noise of two sides
def _read_files(files: tuple[Path, ...], rate_hz: int) -> list[FloatArray]:
    return [read_samples(file, rate_hz) for file in files]


@dataclass(frozen=True, slots=True)
class GateSide:
    """What one side of the gate's windows is made of, training or validation: ``count`` windows of some speakers' clips
    (by number), pieces of music, and noises.
    """

    count: int
    voices: Mapping[str, tuple[int, ...]]
    music: tuple[Path, ...]
    noise: tuple[Path, ...]


def compose_gate(
    recipe: Recipe, sides: Sequence[GateSide], clips: Sequence[Clip], audio: ClipAudio, store: Store, workers: Workers
) -> Path:
    """Compose windows with a timeline of kinds, one side's after the other's.

    Returns
    -------
    Path : of ``inputs.npy``, float16 (n, 1, T, num_mels), and ``kinds.npy``, int8 (n, 1, num_chunks)
    """
    settings = recipe.features
    num_chunks = -(-settings.num_frames // recipe.gate.chunk_frames)  # the last one may be cut, as in the network
    key = {
        "seed": recipe.seed, "features": asdict(settings), "clips": clips_key(clips), "audio": audio.key,
        "augment": asdict(recipe.gate_augment or recipe.augment),
        "sides": [[s.count, dict(s.voices), sounds_key((*s.music, *s.noise))] for s in sides],
    }  # fmt: skip

    count = sum(side.count for side in sides)

    def fill(path: Path) -> None:
        allocate(path / "inputs.npy", (count, 1, settings.num_frames, settings.num_mels), np.float16)
        allocate(path / "kinds.npy", (count, 1, num_chunks), np.int8)
        jobs, first = [], 0
        for side in sides:
            starts = range(0, side.count, _PART)
            jobs += [(recipe, side, audio, path, first, k, min(k + _PART, side.count)) for k in starts]
            first += side.count
        workers.run(_compose_gate_part, jobs)

    return store.make("gate-windows", key, fill)


def _compose_gate_part(
    recipe: Recipe, side: GateSide, audio: ClipAudio, path: Path, first: int, start: int, stop: int, report: Report
) -> None:
    """Compose windows ``start`` to ``stop`` of a side, which lie from row ``first`` on."""
    settings = recipe.features
    samples_of = audio.open()
    sounds = GateSounds(
        {speaker: [np.asarray(samples_of[k]) for k in rows] for speaker, rows in side.voices.items()},
        _read_files(side.music, settings.rate_hz),
        _read_files(side.noise, settings.rate_hz),
    )
    x, y = (np.load(path / f"{array}.npy", mmap_mode="r+") for array in ("inputs", "kinds"))
    frames = np.array([settings.num_frames], np.int32)
    for k in range(first + start, first + stop):
        rng = np.random.default_rng([recipe.seed, 5, k])
        samples, y[k, 0] = gate_window(rng, sounds, settings, y.shape[2], recipe.gate_augment or recipe.augment)
        x[k, 0] = level_below_peak(log_mel(samples[None], settings), frames, settings.top_db)[0]
    x.flush()
    y.flush()
    report(f"gate windows {start + 1} to {stop} of {side.count} composed")
