"""Evaluation: what a model is worth on clips and calls it never heard, through the job's own path.

A clip is sent down the bundle's line (a telephone's mu-law unless its recipe says otherwise), written as a recording,
and scored by ``score_recordings`` untrimmed, so that its answer is its row of the calls table. Each clip is scored by
the model of the split that tests it. Composed calls are scored window by window (calls.py).
"""

from __future__ import annotations

import functools
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from batchser.bundle import Bundle
from batchser.errors import ConfigError
from batchser.pipeline import score_recordings
from batchser.records import FloatArray, Outcome, Recording
from batchser.scoring import Model
from batchser.settings import RunSettings, available_cores
from batchser.summary import MIN_WEIGHT_S
from batchser.training import protocols
from batchser.training.corpora import Clip, read_clip
from batchser.training.evaluate import calls as composed
from batchser.training.evaluate import degradations, scores
from batchser.training.evaluate.held_out import (
    CLEAN_LINE,
    TELEPHONE_LINE,
    bundle_splits,
    line_of,
    protocol_of,
    split_model,
    strangers,
    windows_are_clips,
)
from batchser.training.evaluate.scores import Predictions
from batchser.training.examples import cut_clip
from batchser.training.protocols import Split
from batchser.training.workers import Report


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What to measure besides the clips on the bundle's line.

    ``degradations`` are names of DEGRADATIONS; the table of them is made from ``clips_per_split`` clips of each split
    (None: all). ``seed`` draws those clips and what is random in a degradation.
    """

    degradations: tuple[str, ...] = ()
    clips_per_split: int | None = None
    seed: int = 0


def choose_degradations(words: str) -> tuple[str, ...]:
    """Read ``all`` (those that this machine's libraries can do), ``none`` or a comma-separated list of names.

    Raises
    ------
    ConfigError : a name that is none, or one that needs a library or codec that is not here
    """
    if words in ("all", "none"):
        return tuple(degradations.available()) if words == "all" else ()
    names = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    unknown = [name for name in names if name not in degradations.DEGRADATIONS]
    absent = [name for name in names if name not in unknown and name not in degradations.available()]
    faults = [f"degradations: received {name!r}, expected some of {_known()}" for name in unknown]
    faults += [
        f"degradations: {name} cannot be made here: its codec is not in this machine's libraries" for name in absent
    ]
    if faults or not names:
        raise ConfigError(faults or f"degradations: received {words!r}, expected all, none or some of {_known()}")
    return names


def _known() -> str:
    return ", ".join(degradations.DEGRADATIONS)


def score_clips(
    clips: Sequence[Clip],
    model: Model,
    degradation: str = TELEPHONE_LINE,
    seed: int = 0,
    *,
    split: str = "",
    audio: Sequence[FloatArray] | None = None,
) -> Predictions:
    """Score clips through the job, each as one mono recording that came down a line.

    Parameters
    ----------
    clips : those whose emotion the model has no label for are left out and counted
    model : scores them; ``split`` is the name of the split that it belongs to
    degradation : one of DEGRADATIONS
    seed : what is random in it; a clip gets the same noise whichever clips it is scored with
    audio : the clips' samples at the model's rate, float32 (n,) each, where they are read already

    Raises
    ------
    AudioError : a clip cannot be read
    ConfigError : none of the clips has an emotion that the model knows
    """
    labels = model.bundle.labels
    rows = [k for k, clip in enumerate(clips) if clip.emotion in labels]
    if not rows:
        raise ConfigError(f"evaluate: none of {len(clips)} clips has an emotion of the model's ({', '.join(labels)})")
    known = [clips[k] for k in rows]
    own_audio = None if audio is None else [audio[k] for k in rows]
    with tempfile.TemporaryDirectory() as folder:
        recordings = _recordings(Path(folder), known, own_audio, model.bundle, degradation, seed)
        outcomes = list(score_recordings(recordings, model, RunSettings(roles=("all",))))
    nothing = (np.nan,) * len(labels)
    return Predictions(
        labels=labels,
        truth=np.array([labels.index(clip.emotion) for clip in known], np.int32),
        probabilities=np.array([o.summaries[0].means or nothing for o in outcomes], np.float32),
        uncalibrated=np.array([_uncalibrated(o, model.bundle) for o in outcomes], np.float32),
        speakers=np.array([protocols.speaker_of(clip) for clip in known]),
        corpora=np.array([clip.corpus for clip in known]),
        splits=np.full(len(known), split),
        sexes=np.array([clip.sex or "" for clip in known]),
        ages=np.array([-1 if clip.age is None else clip.age for clip in known], np.int32),
        left_out=len(clips) - len(known),
    )


def _recordings(
    folder: Path,
    clips: Sequence[Clip],
    audio: Sequence[FloatArray] | None,
    bundle: Bundle,
    degradation: str,
    seed: int,
) -> Iterator[Recording]:
    """Write each clip as 16-bit PCM when the job asks for it; its file goes when the next one comes."""
    rate_hz = bundle.features.rate_hz
    apply = degradations.DEGRADATIONS[degradation].apply
    for k, clip in enumerate(clips):
        samples = as_trained(read_clip(clip, rate_hz) if audio is None else np.asarray(audio[k]), bundle)
        name = f"{clip.path.name} {clip.start_s} {clip.channel}"  # not its folder, which differs between machines
        line = apply(np.random.default_rng([seed, zlib.crc32(name.encode())]), samples, rate_hz)
        path = folder / f"{k}.wav"
        # Whole numbers, so that what a codec decoded stays as it is: libsndfile would scale floats by 32767, not 32768.
        whole = np.clip(np.round(line.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
        soundfile.write(path, whole, rate_hz, subtype="PCM_16")
        yield Recording(k, str(k), str(path))
        path.unlink()


def as_trained(samples: FloatArray, bundle: Bundle) -> FloatArray:
    """A clip as the bundle's recipe cuts it: whole, or where its windows are clips, one window of it: (n,) → (m,)."""
    if not windows_are_clips(bundle):
        return samples
    offset_s = float(bundle.training["whole_recipe"]["windows"]["offset_s"])
    return cut_clip(samples, bundle.features.rate_hz, offset_s)[: bundle.features.window_samples]


def _uncalibrated(outcome: Outcome, bundle: Bundle) -> FloatArray:
    """A clip's probabilities as the network gives them without its temperature T, float32 (L,); NaN where not scored.

    Windows are weighted by their voiced seconds, as in summary.py. This is exact for any number of windows.
    """
    if outcome.summaries[0].means is None:
        return np.full(len(bundle.labels), np.nan, np.float32)
    (channel,) = outcome.windows
    own = channel.scored
    windows = scores.without_temperature(channel.probabilities[own], bundle.temperature)
    weights = np.maximum(channel.voiced_s[own], MIN_WEIGHT_S)
    return np.asarray(np.average(windows, axis=0, weights=weights), np.float32)


def evaluate_bundle(
    bundle: Bundle,
    clips: Sequence[Clip],
    calls: Sequence[Path] = (),
    options: EvaluateOptions = EvaluateOptions(),
    *,
    predictions: Predictions | None = None,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Score a bundle's split models on the clips they never heard, and on composed calls of speakers they never heard.

    Parameters
    ----------
    bundle : written, with its split models
    clips : the bundle's corpora, as they were read for its training
    calls : folders of composed calls, each of the test speakers of one split
    options : the table of degradations
    predictions : of all splits on the bundle's line, where they were just made
    report : takes lines of progress

    Returns
    -------
    dict : ``protocol``, ``line``, ``train_only``, ``clips``, ``cut`` where clips are cut as in training, and
        ``degradations`` and ``calls`` where asked for: plain values

    Raises
    ------
    ConfigError : the bundle carries no split models; calls of speakers whom every model heard
    """
    found = bundle_splits(bundle, clips)
    owners = {folder: composed.find_split(folder, clips, found) for folder in calls}  # before anything takes long
    model_of = functools.cache(functools.partial(split_model, bundle))
    if predictions is None:
        predictions = scores.join([score_split(clips, split, model_of(split.name), report) for split in found])
    result = _measured(bundle, clips, found, model_of, predictions, options, report)
    if calls:
        parts = []
        for folder, split in owners.items():
            report(f"composed calls in {folder.name}: scored by the model of {split.name}")
            parts.append(composed.score_calls(folder, model_of(split.name), split.name))
        held_out = str(bundle.training["gate_held_out_fold"])
        result["calls"] = composed.evaluate_calls(composed.join(parts), bundle, held_out)
    return result


def evaluate_strangers(
    bundle: Bundle,
    clips: Sequence[Clip],
    options: EvaluateOptions = EvaluateOptions(),
    *,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Score a bundle's shipped model on corpora that it was not trained on, such as a company's own labelled calls.

    The clips go through the job as they are recorded, down no further line. Those of speakers whom the model has heard
    are left out and counted. Parameters and result are those of ``evaluate_bundle``, with ``heard``: that count.

    Raises
    ------
    ConfigError : it has heard all speakers, or does not say whom
    """
    split, model = strangers(bundle, clips), Model(bundle, num_threads=available_cores())
    predictions = score_clips([clips[k] for k in split.test], model, CLEAN_LINE, split=split.name)
    about = {"protocol": "cross-corpus", "line": CLEAN_LINE, "train_only": [], "heard": len(clips) - len(split.test)}
    return _measured(bundle, clips, [split], lambda name: model, predictions, options, report) | about


def _measured(
    bundle: Bundle,
    clips: Sequence[Clip],
    found: Sequence[Split],
    model_of: Callable[[str], Model],
    predictions: Predictions,
    options: EvaluateOptions,
    report: Report,
) -> dict[str, Any]:
    """What is measured on clips, under the bundle's own protocol."""
    result: dict[str, Any] = {
        "protocol": protocol_of(bundle),
        "line": line_of(bundle),
        "train_only": protocols.train_only(clips, found),
        "clips": scores.evaluate(predictions, bundle.abstain_threshold),
    }
    if windows_are_clips(bundle):
        result["cut"] = "clip"
    if options.degradations:
        result["degradations"] = degradation_table(bundle, clips, found, model_of, options, report)
    return result


def score_split(
    clips: Sequence[Clip], split: Split, model: Model, report: Report, audio: Sequence[FloatArray] | None = None
) -> Predictions:
    """Score the clips that a split tests on with its model; ``clips`` and ``audio`` are those of all splits."""
    own = None if audio is None else [np.asarray(audio[k]) for k in split.test]
    line = line_of(model.bundle)
    found = score_clips([clips[k] for k in split.test], model, line, split=split.name, audio=own)
    uar = scores.basic_scores(scores.confusion_matrix(found.truth, found.answers, len(found.labels)))["uar"]
    report(f"{split.name}: UAR {uar:.3f} on {len(found.truth)} clips of {len(set(found.speakers))} speakers")
    return found


def degradation_table(
    bundle: Bundle,
    clips: Sequence[Clip],
    found: Sequence[Split],
    model_of: Callable[[str], Model],
    options: EvaluateOptions,
    report: Report,
) -> dict[str, Any]:
    """Score the same clips through each degradation, and clean: ``clips`` (how many), ``rows`` by name."""
    names = list(dict.fromkeys((CLEAN_LINE, *options.degradations)))
    parts: dict[str, list[Predictions]] = {name: [] for name in names}
    for split in found:
        own = [clips[k] for k in _sample(split, options)]
        own = [clip for clip in own if clip.emotion in bundle.labels]
        if not own:
            continue
        audio = [read_clip(clip, bundle.features.rate_hz) for clip in own]
        report(f"{split.name}: {len(own)} clips through {len(names)} lines")
        for name in names:
            parts[name].append(
                score_clips(own, model_of(split.name), name, options.seed, split=split.name, audio=audio)
            )
    joined = {name: scores.join(each) for name, each in parts.items()}
    clean = joined[CLEAN_LINE]
    rows = {name: scores.compare(p, clean, bundle.abstain_threshold) for name, p in joined.items()}
    about = {name: degradations.DEGRADATIONS[name].describe for name in names}
    return {
        "clips": len(clean.truth),
        "of": sum(len(split.test) for split in found),
        "rows": {name: {"describe": about[name], **row} for name, row in rows.items()},
    }


def _sample(split: Split, options: EvaluateOptions) -> list[int]:
    """The split's test clips, or a seeded draw of as many as the options ask for."""
    count = options.clips_per_split
    if count is None or count >= len(split.test):
        return [int(k) for k in split.test]
    rng = np.random.default_rng([options.seed, zlib.crc32(split.name.encode())])
    return sorted(int(k) for k in rng.choice(split.test, count, replace=False))
