"""Figures of held-out predictions: plain numbers from arrays, ready for bundle.json. No audio and no model here.

Intervals are 95 % bootstrap intervals over speakers, as clips of one speaker are not independent of each other. A label
of which there is no clip does not count in means over labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from batchser.records import BoolArray, DoubleArray, FloatArray, IntArray

_RESAMPLES: Final = 1000  # bootstrap
_CALIBRATION_BINS: Final = 15
_MEANS: Final = ("accuracy", "uar", "macro_f1")
#: Bands of age for the table of fairness: the first year above each band, None for no limit.
_AGE_BANDS: Final[tuple[tuple[str, float], ...]] = (
    ("under 30", 30), ("30 to 44", 45), ("45 to 59", 60), ("60 and over", float("inf")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Predictions:
    """Held-out clips with the probabilities that the job gave them.

    ``truth`` int (n,); ``probabilities`` float32 (n, L), calibrated, a row of NaN for a clip whose every window the
    gate refused; ``uncalibrated`` float32 (n, L), the same without the model's temperature; ``speakers``
    (``CREMA-D/1001``), ``corpora``, ``splits`` (which one's model scored the clip) and ``sexes`` (empty where unknown)
    str (n,); ``ages`` int (n,), −1 where unknown. ``left_out`` counts clips of emotions that the model has no label
    for.
    """

    labels: tuple[str, ...]
    truth: IntArray
    probabilities: FloatArray
    uncalibrated: FloatArray
    speakers: np.ndarray
    corpora: np.ndarray
    splits: np.ndarray
    sexes: np.ndarray
    ages: IntArray
    left_out: int = 0

    @property
    def answers(self) -> IntArray:
        """The label of each clip, −1 where there is none (which is wrong whatever the truth), int (n,)."""
        heard = ~np.isnan(self.probabilities).any(axis=1)
        return np.where(heard, np.nan_to_num(self.probabilities).argmax(axis=1), -1)

    def take(self, rows: IntArray | BoolArray) -> Predictions:
        """Keep some clips only."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("labels", "left_out")]
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})


def join(parts: Sequence[Predictions]) -> Predictions:
    """Put the splits' predictions together."""
    names = [field.name for field in dataclasses.fields(Predictions) if field.name not in ("labels", "left_out")]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Predictions(labels=parts[0].labels, left_out=sum(part.left_out for part in parts), **arrays)


def confusion_matrix(truth: IntArray, answers: IntArray, num_labels: int) -> IntArray:
    """Counts, int (num_labels, num_labels + 1): truth by answer, the last column for no answer."""
    matrix = np.zeros((num_labels, num_labels + 1), np.int64)
    np.add.at(matrix, (truth, answers), 1)  # −1 lands in the last column
    return matrix


def class_scores(matrix: np.ndarray) -> dict[str, DoubleArray]:
    """Recall, precision and F1 by label: confusion matrices (…, L, L + 1) → (…, L); NaN for a label without clips."""
    counts = matrix.sum(axis=-1)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    said = matrix[..., :-1].sum(axis=-2)
    present = counts > 0

    def share(part: np.ndarray, whole: np.ndarray) -> DoubleArray:
        return np.where(present, part / np.maximum(whole, 1), np.nan)

    return {"recall": share(hits, counts), "precision": share(hits, said), "f1": share(2 * hits, counts + said)}


def basic_scores(matrix: np.ndarray) -> dict[str, Any]:
    """Accuracy, UAR (mean recall over the labels present) and macro F1: confusion matrices (…, L, L + 1) → (…)."""
    each = class_scores(matrix)
    accuracy = np.diagonal(matrix, axis1=-2, axis2=-1).sum(axis=-1) / matrix.sum(axis=(-2, -1))
    return {
        "accuracy": accuracy,
        "uar": np.nanmean(each["recall"], axis=-1),
        "macro_f1": np.nanmean(each["f1"], axis=-1),
    }


