"""The story of a training run: corpora → windows → gate → one model a fold → the shipped model → bundle and card.

The fold models exist to be measured: each is scored on the fold whose speakers it never heard. The shipped network is
trained the same way on all folds; a few of its speakers are kept for early stopping and temperature.
"""

from __future__ import annotations

import functools
import json
import platform
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np

from batchser.bundle import Bundle, named_weights, write_bundle
from batchser.errors import ConfigError
from batchser.features import extract, frames_inside, level_below_peak, remove_window_mean
from batchser.records import KINDS, FloatArray, IntArray
from batchser.scoring import Model, start_tensorflow
from batchser.settings import fingerprint_of
from batchser.training import evaluate, protocols, scores
from batchser.training.calls import find_split
from batchser.training.card import render_card
from batchser.training.corpora import Clip, corpus_of, find_audio, read_clip, read_corpora, read_samples
from batchser.training.examples import GateSounds, emotion_window, gate_window
from batchser.training.fit import Examples, Fitted, Report, fit
from batchser.training.recipe import Recipe

#: The recipe's keys that a fitted gate depends on, and those that a fitted emotion network depends on.
_GATE_KEYS: Final = ("corpora", "seed", "features", "gate", "gate_network", "gate_fit", "gate_windows",
                     "gate_held_out_fold", "gate_held_out_music")  # fmt: skip
_EMOTION_KEYS: Final = ("corpora", "labels", "seed", "folds", "features", "network", "fit")
#: Held-out clips that the abstain threshold keeps.
_KEPT_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Clips with their training windows, ``examples.inputs`` float16 (n, copies, T, F)."""

    clips: Sequence[Clip]
    examples: Examples
    speakers: np.ndarray
    folds: IntArray


def train(
    recipe: Recipe, data: Path, out: Path, report: Report, calls: Sequence[Path] = (), threads: int = 2
) -> Bundle:
    """Train a bundle from its recipe and write it to ``out``.

    Parameters
    ----------
    recipe : what to train
    data : the corpora's folder; ``music/`` and ``noise/`` in it teach the gate
    out : the bundle's folder, written at the end
    report : takes lines of progress
    calls : folders of composed calls to be scored, each of speakers that one fold's model never heard

    Raises
    ------
    ConfigError : missing corpora, folds without clips, calls of speakers that every model will have heard
    """
    start_tensorflow(threads)
    clips = read_corpora(data, recipe.corpora).clips
    _check(clips, recipe)
    splits = protocols.splits(clips, "speaker-folds", folds=recipe.folds, seed=recipe.seed)
    for folder in calls:
        find_split(folder, clips, splits)  # a fault in it must not be found after an hour
    report(f"{len(clips)} clips of {len({c.speaker for c in clips})} speakers; reading")
    audio = [read_clip(clip, recipe.features.rate_hz) for clip in clips]
    music, held_out_music = split_music(find_audio(data / "music"), recipe)
    kept = KeptFits(out.with_name(f"{out.name}.work"), recipe, _data_key(clips, data), report)
    gate = kept.fit(
        "gate", _GATE_KEYS, lambda: train_gate(recipe, clips, audio, music, find_audio(data / "noise"), report)
    )
    base = _base_bundle(recipe, [path.name for path in held_out_music])
    report(f"composing {recipe.fit.copies} windows a clip")
    training_set = compose(recipe, clips, audio)
    mean, std = _scaler(training_set, recipe)
    inputs = training_set.examples.inputs
    inputs[...] = (inputs - mean.astype(np.float16)) / std.astype(np.float16)  # in place: this is the large array
    shared = named_weights("gate", gate.weights) | {"scaler/mean": mean, "scaler/std": std}

    fold_weights: dict[str, FloatArray] = {}
    predictions = []
    for split in splits:
        fold = int(split.name)
        others = [f for f in recipe.folds if f != fold]
        run = functools.partial(fit_emotion, recipe, training_set, others, report, f"fold {fold}")
        fitted = kept.fit(f"without-fold-{fold}", _EMOTION_KEYS, run)
        fold_weights |= named_weights(str(fold), fitted.weights)
        fold_weights[f"temperature/{fold}"] = np.array([fitted.temperature], np.float32)
        model = Model(replace(base, temperature=fitted.temperature), shared | named_weights("emotion", fitted.weights))
        predictions.append(evaluate.score_clips([clips[k] for k in split.test], model, split=split.name))
        uar = scores.evaluate(predictions[-1], 0.0)["uar"]
        report(f"fold {fold}: UAR {uar:.3f} on its {len(set(predictions[-1].speakers))} unheard speakers")
    joined = scores.join(predictions)

    shipped = kept.fit(
        "shipped", _EMOTION_KEYS, lambda: fit_emotion(recipe, training_set, list(recipe.folds), report, "shipped model")
    )
    weights = shared | named_weights("emotion", shipped.weights)
    threshold = scores.choose_threshold(joined, _KEPT_SHARE)
    base = replace(base, temperature=shipped.temperature, abstain_threshold=threshold)
    bundle = write_bundle(out, base, weights, fold_weights, card="")
    scored = replace(base, scores=evaluate.evaluate_bundle(bundle, clips, calls, predictions=joined))
    written = write_bundle(out, scored, weights, fold_weights, render_card(scored))
    kept.remove()
    return written


@dataclass(frozen=True, slots=True)
class KeptFits:
    """Finished fits, kept as files in ``folder`` until the bundle is written: a killed run goes on from there.

    A fit is taken again only for the same clips, labels, folds and sounds, which ``data_key`` stands for.
    """

    folder: Path
    recipe: Recipe
    data_key: str
    report: Report

    def fit(self, name: str, keys: Sequence[str], run: Callable[[], Fitted]) -> Fitted:
        """Return the kept fit of this name, if the recipe's ``keys`` were the same then, or run it and keep it."""
        values = asdict(self.recipe)
        key = fingerprint_of({key: values[key] for key in keys} | {"data": self.data_key})[:16]
        path = self.folder / f"{name}-{key}.npz"
        if path.is_file():
            self.report(f"{name}: taken from {path}")
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                return Fitted(
                    [file[f"{k:03d}"] for k in range(about["weights"])], about["temperature"], about["curves"]
                )
        fitted = run()
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"weights": len(fitted.weights), "temperature": fitted.temperature, "curves": fitted.history}
        arrays = {f"{k:03d}": array for k, array in enumerate(fitted.weights)}
        beside = path.with_suffix(".part.npz")
        np.savez(beside, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]  # as in bundle.py
        beside.replace(path)
        return fitted

    def remove(self) -> None:
        """Remove the kept fits: the bundle has them now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _data_key(clips: Sequence[Clip], data: Path) -> str:
    """Stand for what is trained on, wherever the folder lies: every clip's label and fold, and the names of sounds."""
    sounds = [[path.name for path in find_audio(data / folder)] for folder in ("music", "noise")]
    return fingerprint_of([[c.corpus, c.path.name, c.speaker, c.emotion, c.fold] for c in clips] + sounds)


