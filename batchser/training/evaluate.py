"""Evaluation: what a model is worth on speakers it never heard, through the job's own path.

Clips are sent through a telephone (300–3400 Hz, mu-law), written as recordings, and scored by ``score_recordings``
untrimmed, so that a clip's answer is its row of the calls table. Composed calls are scored window by window.
"""

from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile

from batchser.manifest import read_inputs
from batchser.pipeline import score_recordings
from batchser.records import KINDS, SPEECH, FloatArray, IntArray, Outcome, Recording
from batchser.scoring import Model
from batchser.settings import RunSettings
from batchser.training import augment
from batchser.training.corpora import Clip, read_samples

_RESAMPLES: Final = 1000  # bootstrap
_ECE_BINS: Final = 15
#: A composed window counts as one kind when that kind fills so much of it, and nothing else is in it.
TRUTH_PART: Final = 0.5


@dataclass(frozen=True, slots=True)
class Predictions:
    """Held-out clips with the probabilities that the job gave them.

    ``truth`` int (n,), ``probabilities`` float32 (n, L), a row of NaN for a clip whose every window the gate
    refused; ``speakers`` and ``folds`` (n,).
    """

    labels: tuple[str, ...]
    truth: IntArray
    probabilities: FloatArray
    speakers: np.ndarray
    folds: IntArray

    @property
    def answers(self) -> IntArray:
        """The label of each clip, −1 where there is none (which is wrong whatever the truth), int (n,)."""
        heard = ~np.isnan(self.probabilities).any(axis=1)
        return np.where(heard, np.nan_to_num(self.probabilities).argmax(axis=1), -1)


def score_clips(clips: Sequence[Clip], model: Model) -> Predictions:
    """Score clips through the job, on a telephone line without noise; each is one mono recording."""
    labels = model.bundle.labels
    rate_hz = model.bundle.features.rate_hz
    with tempfile.TemporaryDirectory() as folder:
        recordings = []
        for k, clip in enumerate(clips):
            path = Path(folder) / f"{k}.wav"
            line = augment.band_pass(read_samples(clip.path, rate_hz), rate_hz)
            soundfile.write(path, line, rate_hz, subtype="ULAW")
            recordings.append(Recording(k, str(k), str(path)))
        outcomes = list(score_recordings(recordings, model, RunSettings(roles=("all",))))
    nothing = (np.nan,) * len(labels)
    return Predictions(
        labels=labels,
        truth=np.array([labels.index(clip.emotion) for clip in clips], np.int32),
        probabilities=np.array([o.summaries[0].means or nothing for o in outcomes], np.float32),
        speakers=np.array([f"{clip.corpus}/{clip.speaker}" for clip in clips]),
        folds=np.array([-1 if clip.fold is None else clip.fold for clip in clips], np.int32),
    )


def join(parts: Sequence[Predictions]) -> Predictions:
    """Put the folds' predictions together: each clip is scored once, by the model that never heard its speaker."""
    return Predictions(
        parts[0].labels,
        np.concatenate([p.truth for p in parts]),
        np.concatenate([p.probabilities for p in parts]),
        np.concatenate([p.speakers for p in parts]),
        np.concatenate([p.folds for p in parts]),
    )


def confusion_matrix(truth: IntArray, answers: IntArray, num_labels: int) -> IntArray:
    """Counts, int (num_labels, num_labels + 1): truth by answer, the last column for no answer."""
    matrix = np.zeros((num_labels, num_labels + 1), np.int64)
    np.add.at(matrix, (truth, answers), 1)  # −1 lands in the last column
    return matrix


def basic_scores(matrix: IntArray) -> dict[str, float]:
    """Accuracy, UAR (mean recall over the labels present) and macro F1 of a confusion matrix."""
    counts, hits = matrix.sum(axis=1), np.diag(matrix)
    said = matrix[:, : len(matrix)].sum(axis=0)
    present = counts > 0
    recall = hits[present] / counts[present]
    f1 = 2 * hits[present] / np.maximum(counts[present] + said[present], 1)
    return {"accuracy": float(hits.sum() / counts.sum()), "uar": float(recall.mean()), "macro_f1": float(f1.mean())}