def resampled(truth: IntArray, answers: IntArray, groups: np.ndarray, num_labels: int, seed: int = 0) -> np.ndarray:
    """Bootstrap over groups (speakers, mostly): confusion matrices, int (1000, L, L + 1).

    The draws depend on the number of groups and the seed alone, so two results on the same clips can be compared draw
    by draw.
    """
    _, group = np.unique(groups, return_inverse=True)
    num_groups = int(group.max()) + 1
    each = np.zeros((num_groups, num_labels, num_labels + 1), np.int64)
    np.add.at(each, (group, truth, answers), 1)
    draws = np.random.default_rng(seed).integers(0, num_groups, (_RESAMPLES, num_groups))
    times = np.zeros((_RESAMPLES, num_groups), np.int64)
    np.add.at(times, (np.arange(_RESAMPLES)[:, None], draws), 1)
    drawn: np.ndarray = np.tensordot(times, each, axes=1)
    return drawn


def interval(values: np.ndarray) -> list[float] | None:
    """The middle 95 % of bootstrapped values (m,); draws without a value (a label absent) do not count."""
    known = values[~np.isnan(values)]
    return [float(q) for q in np.quantile(known, [0.025, 0.975])] if known.size else None


def _intervals(draws: Mapping[str, np.ndarray], names: Sequence[str], groups: np.ndarray) -> dict[str, Any]:
    """Intervals by name; None for each where there is but one group: it says nothing of others."""
    several = len(np.unique(groups)) > 1
    return {name: interval(draws[name]) if several else None for name in names}


def summary(truth: IntArray, answers: IntArray, groups: np.ndarray, num_labels: int) -> dict[str, Any]:
    """Accuracy, UAR and macro F1 with their ``intervals``, and the number of clips, speakers and labels present."""
    matrix = confusion_matrix(truth, answers, num_labels)
    draws = basic_scores(resampled(truth, answers, groups, num_labels))
    return {
        **{name: float(value) for name, value in basic_scores(matrix).items()},
        "intervals": _intervals(draws, _MEANS, groups),
        "clips": len(truth),
        "speakers": len(np.unique(groups)),
        "labels": int((matrix.sum(axis=1) > 0).sum()),
    }