def compose(recipe: Recipe, clips: Sequence[Clip], audio: Sequence[FloatArray]) -> TrainingSet:
    """Compose the training windows of every clip: ``fit.copies`` each, features as the job computes them."""
    rng = np.random.default_rng([recipe.seed, 2])
    settings, copies = recipe.features, recipe.fit.copies
    pools: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for k, clip in enumerate(clips):
        pools[clip.corpus, clip.speaker, clip.emotion].append(k)
    inputs = np.empty((len(clips), copies, settings.num_frames, settings.num_features), np.float16)
    for k, clip in enumerate(clips):
        pool = pools[clip.corpus, clip.speaker, clip.emotion]
        windows = [emotion_window(rng, audio[k], audio[int(rng.choice(pool))], settings) for _ in range(copies)]
        samples = np.stack([samples for samples, _ in windows])
        frames = frames_inside(np.array([length for _, length in windows], np.int32), settings)
        stack = extract(samples, settings).stack
        inputs[k] = remove_window_mean(stack, frames) if settings.window_mean_removed else stack
    return TrainingSet(
        clips,
        Examples(inputs, np.array([recipe.labels.index(clip.emotion) for clip in clips], np.int32)),
        np.array([f"{clip.corpus}/{clip.speaker}" for clip in clips]),
        np.array([-1 if clip.fold is None else clip.fold for clip in clips], np.int32),
    )


