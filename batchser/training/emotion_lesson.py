"""The emotion networks' lessons: which clips each is taught with, what it is calibrated on, where it starts from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from batchser.records import FloatArray, IntArray
from batchser.training import protocols
from batchser.training.corpora import Clip
from batchser.training.distil import Teaching
from batchser.training.fit import Draws, Fitted, Task
from batchser.training.protocols import SHIPPED, Split
from batchser.training.recipe import Recipe
from batchser.training.start import Base

_TEACHER_SEEDS: Final = 1000  # apart: a split's own seed is the recipe's and its number


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Clips and the folder of their training windows, ``inputs.npy`` float16 (n, copies, T, F)."""

    recipe: Recipe
    clips: tuple[Clip, ...]
    folder: Path

    def targets(self) -> FloatArray:
        """The emotion meant, and what listeners heard where they were asked: probabilities float32 (n, L)."""
        labels, share = self.recipe.labels, self.recipe.fit.vote_share
        targets = np.zeros((len(self.clips), len(labels)), np.float32)
        for k, clip in enumerate(self.clips):
            votes = {label: count for label, count in clip.votes if label in labels}
            total = sum(votes.values())
            heard = share if total else 0.0
            targets[k, labels.index(clip.emotion)] = 1 - heard
            for label, count in votes.items():
                targets[k, labels.index(label)] += heard * count / total
        return targets

    def validation(self, jobs: Sequence[tuple[Any, ...]]) -> dict[str, list[str]]:
        """The speakers, as keys, that each fit was stopped and calibrated on and not trained on, by the fit's name."""
        tasks: list[Task] = [job[0] for job in jobs]
        return {task.name: sorted(self._speakers(task.valid) - self._speakers(task.train)) for task in tasks}

    def _speakers(self, rows: IntArray) -> set[str]:
        return {protocols.speaker_key(self.clips[k]) for k in rows}

    def draws(self) -> Draws | None:
        """How often the recipe has each clip drawn; None: each once an epoch."""
        settings = self.recipe.fit
        if not (settings.balance or settings.corpus_weights):
            return None
        members = {
            "class": [clip.emotion for clip in self.clips],
            "corpus": [clip.corpus for clip in self.clips],
            "corpus-class": [f"{clip.corpus}/{clip.emotion}" for clip in self.clips],
        }
        groups = np.zeros((len(self.clips), len(settings.balance)), np.int32)
        for k, name in enumerate(settings.balance):
            groups[:, k] = np.unique(members[name], return_inverse=True)[1]
        return Draws(groups, np.array([settings.corpus_weights.get(clip.corpus, 1.0) for clip in self.clips]))


def start_models(recipe: Recipe, base: Base | None, clips: Sequence[Clip], splits: Sequence[Split]) -> dict[str, str]:
    """Which model of ``base`` each fit starts from, by the fit's name; none without a base."""
    if base is None:
        return {}
    return {split.name: base.model_for(clips, split, recipe.protocol) for split in splits} | {SHIPPED: SHIPPED}


def teacher_name(name: str, number: int) -> str:
    """Name the fit of a teacher of the network ``name``; the first is number 1."""
    return f"{name}-teacher-{number}"


def teacher_jobs(recipe: Recipe, jobs: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The fits that those of ``emotion_jobs`` learn from, all teachers of the first one first; none without."""
    return [
        (
            replace(
                task, name=teacher_name(task.name, number), network=network, settings=recipe.teacher_fit,
                seed=task.seed + _TEACHER_SEEDS * number,
            ),
            folder, targets, draws, start if network == recipe.network else None,
        )
        for task, folder, targets, draws, start in jobs
        for number, network in enumerate(recipe.teacher_networks, start=1)
    ]  # fmt: skip


def teaching(recipe: Recipe, name: str, fitted: Mapping[str, Fitted]) -> Teaching:
    """What the network ``name`` learns from: its teachers among ``fitted``, by their fits' names."""
    named = enumerate(recipe.teacher_networks, start=1)
    return Teaching(tuple((network, fitted[teacher_name(name, k)]) for k, network in named), recipe.teacher_share)


def emotion_jobs(training: TrainingSet, splits: Sequence[Split], base: Base | None) -> list[tuple[Any, ...]]:
    """One fit a split, and the shipped one on everything unless a split's is shipped (``Recipe.ship``).

    They are the first arguments of ``fits.fit_or_take``.
    """
    recipe = training.recipe
    fitted_on = [(split.name, split.train) for split in splits]
    if recipe.ship == "all":
        fitted_on.append((SHIPPED, np.arange(len(training.clips), dtype=np.int32)))
    targets, draws = training.targets(), training.draws()
    tested = {clip.corpus for clip in training.clips} - set(protocols.train_only(training.clips, splits))
    tested = tested & set(recipe.fit.validation_corpora) or tested
    models = start_models(recipe, base, training.clips, splits)
    jobs = []
    for number, (name, rows) in enumerate(fitted_on):
        heard, kept = (base.heard, base.validation_of(models[name])) if base else ((), ())
        valid = _validation(recipe, training.clips, rows, tested, number, heard, kept)
        task = Task(
            name, np.setdiff1d(rows, valid), valid, recipe.network, len(recipe.labels), recipe.fit,
            recipe.seed + number, features=recipe.features,
        )  # fmt: skip
        start = base.start(models[name], recipe.labels) if base else None
        jobs.append((task, training.folder, targets, draws, start))
    return jobs


def _validation(
    recipe: Recipe,
    clips: Sequence[Clip],
    rows: IntArray,
    tested: Collection[str],
    number: int,
    heard: Collection[str],
    kept: Collection[str],
) -> IntArray:
    """Draw what early stopping and calibration look at: whole speakers of the tested corpora, in their proportions.

    Of the speakers that the model it starts from has ``heard``, those ``kept`` from it for the same purpose are taken,
    and no others. Under the random protocols, which do not tell speakers apart, it is a share of the clips, as where
    there is but one speaker of each corpus.
    """
    rng = np.random.default_rng([recipe.seed, 3, number])
    speakers: dict[str, set[str]] = defaultdict(set)
    for k in rows:
        key = protocols.speaker_key(clips[k])
        if (clips[k].corpus in tested or recipe.protocol == "cross-corpus") and key not in heard:
            speakers[clips[k].corpus].add(protocols.speaker_of(clips[k]))
    total = sum(map(len, speakers.values()))
    chosen: set[str] = set()
    for _, own in sorted(speakers.items()):
        share = round(recipe.fit.validation_speakers * len(own) / total)
        count = min(max(1, share), max(1, len(own) // 3), len(own) - 1)  # one at least is trained on
        chosen |= set(rng.choice(sorted(own), count, replace=False).tolist())
    valid = [k for k in rows if protocols.speaker_of(clips[k]) in chosen or protocols.speaker_key(clips[k]) in kept]
    if recipe.protocol.startswith("random") or not 0 < len(valid) < len(rows):
        return np.sort(rng.choice(rows, max(1, round(recipe.fit.validation_share * len(rows))), replace=False))
    return np.array(valid, np.int32)