def per_class(truth: IntArray, answers: IntArray, groups: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """``recall``, ``precision``, ``f1`` and ``recall_intervals`` by label; None for a label without clips."""
    found = class_scores(confusion_matrix(truth, answers, len(labels)))
    draws = class_scores(resampled(truth, answers, groups, len(labels)))["recall"]
    scores: dict[str, Any] = {
        name: {label: _plain(value) for label, value in zip(labels, values, strict=True)}
        for name, values in found.items()
    }
    by_label = {label: draws[:, k] for k, label in enumerate(labels)}
    scores["recall_intervals"] = {
        label: _intervals(by_label, [label], groups[truth == k])[label] for k, label in enumerate(labels)
    }
    return scores


def reliability(probabilities: FloatArray, truth: IntArray) -> list[dict[str, float]]:
    """Put answers into 15 bins of equal mass by confidence: the count, mean confidence and accuracy of each."""
    confidence = probabilities.max(axis=1, initial=0.0).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    bins = np.array_split(np.argsort(confidence, kind="stable"), _CALIBRATION_BINS)
    return [
        {"count": len(b), "confidence": float(confidence[b].mean()), "accuracy": float(right[b].mean())}
        for b in bins
        if len(b)
    ]


def calibration_error(bins: Sequence[Mapping[str, float]]) -> float | None:
    """Compute the expected calibration error of ``reliability``'s bins (Nixon et al. 2019); None without answers."""
    total = sum(b["count"] for b in bins)
    if not total:
        return None
    return float(sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / total)


def without_temperature(probabilities: FloatArray, temperature: float) -> DoubleArray:
    """Windows' probabilities as the network gives them, float64 (n, L): softmax(z) from softmax(z / T).

    The former is the T-th power of the latter, normalised.
    """
    powers = probabilities.astype(np.float64) ** temperature
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def calibration(probabilities: FloatArray, uncalibrated: FloatArray, truth: IntArray) -> dict[str, Any]:
    """Calibration error and reliability bins with the model's temperature, and ``_before`` it; NaN rows left out."""
    heard = ~np.isnan(probabilities).any(axis=1)
    after = reliability(probabilities[heard], truth[heard])
    before = reliability(uncalibrated[heard], truth[heard])
    return {
        "calibration_error": calibration_error(after),
        "calibration_error_before": calibration_error(before),
        "reliability": after,
        "reliability_before": before,
    }


def abstaining(probabilities: FloatArray, truth: IntArray, threshold: float) -> dict[str, Any]:
    """Share of the answers that reach the threshold, and how many of these, and of all answers, are right."""
    heard = ~np.isnan(probabilities).any(axis=1)
    right = probabilities[heard].argmax(axis=1) == truth[heard]
    kept = probabilities[heard].max(axis=1, initial=0.0) >= threshold
    return {
        "kept_share": float(kept.mean()) if kept.size else 0.0,
        "kept_accuracy": float(right[kept].mean()) if kept.any() else None,
        "heard_accuracy": float(right.mean()) if right.size else None,
    }


def evaluate(predictions: Predictions, threshold: float) -> dict[str, Any]:
    """All scores of held-out predictions, as plain values for bundle.json."""
    labels, truth, answers = predictions.labels, predictions.truth, predictions.answers
    by_split = grouped(predictions, predictions.splits)
    return {
        **summary(truth, answers, predictions.speakers, len(labels)),
        **per_class(truth, answers, predictions.speakers, labels),
        "not_heard": int((answers < 0).sum()),
        "left_out": predictions.left_out,
        "confusion": confusion_matrix(truth, answers, len(labels)).tolist(),
        "by_fold": by_split,
        "uar_by_fold": {name: scores["uar"] for name, scores in by_split.items()},
        "by_corpus": {
            name: scores | {"confusion": _confusion_of(predictions, predictions.corpora == name)}
            for name, scores in grouped(predictions, predictions.corpora).items()
        },
        "by_sex": grouped(predictions, predictions.sexes),
        "by_age": grouped(predictions, age_bands(predictions.ages), [name for name, _ in _AGE_BANDS]),
        **calibration(predictions.probabilities, predictions.uncalibrated, truth),
        "threshold": float(threshold),
        **abstaining(predictions.probabilities, truth, threshold),
    }


def grouped(predictions: Predictions, names: np.ndarray, order: Sequence[str] | None = None) -> dict[str, Any]:
    """``summary`` of the clips of each name (n,), sorted or in ``order``; clips without a name are in none."""
    found = {}
    for name in order or sorted(set(names.tolist())):
        own = names == name
        if name and own.any():
            part = predictions.take(own)
            found[str(name)] = summary(part.truth, part.answers, part.speakers, len(part.labels))
    return found


def age_bands(ages: IntArray) -> np.ndarray:
    """Name the band of each age, str (n,); empty where the age is not known (−1)."""
    limits = [limit for _, limit in _AGE_BANDS]
    bands = np.array([name for name, _ in _AGE_BANDS])[np.searchsorted(limits, ages, side="right")]
    return np.where(ages >= 0, bands, "")


def choose_threshold(predictions: Predictions, kept_share: float) -> float:
    """Choose the confidence below which the model abstains, so that ``kept_share`` of the clips it heard are kept."""
    heard = predictions.probabilities[predictions.answers >= 0]
    return round(float(np.quantile(heard.max(axis=1), 1 - kept_share)), 3) if len(heard) else 0.0


def compare(predictions: Predictions, clean: Predictions, threshold: float) -> dict[str, Any]:
    """Scores of clips through a degradation beside the same clips without it (both in one order).

    ``points`` is the UAR gained (negative: lost) in percentage points, with an interval over speakers, paired.
    """
    size = len(predictions.labels)
    draws, clean_draws = (
        basic_scores(resampled(p.truth, p.answers, p.speakers, size))["uar"] for p in (predictions, clean)
    )
    own, reference = (
        float(basic_scores(confusion_matrix(p.truth, p.answers, size))["uar"]) for p in (predictions, clean)
    )
    return {
        "uar": own,
        **_intervals({"interval": draws}, ["interval"], clean.speakers),
        "points": 100 * (own - reference),
        **_intervals({"points_interval": 100 * (draws - clean_draws)}, ["points_interval"], clean.speakers),
        "not_heard": int((predictions.answers < 0).sum()),
        **abstaining(predictions.probabilities, predictions.truth, threshold),
    }


def _confusion_of(predictions: Predictions, own: BoolArray) -> list[list[int]]:
    matrix = confusion_matrix(predictions.truth[own], predictions.answers[own], len(predictions.labels))
    return [[int(count) for count in row] for row in matrix]


def _plain(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if np.isnan(value) else float(value)
