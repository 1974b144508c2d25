"""The story of a training run: corpora → windows → gate, one model a split, the shipped model → bundle and card.

The split models exist to be measured: each is scored on the split's clips, under the recipe's protocol. The shipped
network is trained the same way on all clips, a few of its speakers kept for early stopping and calibration; or it is
the first split's own (``Recipe.ship``).
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from batchser import networks
from batchser.bundle import Bundle, named_weights, write_bundle
from batchser.errors import ConfigError
from batchser.features import check_libraries
from batchser.locks import FolderLock
from batchser.records import FloatArray
from batchser.scoring import Model, start_tensorflow
from batchser.training import augment, compose, evaluate, protocols
from batchser.training.compose import ClipAudio, SoundFiles
from batchser.training.corpora import Clip, CorpusRead, clips_key, corpus_of, read_corpora, render_faults
from batchser.training.emotion_lesson import (
    TrainingSet,
    emotion_jobs,
    start_models,
    teacher_jobs,
    teaching,
)
from batchser.training.evaluate import scores
from batchser.training.evaluate.calls import find_split
from batchser.training.evaluate.card import render_card
from batchser.training.evaluate.degradations import available
from batchser.training.fit import Fitted
from batchser.training.fits import fit_or_take
from batchser.training.gate_lesson import GATE, gate_weights, prepare_lesson
from batchser.training.protocols import SHIPPED, Split
from batchser.training.recipe import Recipe
from batchser.training.start import Base, open_base
from batchser.training.store import Store, check_cache
from batchser.training.workers import Report, Workers, start_workers


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    report: Report,
    calls: Sequence[Path] = (),
    workers: int = 2,
    options: evaluate.EvaluateOptions | None = None,
    models: Sequence[Path] = (),
    cache: Path | None = None,
) -> Bundle:
    """Train a bundle from its recipe and write it to ``out``.

    Parameters
    ----------
    recipe : what to train
    data : the corpora's folder; ``music/``, ``noise/`` and ``rir/`` in it teach the gate and lie behind voices
    out : the bundle's folder, written at the end; ``OUT.work`` keeps finished fits and the others' last epochs until
        then, and decoded clips and windows where there is no ``cache``
    report : takes lines of progress
    calls : folders of composed calls to be scored, each of speakers that one split's model never heard
    workers : processes; each fits one network at a time on one thread
    options : what is measured besides
    models : folders of bundles, among which the recipe's ``start_from`` is looked for
    cache : a folder that keeps decoded clips and windows for other runs

    Raises
    ------
    ConfigError : missing corpora, splits without clips, calls of speakers that every model will have heard, a cache
        that cannot be used, another run at work in ``OUT.work``
    """
    if cache is not None:
        check_cache(cache, out)
    start_tensorflow(1)
    check_machine(recipe)
    read = read_corpora(data, recipe.corpora, recipe.label_options)
    check_clips(read.clips, recipe)
    splits = splits_of(recipe, read.clips)
    for folder in calls:
        find_split(folder, read.clips, splits)  # must not be found after an hour
    base = open_base(recipe, models)
    start_models(recipe, base, read.clips, splits)
    work = out.with_name(f"{out.name}.work")
    with FolderLock(work):
        with start_workers(workers, report) as pool:
            lessons = _prepare_lessons(recipe, read, base, data, Store(cache or work, report), pool)
            fitted = _fit_all(recipe, lessons, work, pool)
            shipped = fitted[SHIPPED if recipe.ship == "all" else lessons.splits[0].name]
            history = {name: each.history for name, each in fitted.items()}
            draft = _describe(recipe, base, {**lessons.about, "history": history})
            gate = base.gate_weights() if base else gate_weights(fitted[GATE])
            heard = replace(lessons, jobs=[], gate_jobs=[])  # a worker that scores needs no jobs
            scoring = [
                (replace(draft, temperature=fitted[s.name].temperature), gate | _arrays(fitted[s.name]), s, heard)
                for s in lessons.splits
            ]
            predictions = scores.join(pool.run(_score_split, scoring))
        threshold = scores.choose_threshold(predictions, recipe.kept_share)
        draft = replace(draft, temperature=shipped.temperature, abstain_threshold=threshold)
        weights = gate | _arrays(shipped)
        split_weights = {split.name: _split_arrays(fitted[split.name]) for split in lessons.splits}
        bundle = write_bundle(work / "unscored", draft, weights, split_weights, card="")
        options = options or evaluate.EvaluateOptions()
        found = evaluate.evaluate_bundle(bundle, lessons.clips, calls, options, predictions=predictions, report=report)
        scored = replace(draft, scores=found)
        written = write_bundle(out, scored, weights, split_weights, render_card(scored))
        shutil.rmtree(work, ignore_errors=True)
        return written


@dataclass(frozen=True, slots=True)
class _Lessons:
    """All that is ready before the first fit: clips and splits, one job a network, and what bundle.json says of it.

    There is no gate's job where the gate is taken from another bundle.
    """

    clips: list[Clip]
    audio: ClipAudio
    splits: list[Split]
    jobs: list[tuple[Any, ...]]
    gate_jobs: list[tuple[Any, ...]]
    about: dict[str, Any]


def _prepare_lessons(
    recipe: Recipe, read: CorpusRead, base: Base | None, data: Path, store: Store, pool: Workers
) -> _Lessons:
    """Read the clips, deal them into splits and compose the windows of every network."""
    report = store.report
    report(f"{len(read.clips)} clips of {len({protocols.speaker_of(c) for c in read.clips})} speakers; reading")
    clips, audio, silent = compose.read_audio(read.clips, recipe.features.rate_hz, store, pool)
    tell_left_out(read, silent, report)
    splits = splits_of(recipe, clips)
    training = compose_training_set(recipe, clips, audio, splits[0], data, store, pool)
    jobs = emotion_jobs(training, splits, base)
    taken = {clip.place for clip in clips}
    validation = training.validation(jobs)
    about = {
        "left_out": len(read.faults) + len(silent),
        "silent": [clips_key([clip]) for clip in read.clips if clip.place not in taken],
        "heard": sorted({protocols.speaker_key(clip) for clip in clips} | (base.heard if base else set())),
        "held_out": {split.name: sorted(protocols.held_out(clips, split, recipe.protocol)) for split in splits},
        "validation_speakers": {SHIPPED: validation[splits[0].name]} | validation,
    }
    if base is not None:
        return _Lessons(clips, audio, splits, jobs, [], about | base.about_gate())
    lesson = prepare_lesson(recipe, clips, splits, audio, data, store, pool)
    gate_job = (lesson.task, lesson.folder, np.load(lesson.folder / "kinds.npy"), None, None)
    return _Lessons(clips, audio, splits, jobs, [gate_job], {**about, **lesson.about})


def _fit_all(recipe: Recipe, lessons: _Lessons, work: Path, pool: Workers) -> dict[str, Fitted]:
    """Fit the gate and the teachers, then the networks that learn from them: all by their tasks' names."""
    first = [*lessons.gate_jobs, *teacher_jobs(recipe, lessons.jobs)]
    untaught = [(*job, None, work) for job in (first if recipe.teacher_networks else [*first, *lessons.jobs])]
    fitted = dict(zip([job[0].name for job in untaught], pool.run(fit_or_take, untaught), strict=True))
    if recipe.teacher_networks:
        jobs = [(*job, teaching(recipe, job[0].name, fitted), work) for job in lessons.jobs]
        fitted |= zip([job[0].name for job in jobs], pool.run(fit_or_take, jobs), strict=True)
    return fitted


