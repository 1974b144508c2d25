"""Composed calls: two-party calls whose truth is known, scored window by window. The figure nearest to the job's work.

A folder of composed calls holds manifest.csv, the recordings it names, and turns.csv: call_id, channel (0 agent,
1 customer), start_s, end_s, kind (speech, music, ring, dtmf, beep), emotion, speaker (``CORPUS/ID``).

Windows count whose truth is plain: at least half of the window is speech and no other sound is in it; or at least half
is music or tone, and no speech; or nothing at all is in it (silence). Emotions are scored where the customer alone
speaks, with one emotion, in at least half of the window. In mono calls both parties' turns lie on the one channel.
"""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from batchser.bundle import Bundle
from batchser.errors import ConfigError
from batchser.manifest import read_inputs
from batchser.pipeline import score_recordings
from batchser.records import KINDS, SPEECH, BoolArray, FloatArray, IntArray, Outcome
from batchser.scoring import Model
from batchser.settings import RunSettings
from batchser.training.corpora import READERS, Clip
from batchser.training.evaluate import scores
from batchser.training.protocols import Split, speaker_of

#: A composed window counts as one kind when that kind fills so much of it, and nothing else is in it.
TRUTH_PART: Final = 0.5
_COLUMNS: Final = ("call_id", "channel", "start_s", "end_s", "kind", "emotion", "speaker")
_KIND_OF_TURN: Final = {"speech": "speech", "music": "music", "ring": "tone", "dtmf": "tone", "beep": "tone"}
_CUSTOMER: Final = "1"  # the channel, in turns.csv

Turn = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CallWindows:
    """Windows of composed calls beside the truth: kinds found and true, probabilities and true emotions.

    ``true_kind`` and ``kind`` are int (n,), index into KINDS (a ring, DTMF or beep is a tone); ``emotion`` int (n,)
    is the true label of a speech window of the customer, −1 elsewhere; ``probabilities`` float32 (n, L), a row of NaN
    where the gate found no speech; ``uncalibrated`` the same without the model's temperature; ``speakers`` str (n,)
    the customer of such a window (``CREMA-D/1001``), empty elsewhere; ``splits`` str (n,) whose model scored it;
    ``call_ids`` str (n,).
    """

    true_kind: IntArray
    kind: IntArray
    emotion: IntArray
    probabilities: FloatArray
    uncalibrated: FloatArray
    speakers: np.ndarray
    splits: np.ndarray
    call_ids: np.ndarray
    num_calls: int = 1


def join(parts: Sequence[CallWindows]) -> CallWindows:
    """Put the windows of several calls or folders together."""
    names = [field.name for field in dataclasses.fields(CallWindows) if field.name != "num_calls"]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return CallWindows(**arrays, num_calls=sum(part.num_calls for part in parts))