def intervals(predictions: Predictions, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of ``basic_scores``, bootstrapped over speakers (clips of one speaker are not independent)."""
    rng = np.random.default_rng(seed)
    size = len(predictions.labels)
    answers = predictions.answers
    per_speaker = np.stack([
        confusion_matrix(predictions.truth[own], answers[own], size)
        for own in (predictions.speakers == speaker for speaker in np.unique(predictions.speakers))
    ])  # fmt: skip
    draws = rng.integers(0, len(per_speaker), (_RESAMPLES, len(per_speaker)))
    found = [basic_scores(per_speaker[draw].sum(axis=0)) for draw in draws]
    return {
        name: tuple(float(q) for q in np.quantile([f[name] for f in found], [0.025, 0.975]))  # type: ignore[misc]
        for name in found[0]
    }


def calibration_error(probabilities: FloatArray, truth: IntArray) -> float:
    """Compute the expected calibration error over 15 bins of equal mass (Nixon et al. 2019); NaN without answers."""
    if not len(truth):
        return float("nan")
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    bins = np.array_split(np.argsort(confidence), _ECE_BINS)
    return float(sum(len(b) * abs(confidence[b].mean() - right[b].mean()) for b in bins if len(b)) / len(truth))


def evaluate(predictions: Predictions, threshold: float) -> dict[str, Any]:
    """All scores of held-out predictions, as plain values for bundle.json."""
    size = len(predictions.labels)
    answers = predictions.answers
    matrix = confusion_matrix(predictions.truth, answers, size)
    heard = answers >= 0
    probabilities, truth = predictions.probabilities[heard], predictions.truth[heard]
    kept = probabilities.max(axis=1) >= threshold
    right = probabilities.argmax(axis=1) == truth
    said = np.maximum(matrix[:, :size].sum(axis=0), 1)
    return {
        **basic_scores(matrix),
        "intervals": intervals(predictions),
        "clips": len(predictions.truth),
        "speakers": len(np.unique(predictions.speakers)),
        "not_heard": int((~heard).sum()),
        "uar_by_fold": {
            str(fold): basic_scores(confusion_matrix(predictions.truth[own], answers[own], size))["uar"]
            for fold, own in ((f, predictions.folds == f) for f in np.unique(predictions.folds))
        },
        "recall": dict(zip(predictions.labels, np.diag(matrix) / matrix.sum(axis=1).clip(1), strict=True)),
        "precision": dict(zip(predictions.labels, np.diag(matrix) / said, strict=True)),
        "confusion": matrix.tolist(),
        "calibration_error": calibration_error(probabilities, truth),
        "kept_share": float(kept.mean()) if kept.size else 0.0,
        "kept_accuracy": float(right[kept].mean()) if kept.any() else float("nan"),
    }


def choose_threshold(predictions: Predictions, kept_share: float) -> float:
    """Choose the confidence below which the model abstains, so that ``kept_share`` of held-out clips are kept."""
    confidence = np.nan_to_num(predictions.probabilities).max(axis=1)
    return round(float(np.quantile(confidence, 1 - kept_share)), 3)


@dataclass(frozen=True, slots=True)
class CallWindows:
    """Windows of composed calls beside the truth: kinds found and true, probabilities and true emotions.

    ``true_kind`` and ``kind`` are int (n,), index into KINDS (a ring, DTMF or beep is a tone); ``emotion`` int (n,)
    is the true label of a speech window of the customer, −1 elsewhere; ``probabilities`` float32 (n, L).
    """

    true_kind: IntArray
    kind: IntArray
    emotion: IntArray
    probabilities: FloatArray
    num_calls: int = 1


_KIND_OF_TURN: Final = {"speech": "speech", "music": "music", "ring": "tone", "dtmf": "tone", "beep": "tone"}


def score_calls(folder: Path, model: Model) -> CallWindows:
    """Score a folder of composed calls (manifest.csv, turns.csv with call_id, channel, start_s, end_s, kind, emotion).

    Windows count whose truth is plain: at least half speech and no other sound; at least half music or tone and no
    speech; or nothing at all (silence). In mono calls both parties' turns lie on the one channel.
    """
    turns: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (folder / "turns.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            turns[row["call_id"]].append(row)
    manifest = read_inputs([str(folder / "manifest.csv")], frozenset())
    parts = [
        _call_windows(outcome, turns[outcome.recording.call_id], model.bundle.labels)
        for outcome in score_recordings(manifest.recordings, model, RunSettings(roles=("all",)))
    ]
    return CallWindows(
        np.concatenate([p.true_kind for p in parts]),
        np.concatenate([p.kind for p in parts]),
        np.concatenate([p.emotion for p in parts]),
        np.concatenate([p.probabilities for p in parts]),
        num_calls=len(parts),
    )


def _call_windows(outcome: Outcome, turns: Sequence[Mapping[str, str]], labels: Sequence[str]) -> CallWindows:
    true_kind, kind, emotion, probabilities = [], [], [], []
    for channel in outcome.windows:
        own = [t for t in turns if len(outcome.windows) == 1 or int(t["channel"]) == channel.channel]
        for k in range(len(channel.kind)):
            truth, label = _truth(own, channel.start_s[k], channel.end_s[k], labels)
            if truth is not None:
                true_kind.append(truth)
                kind.append(int(channel.kind[k]))
                emotion.append(label)
                probabilities.append(channel.probabilities[k])
    return CallWindows(
        np.array(true_kind, np.int32),
        np.array(kind, np.int32),
        np.array(emotion, np.int32),
        np.array(probabilities, np.float32).reshape(-1, len(labels)),
    )


def _truth(
    turns: Sequence[Mapping[str, str]], start_s: float, end_s: float, labels: Sequence[str]
) -> tuple[int | None, int]:
    """The window's kind (None where mixed) and the one emotion of its customer's speech (−1 where none or several)."""
    seconds: dict[str, float] = defaultdict(float)
    emotions = set()
    for turn in turns:
        inside = min(end_s, float(turn["end_s"])) - max(start_s, float(turn["start_s"]))
        if inside > 0:
            seconds[_KIND_OF_TURN[turn["kind"]]] += inside
            if turn["kind"] == "speech":
                emotions.add((turn["channel"], turn["emotion"]))
    if not seconds:
        return KINDS.index("silence"), -1
    kind, longest = max(seconds.items(), key=lambda item: item[1])
    if len(seconds) > 1 or longest < TRUTH_PART * (end_s - start_s):
        return None, -1
    channel, emotion = next(iter(emotions)) if len(emotions) == 1 else ("", "")
    known = kind == "speech" and channel == "1" and emotion in labels
    return KINDS.index(kind), labels.index(emotion) if known else -1


def evaluate_calls(windows: CallWindows, labels: Sequence[str], negative: Sequence[str]) -> dict[str, Any]:
    """Sum up composed calls: per true kind the windows and how many pass as speech; UAR over the customer's windows."""
    gate = {
        name: {
            "windows": int((windows.true_kind == k).sum()),
            "passed_as_speech": float((windows.kind[windows.true_kind == k] == SPEECH).mean()),
            "same_kind": float((windows.kind[windows.true_kind == k] == k).mean()),
        }
        for k, name in enumerate(KINDS)
        if (windows.true_kind == k).any()
    }
    own = (windows.emotion >= 0) & ~np.isnan(windows.probabilities).any(axis=1)
    if not own.any():
        return {"calls": windows.num_calls, "gate": gate}
    truth, probabilities = windows.emotion[own], windows.probabilities[own]
    matrix = confusion_matrix(truth, probabilities.argmax(axis=1).astype(np.int32), len(labels))
    is_negative = np.isin(labels, list(negative))
    polarity = confusion_matrix(
        is_negative[truth].astype(np.int32), (probabilities[:, is_negative].sum(axis=1) > 0.5).astype(np.int32), 2
    )
    return {
        "calls": windows.num_calls,
        "gate": gate,
        "emotion_windows": int(own.sum()),
        "uar": basic_scores(matrix)["uar"],
        "negative_uar": basic_scores(polarity)["uar"],
    }
