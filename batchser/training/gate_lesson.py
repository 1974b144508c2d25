"""The gate's lesson: which voices, music and noises it is taught with, and what is kept from it to measure it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from batchser.bundle import named_weights
from batchser.records import KINDS, FloatArray, IntArray
from batchser.training import protocols
from batchser.training.compose import ClipAudio, GateSide, compose_gate
from batchser.training.corpora import Clip, find_audio
from batchser.training.fit import Fitted, Task
from batchser.training.protocols import Split
from batchser.training.recipe import Recipe
from batchser.training.store import Store
from batchser.training.workers import Workers

GATE: Final = "gate"
_VALIDATION: Final = 0.1  # of the gate's windows, speakers and music


def gate_weights(fitted: Fitted) -> dict[str, FloatArray]:
    """Name a fitted gate's arrays as weights.npz has them, its scaler folded into the first kernel (k, F, filters).

    The gate sees levels as they are when it works. Padding is zero, and so was the mean taken out: the two are equal.
    """
    kernel, *others = fitted.weights
    return named_weights(GATE, [kernel / fitted.std[None, :, None], *others])


@dataclass(frozen=True, slots=True)
class Lesson:
    """The gate's fit, the folder of its windows (``inputs.npy``, ``kinds.npy``), and what bundle.json says of them."""

    task: Task
    folder: Path
    about: Mapping[str, Any]


def prepare_lesson(
    recipe: Recipe,
    clips: Sequence[Clip],
    splits: Sequence[Split],
    audio: ClipAudio,
    data: Path,
    store: Store,
    workers: Workers,
) -> Lesson:
    """Compose the gate's windows from voices that are not held out from it, and music that is not."""
    music, held_out = split_music(find_audio(data / "music"), recipe)
    noise = find_audio(data / "noise")
    sides = gate_sides(recipe, clips, _voices(recipe, clips, splits), music, noise)
    folder = compose_gate(recipe, sides, clips, audio, store, workers)
    rows = np.arange(sum(side.count for side in sides), dtype=np.int32)
    cut = sides[0].count
    task = Task(GATE, rows[:cut], rows[cut:], recipe.gate_network, len(KINDS), recipe.gate_fit, recipe.seed)
    return Lesson(task, folder, {
        "gate_held_out_fold": held_out_fold(recipe, clips),
        "gate_held_out_music": [path.name for path in held_out],
        "gate_sounds": _told(recipe, {"music": music, "noise": noise, "rir": find_audio(data / "rir")}),
    })  # fmt: skip


def _told(recipe: Recipe, sounds: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Say how many files of each kind there were, and whose."""
    return {
        kind: f"{len(paths)} files, {recipe.sound_licences.get(kind, 'licence not stated')}"
        for kind, paths in sounds.items()
        if paths
    }


def _voices(recipe: Recipe, clips: Sequence[Clip], splits: Sequence[Split]) -> IntArray:
    """The clips that the gate hears: outside one fold, else those that the one split's model hears: int (·,)."""
    held_out = held_out_fold(recipe, clips)
    if held_out is None:
        return splits[0].train
    folds = protocols.assign_folds(clips, protocols.fold_count(clips, recipe.folds), recipe.seed)
    return np.flatnonzero(folds != held_out)


def held_out_fold(recipe: Recipe, clips: Sequence[Clip]) -> int | None:
    """The fold whose speakers the gate never hears, the last where there are fewer than it names; None: no folds."""
    if recipe.protocol != "speaker-folds":
        return None
    return min(recipe.gate_held_out_fold, protocols.fold_count(clips, recipe.folds) - 1)


def gate_sides(
    recipe: Recipe, clips: Sequence[Clip], rows: IntArray, music: Sequence[Path], noise: Sequence[Path]
) -> list[GateSide]:
    """Deal the speakers of ``rows``, and the music, into training and validation."""
    rng = np.random.default_rng([recipe.seed, 5])
    voices: dict[str, list[int]] = defaultdict(list)
    for k in rows.tolist():
        voices[protocols.speaker_of(clips[k])].append(k)
    speakers = rng.permutation(sorted(voices)).tolist()
    pieces = rng.permutation(sorted({_piece(path) for path in music})).tolist()
    valid_speakers = speakers[: max(1, round(_VALIDATION * len(speakers)))]
    valid_pieces = pieces[: round(_VALIDATION * len(pieces))]
    num_valid = max(1, round(_VALIDATION * recipe.gate_windows))
    sides = []
    for count, validating in ((recipe.gate_windows - num_valid, False), (num_valid, True)):
        own = {s: tuple(voices[s]) for s in speakers if (s in valid_speakers) == validating or len(speakers) == 1}
        heard = tuple(p for p in music if (_piece(p) in valid_pieces) == validating)
        sides.append(GateSide(count, own, heard, tuple(noise)))
    return sides


def split_music(paths: Sequence[Path], recipe: Recipe) -> tuple[list[Path], list[Path]]:
    """Split music into what the gate is trained on and what is kept to test it; excerpts of one piece stay together."""
    pieces = sorted({_piece(path) for path in paths})
    rng = np.random.default_rng([recipe.seed, 6])
    held_out = set(rng.permutation(pieces)[: round(recipe.gate_held_out_music * len(pieces))].tolist())
    return [p for p in paths if _piece(p) not in held_out], [p for p in paths if _piece(p) in held_out]


def _piece(path: Path) -> str:
    """``wesnoth-battle-epic-1.opus`` → ``wesnoth-battle-epic``: the excerpt's number does not make another piece."""
    return path.stem.rsplit("-", 1)[0]