def read_turns(folder: Path) -> dict[str, list[Turn]]:
    """Read a folder's turns.csv by call.

    Raises
    ------
    ConfigError : no turns.csv, one without a column it needs, or without any turn
    """
    path = folder / "turns.csv"
    if not path.is_file() or not (folder / "manifest.csv").is_file():
        raise ConfigError(f"--calls {folder}: expected manifest.csv and turns.csv there, as composed calls have them")
    turns: dict[str, list[Turn]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ConfigError(f"{path}: no column {', '.join(missing)}; expected {', '.join(_COLUMNS)}")
        for row in reader:
            turns[row["call_id"]].append(row)
    return turns


def find_split(folder: Path, clips: Sequence[Clip], splits: Sequence[Split]) -> Split:
    """Find the split whose model never heard any customer of a folder's calls.

    Its train clips hold none of them; of several such splits it is the one that tests most of them. A speaker of whom
    there is no clip, as of a corpus that the model was not trained on, is a stranger to every model.

    Raises
    ------
    ConfigError : a customer is not named as CORPUS/SPEAKER, or every model heard one; the message says what to do
    """
    customers = _customers(folder, {clip.corpus for clip in clips} | set(READERS))
    trained = {split.name: customers & {speaker_of(clips[k]) for k in split.train} for split in splits}
    tested = {split.name: customers & {speaker_of(clips[k]) for k in split.test} for split in splits}
    strangers = [split for split in splits if not trained[split.name]]
    if strangers:
        return max(strangers, key=lambda split: len(tested[split.name]))
    best = min(splits, key=lambda split: len(trained[split.name]))
    heard = sorted(trained[best.name])
    named = ", ".join(heard[:5]) + (", …" if len(heard) > 5 else "")
    raise ConfigError(
        f"--calls {folder}: every model has heard some of its {len(customers)} customers; the one of {best.name} has "
        f"heard {len(heard)}: {named}. Compose calls from the test speakers of one split (one fold), a folder for "
        "each, and give --calls several times"
    )


def _customers(folder: Path, corpora: Collection[str]) -> set[str]:
    """Names of all customers in a folder's calls, every one of a corpus that is known, so that leaks can be found."""
    turns = [turn for call in read_turns(folder).values() for turn in call]
    names = {t["speaker"] for t in turns if t["kind"] == "speech" and t["channel"] == _CUSTOMER}
    strange = sorted(name for name in names if name.rpartition("/")[0] not in corpora)
    if strange or not names:
        received = ", ".join(repr(name) for name in strange[:5]) or "no customer's speech"
        raise ConfigError(
            f"--calls {folder}: turns.csv, column speaker: received {received}, expected CORPUS/SPEAKER, with one of "
            f"{', '.join(sorted(corpora))}; else nobody can tell whether a model has heard them"
        )
    return names


def score_calls(folder: Path, model: Model, split: str = "") -> CallWindows:
    """Score a folder of composed calls with the model of ``split``.

    Raises
    ------
    ConfigError : turns.csv or manifest.csv is missing or does not fit
    """
    turns = read_turns(folder)
    manifest = read_inputs([str(folder / "manifest.csv")], frozenset())
    parts = [
        _call_windows(outcome, turns[outcome.recording.call_id], model.bundle, split)
        for outcome in score_recordings(manifest.recordings, model, RunSettings(roles=("all",)))
    ]
    return join(parts)


def _call_windows(outcome: Outcome, turns: Sequence[Turn], bundle: Bundle, split: str) -> CallWindows:
    """The windows of one call whose truth is plain."""
    rows: list[tuple[int, int, int, str]] = []
    found = [np.empty((0, len(bundle.labels)), np.float32)]
    for channel in outcome.windows:
        own = [t for t in turns if len(outcome.windows) == 1 or int(t["channel"]) == channel.channel]
        for k in range(len(channel.kind)):
            kind, label, speaker = truth_of(own, channel.start_s[k], channel.end_s[k], bundle.labels)
            if kind is not None:
                rows.append((kind, int(channel.kind[k]), label, speaker))
                found.append(channel.probabilities[k][None])
    probabilities = np.concatenate(found)
    return CallWindows(
        true_kind=np.array([row[0] for row in rows], np.int32),
        kind=np.array([row[1] for row in rows], np.int32),
        emotion=np.array([row[2] for row in rows], np.int32),
        probabilities=probabilities,
        uncalibrated=scores.without_temperature(probabilities, bundle.temperature).astype(np.float32),
        speakers=np.array([row[3] for row in rows], np.str_),
        splits=np.full(len(rows), split, np.dtype(f"U{max(1, len(split))}")),
        call_ids=np.full(len(rows), outcome.recording.call_id),
    )


def truth_of(turns: Sequence[Turn], start_s: float, end_s: float, labels: Sequence[str]) -> tuple[int | None, int, str]:
    """The window's kind (None: mixed), and its one emotion and customer (−1 and empty: none, several, the agent)."""
    seconds: dict[str, float] = defaultdict(float)
    voices = set()
    for turn in turns:
        inside = min(end_s, float(turn["end_s"])) - max(start_s, float(turn["start_s"]))
        if inside > 0:
            seconds[_KIND_OF_TURN[turn["kind"]]] += inside
            if turn["kind"] == "speech":
                voices.add((turn["channel"], turn["emotion"], turn["speaker"]))
    if not seconds:
        return KINDS.index("silence"), -1, ""
    kind, longest = max(seconds.items(), key=lambda item: item[1])
    if len(seconds) > 1 or longest < TRUTH_PART * (end_s - start_s):
        return None, -1, ""
    channel, emotion, speaker = next(iter(voices)) if len(voices) == 1 else ("", "", "")
    if channel == _CUSTOMER and emotion in labels:
        return KINDS.index(kind), labels.index(emotion), speaker
    return KINDS.index(kind), -1, ""


def evaluate_calls(windows: CallWindows, bundle: Bundle, gate_fold: str = "") -> dict[str, Any]:
    """Sum up composed calls: per true kind, what passes as speech; over the customers' windows, the emotions.

    ``gate_fold`` is the one split whose speakers the gate never heard either: the gate is measured on its calls where
    there are some, else on all, and ``gate_unheard`` says which.
    """
    strangers = windows.splits == gate_fold
    unheard = bool(strangers.any())
    result = {
        "calls": windows.num_calls,
        "splits": sorted(set(windows.splits.tolist())),
        "filled": TRUTH_PART,
        "gate_unheard": unheard,
        "gate_splits": [gate_fold] if unheard else sorted(set(windows.splits.tolist())),
        "gate": _gate_scores(windows, strangers if unheard else np.ones(len(windows.kind), bool)),
    }
    customers = windows.emotion >= 0
    own = customers & ~np.isnan(windows.probabilities).any(axis=1)
    if not own.any():
        return result
    return result | {"refused": int((customers & ~own).sum())} | _emotion_scores(windows, own, bundle)


def _gate_scores(windows: CallWindows, own: BoolArray) -> dict[str, Any]:
    true_kind, kind = windows.true_kind[own], windows.kind[own]
    return {
        name: {
            "windows": int((true_kind == k).sum()),
            "passed_as_speech": float((kind[true_kind == k] == SPEECH).mean()),
            "same_kind": float((kind[true_kind == k] == k).mean()),
        }
        for k, name in enumerate(KINDS)
        if (true_kind == k).any()
    }


def _emotion_scores(windows: CallWindows, own: BoolArray, bundle: Bundle) -> dict[str, Any]:
    """Scores of the customers' windows that passed the gate, with intervals over customers."""
    labels, negative = bundle.labels, np.isin(bundle.labels, list(bundle.negative_labels))
    truth, probabilities, speakers = windows.emotion[own], windows.probabilities[own], windows.speakers[own]
    answers = probabilities.argmax(axis=1).astype(np.int32)
    corpora = np.array([speaker.rpartition("/")[0] for speaker in speakers])
    polarity = scores.summary(
        negative[truth].astype(np.int32),
        (probabilities[:, negative].sum(axis=1) > 0.5).astype(np.int32),
        speakers,
        2,
    )
    found = scores.summary(truth, answers, speakers, len(labels))
    found["intervals"]["negative_uar"] = polarity["intervals"]["uar"]
    del found["clips"]
    return {
        "emotion_windows": int(own.sum()),
        **found,
        "negative_uar": polarity["uar"],
        **scores.per_class(truth, answers, speakers, labels),
        "confusion": scores.confusion_matrix(truth, answers, len(labels)).tolist(),
        "by_corpus": {
            str(name): scores.summary(truth[rows], answers[rows], speakers[rows], len(labels))
            for name, rows in ((name, corpora == name) for name in np.unique(corpora))
        },
        **scores.calibration(probabilities, windows.uncalibrated[own], truth),
        "threshold": bundle.abstain_threshold,
        **scores.abstaining(probabilities, truth, bundle.abstain_threshold),
    }