def compose_training_set(
    recipe: Recipe, clips: Sequence[Clip], audio: ClipAudio, split: Split, data: Path, store: Store, pool: Workers
) -> TrainingSet:
    """Compose the windows of a recipe, or take them from the store; ``split`` is the one of a random protocol."""
    sounds = SoundFiles(data / "noise", data / "music", data / "rir")
    apart = frozenset(split.test.tolist()) if recipe.protocol == "random" else frozenset()
    windows = compose.compose_emotions(recipe, clips, audio, sounds, apart, store, pool)
    return TrainingSet(recipe, tuple(clips), windows)


def splits_of(recipe: Recipe, clips: Sequence[Clip]) -> list[Split]:
    """Deal clips into the splits of a recipe's protocol."""
    return protocols.splits(
        clips, recipe.protocol, folds=recipe.folds, test_corpora=recipe.test_corpora, seed=recipe.seed,
        test_share=recipe.test_share,
    )  # fmt: skip


def tell_left_out(read: CorpusRead, silent: Sequence[Any], report: Report) -> None:
    """Say what is not trained on: nothing is left out silently."""
    faults = [*read.faults, *silent]
    if faults:
        report(f"{len(faults)} clips are left out:\n{render_faults(faults)}")
    if read.dropped:
        dropped = ", ".join(f"{count} {label}" for label, count in read.dropped.items())
        report(f"left out as the recipe's labels do not name them: {dropped}")


def _arrays(fitted: Fitted) -> dict[str, FloatArray]:
    """Name an emotion network's arrays as weights.npz has them."""
    return named_weights("emotion", fitted.weights) | {"scaler/mean": fitted.mean, "scaler/std": fitted.std}


def _split_arrays(fitted: Fitted) -> dict[str, FloatArray]:
    """Name a split model's arrays as its split-K.npz has them."""
    return _arrays(fitted) | {"temperature": np.array([fitted.temperature], np.float32)}


def _score_split(
    draft: Bundle, arrays: Mapping[str, FloatArray], split: Split, lessons: _Lessons, report: Report
) -> scores.Predictions:
    """Score a split in a worker, which reads the sound from the file that all share."""
    return evaluate.score_split(lessons.clips, split, Model(draft, arrays), report, lessons.audio.open())