def fit_emotion(
    recipe: Recipe,
    training_set: TrainingSet,
    folds: Sequence[int],
    report: Report,
    what: str,
) -> Fitted:
    """Fit the emotion network on the clips of some folds; some of their speakers validate and are not trained on."""
    rng = np.random.default_rng([recipe.seed, 3, *folds])
    inside = np.isin(training_set.folds, folds)
    speakers = np.unique(training_set.speakers[inside])
    count = min(recipe.fit.validation_speakers, max(1, len(speakers) // 3))
    validation = np.isin(training_set.speakers, rng.choice(speakers, count, replace=False))
    return fit(
        training_set.examples.take(np.flatnonzero(inside & ~validation)),
        training_set.examples.take(np.flatnonzero(inside & validation)),
        recipe.network,
        len(recipe.labels),
        recipe.fit,
        recipe.seed + sum(1 << fold for fold in folds),
        lambda line: report(f"{what}: {line}"),
    )


def _scaler(training_set: TrainingSet, recipe: Recipe) -> tuple[FloatArray, FloatArray]:
    """Mean and deviation of each feature over some of the training windows, float32 (F,) each."""
    rng = np.random.default_rng([recipe.seed, 4])
    some = rng.choice(len(training_set.clips), min(500, len(training_set.clips)), replace=False)
    values = training_set.examples.inputs[some, 0].astype(np.float32).reshape(-1, recipe.features.num_features)
    mean = np.zeros(values.shape[1]) if recipe.features.window_mean_removed else values.mean(axis=0)
    return mean.astype(np.float32), np.maximum(values.std(axis=0), 1e-3).astype(np.float32)


def train_gate(
    recipe: Recipe,
    clips: Sequence[Clip],
    audio: Sequence[FloatArray],
    music: Sequence[Path],
    noise: Sequence[Path],
    report: Report,
) -> Fitted:
    """Fit the gate's network on the speakers outside its held-out fold, music, noise and generated sounds."""
    rng = np.random.default_rng([recipe.seed, 5])
    rate_hz = recipe.features.rate_hz
    speech: dict[str, list[FloatArray]] = defaultdict(list)
    for clip, samples in zip(clips, audio, strict=True):
        if clip.fold != recipe.gate_held_out_fold:
            speech[clip.speaker].append(samples)
    report(f"gate: {len(speech)} speakers, {len(music)} excerpts of music; composing {recipe.gate_windows} windows")
    sounds = GateSounds(
        speech,
        [read_samples(path, rate_hz) for path in music],
        [read_samples(path, rate_hz) for path in noise],
    )
    examples = _gate_examples(rng, recipe, sounds)
    order = rng.permutation(len(examples.inputs))
    cut = len(order) // 10
    return fit(
        examples.take(order[cut:]),
        examples.take(order[:cut]),
        recipe.gate_network,
        len(KINDS),
        recipe.gate_fit,
        recipe.seed,
        lambda line: report(f"gate: {line}"),
    )


def _gate_examples(rng: np.random.Generator, recipe: Recipe, sounds: GateSounds) -> Examples:
    settings = recipe.features
    num_chunks = -(-settings.num_frames // recipe.gate.chunk_frames)  # the last one may be cut, as in the network
    inputs = np.empty((recipe.gate_windows, 1, settings.num_frames, settings.num_mels), np.float16)
    targets = np.empty((recipe.gate_windows, 1, num_chunks), np.int32)
    frames = np.array([settings.num_frames], np.int32)
    for k in range(recipe.gate_windows):
        samples, targets[k, 0] = gate_window(rng, sounds, settings, num_chunks)
        inputs[k, 0] = level_below_peak(extract(samples[None], settings).mel_db, frames, settings.top_db)[0]
    return Examples(inputs, targets)


def split_music(paths: Sequence[Path], recipe: Recipe) -> tuple[list[Path], list[Path]]:
    """Split music into what the gate is trained on and what is kept to test it; excerpts of one piece stay together."""
    pieces = sorted({_piece(path) for path in paths})
    rng = np.random.default_rng([recipe.seed, 6])
    held_out = set(rng.permutation(pieces)[: round(recipe.gate_held_out_music * len(pieces))].tolist())
    return [p for p in paths if _piece(p) not in held_out], [p for p in paths if _piece(p) in held_out]


def _piece(path: Path) -> str:
    """``wesnoth-battle-epic-1.opus`` → ``wesnoth-battle-epic``: the excerpt's number does not make another piece."""
    return path.stem.rsplit("-", 1)[0]


def _check(clips: Sequence[Clip], recipe: Recipe) -> None:
    faults = [f"fold {fold}: no clip has it" for fold in recipe.folds if not any(c.fold == fold for c in clips)]
    without = sum(c.fold is None for c in clips)
    if without:
        faults.append(f"folds: {without} clips have none and would not be trained on; give each speaker a fold")
    unknown = sorted({c.emotion for c in clips} - set(recipe.labels))
    if unknown:
        faults.append(f"labels: the corpora also hold {', '.join(unknown)}, which the recipe does not name")
    if faults:
        raise ConfigError([f"recipe {recipe.name}: {fault}" for fault in faults])


def _base_bundle(recipe: Recipe, held_out_music: Sequence[str]) -> Bundle:
    """The bundle's description as far as it is known before anything is fitted."""
    corpora = [corpus_of(name) for name in recipe.corpora]
    commercial = all(corpus.commercial_use for corpus in corpora)
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
        data=tuple({"name": c.name, "licence": c.licence, "commercial_use": c.commercial_use} for c in corpora),
        training={
            "recipe": recipe.name,
            "seed": recipe.seed,
            "folds": list(recipe.folds),
            "gate_held_out_fold": recipe.gate_held_out_fold,
            "gate_held_out_music": list(held_out_music),
            "versions": {name: metadata.version(name) for name in ("batchser", "tensorflow", "keras", "numpy")},
            "python": platform.python_version(),
        },
        scores={},
    )