def check_machine(recipe: Recipe) -> None:
    """Say before a run what this machine lacks for a recipe.

    Raises
    ------
    ConfigError : a library that its features, codecs or variants need
    """
    check_libraries(recipe.features)
    for lines in filter(None, (recipe.augment, recipe.gate_augment)):
        lines.check_libraries()
    if {"pitch", "stretch"} & set(recipe.windows.variants):
        augment.load_audiomentations()


def check_clips(clips: Sequence[Clip], recipe: Recipe) -> None:
    """Find before anything starts what would else be found after an hour.

    Raises
    ------
    ConfigError : masks wider than windows, an unknown line, label or corpus, options that a network does not take
    """
    unknown = sorted({c.emotion for c in clips} - set(recipe.labels))
    features = recipe.features
    shape, gate_shape = (features.num_steps, features.num_features), (features.num_frames, features.num_mels)
    fits = [("fit", recipe.fit, shape), ("gate_fit", recipe.gate_fit, gate_shape)]
    if recipe.teacher_networks:
        fits.append(("teacher_fit", recipe.teacher_fit, shape))
    faults = [
        f"{name}.{mask}: received {received}, expected at most {most}"
        for name, settings, (steps, width) in fits
        for mask, received, most in (
            ("frequency_mask", settings.frequency_mask, width),
            ("time_mask", settings.time_mask, steps),
        )
        if received > most
    ]
    if recipe.line not in available():
        faults.append(f"line: received {recipe.line!r}, expected one of {', '.join(available())}")
    corpora = sorted({clip.corpus for clip in clips})
    named = {"corpus_weights": recipe.fit.corpus_weights, "validation_corpora": recipe.fit.validation_corpora}
    for key, names in named.items():
        if unknown_names := [name for name in names if name not in corpora]:
            faults.append(f"fit.{key}: received {', '.join(unknown_names)}, expected some of {', '.join(corpora)}")
    if unknown:
        faults.append(f"labels: the corpora also hold {', '.join(unknown)}, which the recipe does not name")
    specs = [("network", recipe.network, shape), ("gate_network", recipe.gate_network, gate_shape)]
    specs += [(f"teacher_networks[{k}]", network, shape) for k, network in enumerate(recipe.teacher_networks)]
    for name, spec, (steps, width) in specs:
        try:
            rank = len(networks.build(spec.name, steps, width, 2, spec.options).output_shape)
        except ConfigError as error:
            faults += [f"{name}: {fault}" for fault in error.faults]
            continue
        if rank != (3 if name == "gate_network" else 2):
            faults.append(
                f"{name}: {spec.name!r} judges {'windows' if rank == 2 else 'chunks of windows'}; take another"
            )
    if faults:
        raise ConfigError([f"recipe {recipe.name}: {fault}" for fault in faults])


def _window_mflop(recipe: Recipe) -> float:
    """Millions of floating-point operations that the emotion network needs for a window."""
    features = recipe.features
    network = networks.build(
        recipe.network.name, features.num_steps, features.num_features, len(recipe.labels), recipe.network.options
    )
    return round(networks.flops(network) / 1e6, 1)


def _describe(recipe: Recipe, base: Base | None, about: Mapping[str, Any]) -> Bundle:
    """Describe the bundle as far as it is known before it is scored; ``about`` is what this run alone can say."""
    data = [
        {"name": corpus.name, "licence": corpus.licence, "commercial_use": corpus.commercial_use}
        for corpus in map(corpus_of, recipe.corpora)
    ]
    if base is not None:
        data += base.data_besides(recipe.corpora)
    commercial = all(corpus["commercial_use"] for corpus in data)
    whole_recipe = json.loads(json.dumps(asdict(recipe)))  # lists for tuples, as bundle.json will have them
    del whole_recipe["search"]  # made nothing of it
    return Bundle(
        name=recipe.name,
        labels=recipe.labels,
        negative_labels=recipe.negative_labels,
        network=recipe.network,
        gate_network=recipe.gate_network,
        features=recipe.features,
        gate=recipe.gate,
        temperature=1.0,
        abstain_threshold=0.0,
        licence="commercial use allowed" if commercial else "non-commercial use only",
        data=tuple(data),
        training={
            "recipe": recipe.name,
            "whole_recipe": whole_recipe,
            "seed": recipe.seed,
            "protocol": recipe.protocol,
            "line": recipe.line,
            "folds": list(recipe.folds),
            "test_corpora": list(recipe.test_corpora),
            "test_share": recipe.test_share,
            "label_options": whole_recipe["label_options"],
            "window_mflop": _window_mflop(recipe),
            "start_from": {"name": base.bundle.name, "sha256": base.bundle.sha256} if base else None,
            **about,
            "versions": {name: metadata.version(name) for name in ("batchser", "tensorflow", "keras", "numpy")},
            "python": platform.python_version(),
        },
        scores={},
    )
