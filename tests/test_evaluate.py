"""Evaluation: figures by hand, clips and composed calls through the job, the card, the pictures and the command."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from composed import make_calls, write_csv
from conftest import LABELS, RATE_HZ, emotion_weights, silence, speechlike, tiny_arrays, write

from batchser import cli
from batchser.bundle import Bundle, find_bundle, named_weights, write_bundle
from batchser.errors import ConfigError
from batchser.pipeline import score_recordings
from batchser.records import KINDS, MUSIC, SPEECH, Recording
from batchser.scoring import Model
from batchser.settings import RunSettings
from batchser.training import evaluate, protocols
from batchser.training.corpora import Clip, read_clip
from batchser.training.evaluate import EvaluateOptions, calls, card, degradations, measure, pictures, report, scores
from batchser.training.evaluate.calls import CallWindows
from batchser.training.evaluate.scores import Predictions
from batchser.training.protocols import PROTOCOLS, Split, describe
from batchser.training.recipe import read_recipe

# ------------------------------------------------------------------------------------------------------ figures


def predictions(truth: Sequence[int], answers: Sequence[int], speakers: Sequence[str] = (), **also: object):
    """Three labels; an answer of −1 is a clip that the gate refused. Confidence is 0.8, without temperature 0.9."""
    tables = []
    for confidence in (0.8, 0.9):
        table = np.full((len(truth), 3), (1 - confidence) / 2, np.float32)
        table[np.arange(len(truth)), answers] = confidence
        table[np.array(answers) < 0] = np.nan
        tables.append(table)
    n = len(truth)
    given = {
        "speakers": np.array(speakers or [f"s{k % 3}" for k in range(n)]),
        "corpora": np.full(n, "A"),
        "splits": np.array([str(k % 2) for k in range(n)]),
        "sexes": np.full(n, ""),
        "ages": np.full(n, -1),
    }
    return Predictions(("a", "b", "c"), np.array(truth), *tables, **given | also)


TRUTH = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
ANSWERS = [0, 0, 1, -1, 1, 1, 2, 2, 0, 2]


def test_scores_equal_those_by_hand():
    found = scores.evaluate(predictions(TRUTH, ANSWERS, left_out=4), 0.5)
    assert found["confusion"] == [[2, 1, 0, 1], [0, 2, 1, 0], [1, 0, 2, 0]]
    assert found["accuracy"] == pytest.approx(6 / 10)
    assert found["uar"] == pytest.approx((2 / 4 + 2 / 3 + 2 / 3) / 3)
    # F1 = 2 · hits / (true + said): a 4 true, 3 said; b 3 and 3; c 3 and 3
    assert found["macro_f1"] == pytest.approx((4 / 7 + 4 / 6 + 4 / 6) / 3)
    assert found["recall"] == pytest.approx({"a": 2 / 4, "b": 2 / 3, "c": 2 / 3})
    assert found["precision"] == pytest.approx({"a": 2 / 3, "b": 2 / 3, "c": 2 / 3})
    assert found["f1"] == pytest.approx({"a": 4 / 7, "b": 4 / 6, "c": 4 / 6})
    assert (found["clips"], found["speakers"], found["not_heard"], found["left_out"]) == (10, 3, 1, 4)
    assert (found["kept_share"], found["threshold"]) == (1, 0.5)
    assert found["kept_accuracy"] == found["heard_accuracy"] == pytest.approx(6 / 9)
    # 9 answers, 6 of them right, all of one confidence
    assert found["calibration_error"] == pytest.approx(sum(abs(0.8 - r) for r in [1, 1, 0, 1, 1, 0, 1, 0, 1]) / 9)
    assert found["calibration_error_before"] == pytest.approx((6 * 0.1 + 3 * 0.9) / 9)
    even = (TRUTH[0::2], ANSWERS[0::2])
    uar = np.mean([np.mean([a == t for t, a in zip(*even, strict=True) if t == label]) for label in (0, 1, 2)])
    assert found["uar_by_fold"]["0"] == found["by_fold"]["0"]["uar"] == pytest.approx(uar)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_scores_are_told_apart_by_corpus_sex_and_age():
    groups = {
        "corpora": np.array(["A"] * 7 + ["B"] * 3),
        "sexes": np.array(["female", "male"] * 4 + ["", "male"]),
        "ages": np.array([29, 30, 44, 45, 59, 60, 90, -1, -1, 20]),
    }
    found = scores.evaluate(predictions(TRUTH, ANSWERS, **groups), 0.5)
    # B holds the label c alone, A all but c: labels absent from a corpus do not count in its UAR
    assert found["by_corpus"]["B"]["uar"] == pytest.approx(2 / 3)
    assert found["by_corpus"]["A"]["uar"] == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert [found["by_corpus"][name]["labels"] for name in "AB"] == [2, 1]
    assert found["by_corpus"]["B"]["confusion"] == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 2, 0]]
    assert {name: row["clips"] for name, row in found["by_sex"].items()} == {"female": 4, "male": 5}
    ages = {name: row["clips"] for name, row in found["by_age"].items()}
    assert ages == {"under 30": 2, "30 to 44": 2, "45 to 59": 2, "60 and over": 2}
    assert list(ages) == ["under 30", "30 to 44", "45 to 59", "60 and over"]
    assert found["by_sex"]["male"]["accuracy"] == pytest.approx(4 / 5)


def test_a_label_without_clips_does_not_count_in_means():
    matrix = np.array([[2, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert scores.basic_scores(matrix) == pytest.approx(
        {"accuracy": 3 / 4, "uar": 3 / 4, "macro_f1": (4 / 5 + 2 / 3) / 2}
    )
    found = scores.evaluate(predictions([0, 0, 1], [0, 2, 1]), 0.5)
    assert (found["recall"]["c"], found["f1"]["c"], found["recall_intervals"]["c"]) == (None, None, None)


def test_intervals_contain_the_score_and_are_wide_where_speakers_differ():
    rng = np.random.default_rng(1)
    truth = np.tile([0, 1, 2], 40)
    answers = np.where(rng.random(120) < 0.7, truth, (truth + 1) % 3)
    speakers = [f"s{k // 6}" for k in range(120)]
    found = scores.evaluate(predictions(truth.tolist(), answers.tolist(), speakers), 0.5)
    for name in ("accuracy", "uar", "macro_f1"):
        low, high = found["intervals"][name]
        assert low < found[name] < high
        assert high - low < 0.25
    for label, (low, high) in found["recall_intervals"].items():
        assert low < found["recall"][label] < high
    assert scores.evaluate(predictions(truth.tolist(), answers.tolist(), speakers), 0.5) == found
    one_voice_fails = np.where(np.arange(120) < 60, truth, (truth + 1) % 3)
    split = scores.summary(truth, one_voice_fails, np.array(speakers), 3)
    low, high = split["intervals"]["uar"]
    assert high - low > 0.3


def test_one_speaker_gives_no_interval():
    found = scores.summary(np.array([0, 1]), np.array([0, 0]), np.array(["s", "s"]), 2)
    assert found["intervals"] == {"accuracy": None, "uar": None, "macro_f1": None}


def test_bootstrapped_matrices_are_sums_of_whole_speakers():
    truth, answers = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, -1, 0])
    drawn = scores.resampled(truth, answers, np.array(["x", "y", "x", "y", "y"]), 2)
    x, y = np.array([[1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 0], [1, 0, 1]])
    possible = {(k * x + (2 - k) * y).tobytes() for k in range(3)}
    assert {matrix.tobytes() for matrix in drawn} == possible
    np.testing.assert_allclose(drawn.mean(axis=0), x + y, atol=0.15)


def test_the_calibration_error_equals_one_by_hand():
    # 15 bins of two answers each, one of them right; confidences 0.50, 0.53, … 0.92: 0.03 · (0 + … + 14) / 15 off
    confidence = np.repeat(0.5 + 0.03 * np.arange(15), 2)
    probabilities = np.stack([confidence, 1 - confidence], axis=1).astype(np.float32)

    def error(truth: np.ndarray) -> float | None:
        return scores.calibration_error(scores.reliability(probabilities, truth))

    assert error(np.tile([0, 1], 15)) == pytest.approx(0.21, abs=1e-6)
    assert error(np.zeros(30, int)) == pytest.approx(1 - 0.71, abs=1e-6)
    assert error(np.ones(30, int)) == pytest.approx(0.71, abs=1e-6)
    bins = scores.reliability(probabilities, np.tile([0, 1], 15))
    assert [b["count"] for b in bins] == [2] * 15
    assert bins[3] == pytest.approx({"count": 2, "confidence": 0.59, "accuracy": 0.5})


def test_clips_that_no_gate_let_pass_are_wrong_and_break_nothing():
    found = scores.evaluate(predictions([0, 1, 2], [-1, -1, -1]), 0.5)
    assert (found["uar"], found["not_heard"], found["kept_share"]) == (0, 3, 0)
    assert (found["calibration_error"], found["kept_accuracy"], found["reliability"]) == (None, None, [])


def test_the_threshold_keeps_the_share_that_was_asked_for():
    table = np.stack([np.linspace(0.5, 1, 101), np.linspace(0.5, 0, 101)], axis=1).astype(np.float32)
    names = np.repeat("s", 101)
    zeros = np.zeros(101, int)
    found = Predictions(("a", "b"), zeros, table, table, names, names, names, names, zeros)
    threshold = scores.choose_threshold(found, 0.8)
    assert threshold == pytest.approx(0.6)
    unheard = dataclasses.replace(found, probabilities=np.full_like(table, np.nan))
    assert scores.choose_threshold(scores.join([found, unheard]), 0.8) == threshold  # those never had an answer
    assert scores.choose_threshold(unheard, 0.8) == 0
    assert scores.evaluate(found, threshold)["kept_share"] == pytest.approx(0.8, abs=0.02)


def test_joined_predictions_keep_every_clip():
    one, two = predictions([0, 1], [0, -1], left_out=1), predictions([2], [1], left_out=2)
    joined = scores.join([one, two])
    assert joined.truth.tolist() == [0, 1, 2]
    assert joined.answers.tolist() == [0, -1, 1]
    assert joined.left_out == 3
    assert joined.take(np.array([2, 0])).truth.tolist() == [2, 0]


def test_points_lost_are_paired_with_the_same_clips():
    clean = predictions(TRUTH, TRUTH)
    worse = scores.compare(predictions(TRUTH, ANSWERS), clean, 0.5)
    assert worse["points"] == pytest.approx(100 * ((2 / 4 + 2 / 3 + 2 / 3) / 3 - 1))
    low, high = worse["points_interval"]
    assert low <= worse["points"] <= high <= 0
    assert worse["not_heard"] == 1
    same = scores.compare(clean, clean, 0.5)
    assert (same["points"], same["points_interval"]) == (0, [0, 0])


# -------------------------------------------------------------------------------------------- through the job


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Clips of four speakers in two folds, every emotion; with a second long enough for two windows."""
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for speaker in range(4):
        for k, emotion in enumerate(LABELS):
            seed = 10 * speaker + k
            path = write(folder / f"{speaker}_{emotion}.wav", speechlike(4.5 if k == 0 else 1.5, seed))
            sex = ("female", "male")[speaker // 2]
            found.append(Clip("EMO-DB", path, str(speaker), emotion, speaker % 2, sex=sex, age=28 + 10 * speaker))
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, clips: list[Clip]) -> Bundle:
    """The tiny bundle with a model for each of two folds."""
    arrays = tiny_arrays()
    scaler = {name: array for name, array in arrays.items() if name.startswith("scaler/")}
    folds = {
        str(fold): named_weights("emotion", emotion_weights(tiny_bundle.features, 20 + fold))
        | scaler
        | {"temperature": np.array([1.5 + fold], np.float32)}
        for fold in range(2)
    }
    history = {"0": {"loss": [1.7, 1.5, 1.4], "val_loss": [1.6, 1.55, 1.58]}, "1": {"loss": [1.7], "val_loss": [1.6]}}
    training = {"recipe": "tiny", "seed": 7, "folds": [0, 1], "gate_held_out_fold": 1, "history": history}
    training |= {
        "held_out": {
            split.name: sorted(protocols.held_out(clips, split, "speaker-folds"))
            for split in protocols.splits(clips, "speaker-folds")
        },
        "test_corpora": [],
        "test_share": 0.2,
        "versions": {"numpy": "2"},
        "python": "3",
        "window_mflop": 1.5,
        "gate_sounds": {"music": "3 excerpts, GPL"},
    }
    data = ({"name": "EMO-DB", "licence": "none stated", "commercial_use": False},)
    draft = dataclasses.replace(tiny_bundle, name="tiny-folds", data=data, training=training)
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny-folds", draft, arrays, folds, "")


@pytest.fixture(scope="module")
def models(bundle: Bundle) -> Iterator[dict[str, Model]]:
    """Its two split models, loaded once for all tests: evaluate.split_model gives these."""
    loaded = {str(fold): evaluate.split_model(bundle, str(fold)) for fold in range(2)}
    with pytest.MonkeyPatch.context() as patch:
        known = lambda own, name: loaded[name] if own == bundle else SPLIT_MODEL(own, name)  # noqa: E731
        patch.setattr(measure, "split_model", known)
        yield loaded


SPLIT_MODEL = evaluate.split_model


@pytest.fixture(scope="module")
def scored(bundle: Bundle, models: dict, clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The bundle's scores, with degradations and composed calls of either fold."""
    folder = tmp_path_factory.mktemp("calls")
    folders = [make_calls(folder / str(f), (f"EMO-DB/{f}", f"EMO-DB/{f + 2}")) for f in range(2)]
    options = EvaluateOptions(("mu-law", "noise-10db"), clips_per_split=8)
    return evaluate.evaluate_bundle(bundle, clips, folders, options)


def test_clips_are_scored_through_the_job_and_silence_has_no_answer(tiny_model, tmp_path):
    write(tmp_path / "voice.wav", speechlike(2.0, 3))
    write(tmp_path / "nothing.wav", silence(2.0))
    own = [
        Clip("own", tmp_path / "voice.wav", "x", "happy", 2, sex="female", age=40),
        Clip("own", tmp_path / "nothing.wav", "y", "sad", None),
        Clip("own", tmp_path / "voice.wav", "z", "calm", None),
    ]
    found = evaluate.score_clips(own, tiny_model, split="2")
    assert found.truth.tolist() == [LABELS.index("happy"), LABELS.index("sad")]
    assert found.answers[0] >= 0
    assert found.answers[1] == -1
    assert np.isnan(found.uncalibrated[1]).all()
    assert found.speakers.tolist() == ["own/x", "own/y"]
    assert found.corpora.tolist() == ["own", "own"]
    assert found.splits.tolist() == ["2", "2"]
    assert (found.sexes.tolist(), found.ages.tolist()) == (["female", ""], [40, -1])
    assert found.left_out == 1
    with pytest.raises(ConfigError, match="none of 1 clips has an emotion of the model's"):
        evaluate.score_clips(own[2:], tiny_model)


def test_mu_law_clips_score_as_their_mu_law_recordings_do(tiny_model, clips, tmp_path):
    own = clips[:6]
    found = evaluate.score_clips(own, tiny_model)
    recordings = []
    for k, clip in enumerate(own):
        path = tmp_path / f"{k}.wav"
        line = degradations.band_pass(read_clip(clip, RATE_HZ), RATE_HZ)
        soundfile.write(path, line, RATE_HZ, subtype="ULAW")
        recordings.append(Recording(k, str(k), str(path)))
    outcomes = score_recordings(recordings, tiny_model, RunSettings(roles=("all",)))
    expected = np.array([outcome.summaries[0].means for outcome in outcomes])
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


def test_a_part_of_a_recording_is_scored_as_a_clip_of_its_own(tiny_model, tmp_path):
    first, second = speechlike(2.0, 3), speechlike(2.0, 4)
    write(tmp_path / "both.wav", np.concatenate([silence(2.0), first]), np.concatenate([second, silence(2.0)]))
    write(tmp_path / "first.wav", first)
    write(tmp_path / "second.wav", second)
    parts = [
        Clip("own", tmp_path / "both.wav", "x", "happy", None, start_s=2.0, channel=0),
        Clip("own", tmp_path / "both.wav", "y", "happy", None, end_s=2.0, channel=1),
    ]
    alone = [Clip("own", tmp_path / f"{name}.wav", "x", "happy", None) for name in ("first", "second")]
    ours, theirs = (evaluate.score_clips(each, tiny_model).probabilities for each in (parts, alone))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_probabilities_without_temperature_are_exact(tiny_model, tiny_bundle, clips):
    long_and_short = clips[:2]  # two windows, and one
    plain = Model(dataclasses.replace(tiny_bundle, temperature=1.0))
    calibrated = evaluate.score_clips(long_and_short, tiny_model)
    np.testing.assert_allclose(
        calibrated.uncalibrated, evaluate.score_clips(long_and_short, plain).probabilities, atol=1e-5
    )
    assert np.abs(calibrated.uncalibrated - calibrated.probabilities).max() > 1e-3


def test_noise_is_the_clip_s_own_and_comes_from_the_seed(tiny_model, clips):
    all_noisy = evaluate.score_clips(clips[:4], tiny_model, "noise-10db", 1).probabilities
    one_noisy = evaluate.score_clips(clips[2:3], tiny_model, "noise-10db", 1).probabilities
    np.testing.assert_allclose(all_noisy[2:3], one_noisy, atol=1e-6)
    other_seed = evaluate.score_clips(clips[2:3], tiny_model, "noise-10db", 2).probabilities
    assert np.abs(other_seed - one_noisy).max() > 1e-6


def test_every_clip_is_scored_by_the_model_of_its_fold(bundle, models, clips, scored):
    assert [model.bundle.temperature for model in models.values()] == [1.5, 2.5]
    each = [evaluate.score_clips([c for c in clips if str(c.fold) == f], models[f], split=f) for f in models]
    expected = scores.evaluate(scores.join(each), bundle.abstain_threshold)
    assert scored["clips"] == expected
    given = evaluate.evaluate_bundle(bundle, clips, predictions=scores.join(each))
    assert given == {"protocol": "speaker-folds", "line": "mu-law", "train_only": [], "clips": expected}
    assert set(scored["clips"]["by_sex"]) == {"female", "male"}
    assert set(scored["clips"]["by_age"]) == {"under 30", "30 to 44", "45 to 59"}


def test_the_table_of_degradations_compares_the_same_clips_with_clean(scored):
    table = scored["degradations"]
    assert (table["clips"], table["of"]) == (16, 24)
    assert list(table["rows"]) == ["clean", "mu-law", "noise-10db"]
    clean = table["rows"]["clean"]
    assert (clean["points"], clean["describe"]) == (0, degradations.DEGRADATIONS["clean"].describe)
    for row in table["rows"].values():
        assert row["points"] == pytest.approx(100 * (row["uar"] - clean["uar"]))
        assert 0 <= row["kept_share"] <= 1


def test_names_of_degradations_are_checked(monkeypatch):
    assert evaluate.choose_degradations("none") == ()
    assert evaluate.choose_degradations("all") == tuple(degradations.available())
    assert evaluate.choose_degradations("noise-10db, mu-law,noise-10db") == ("noise-10db", "mu-law")
    for words in ("fax", ","):
        with pytest.raises(ConfigError, match=rf"received '{words}', expected .*some of clean, mu-law"):
            evaluate.choose_degradations(words)
    monkeypatch.setattr(degradations, "available", lambda: ["clean", "mu-law"])
    with pytest.raises(ConfigError, match=r"gsm-6\.10 cannot be made here"):
        evaluate.choose_degradations("gsm-6.10")


# ---------------------------------------------------------------------------------------------- composed calls


def turn(
    kind: str, start_s: float, end_s: float, channel: int = 1, emotion: str = "", speaker: str = "A/1"
) -> dict[str, str]:
    times = {"start_s": str(start_s), "end_s": str(end_s)}
    return {"channel": str(channel), "kind": kind, "emotion": emotion, "speaker": speaker} | times


@pytest.mark.parametrize(
    ("turns", "kind", "emotion"),
    [
        ([], "silence", None),
        ([turn("speech", 2, 9, emotion="sad")], "speech", "sad"),
        ([turn("speech", 4.5, 9, emotion="sad")], "speech", "sad"),  # exactly half
        ([turn("speech", 4.6, 9, emotion="sad")], None, None),  # less
        ([turn("speech", 3, 9, 0, "sad")], "speech", None),  # the agent's
        ([turn("speech", 3, 4, emotion="sad"), turn("speech", 4.5, 6, emotion="sad")], "speech", "sad"),
        ([turn("speech", 3, 4, emotion="sad"), turn("speech", 4.5, 6, emotion="angry")], "speech", None),
        ([turn("speech", 3, 6, emotion="calm")], "speech", None),  # no label of the model's
        ([turn("music", 0, 60)], "music", None),
        ([turn("ring", 3, 4), turn("dtmf", 4, 5), turn("beep", 5, 6)], "tone", None),
        ([turn("music", 0, 5), turn("speech", 5, 9, emotion="sad")], None, None),
        ([turn("speech", 0, 3, emotion="sad"), turn("speech", 6, 9, emotion="sad")], "silence", None),
    ],
)  # fmt: skip
def test_the_truth_of_a_composed_window_counts_only_where_it_is_plain(turns, kind, emotion):
    found_kind, label, speaker = calls.truth_of(turns, 3.0, 6.0, LABELS)
    assert (None if found_kind is None else KINDS[found_kind]) == kind
    assert label == (-1 if emotion is None else LABELS.index(emotion))
    assert speaker == ("" if emotion is None else "A/1")


def test_composed_calls_are_scored_window_by_window(tiny_model, tmp_path):
    windows = calls.score_calls(make_calls(tmp_path / "calls"), tiny_model, "4")
    names = [[KINDS[k] for k in kinds] for kinds in (windows.true_kind, windows.kind)]
    agent = ["speech", "speech", "silence", "silence", "silence"]
    customer = ["silence", "silence", "speech", "tone", "silence"]
    assert names[0] == [*agent, *customer, "speech", "tone", "silence", "speech", "music"]
    assert names[1] == [*agent, *customer, "speech", "tone", "silence", "speech", "noise"]
    own = windows.emotion >= 0
    assert [LABELS[k] for k in windows.emotion[own]] == ["angry", "sad"]  # the customer's only
    assert windows.speakers[own].tolist() == ["CREMA-D/1001", "CREMA-D/1003"]
    assert set(windows.splits) == {"4"}
    assert windows.call_ids.tolist() == ["a"] * 10 + ["b"] * 5
    found = calls.evaluate_calls(windows, tiny_model.bundle, "4")
    assert found["gate"]["speech"] == {"windows": 5, "passed_as_speech": 1.0, "same_kind": 1.0}
    assert found["gate"]["music"] == {"windows": 1, "passed_as_speech": 0.0, "same_kind": 0.0}
    assert "noise" not in found["gate"]
    assert (found["emotion_windows"], found["speakers"], found["refused"]) == (2, 2, 0)
    assert found["gate_unheard"]
    assert not calls.evaluate_calls(windows, tiny_model.bundle, "0")["gate_unheard"]


def windows_by_hand() -> CallWindows:
    probabilities = np.full((4, 6), 0.05, np.float32)
    probabilities[[0, 1, 2], [0, 3, 5]] = 0.75
    probabilities[3] = np.nan  # speech that the gate refused
    return CallWindows(
        true_kind=np.full(4, SPEECH),
        kind=np.array([SPEECH, SPEECH, SPEECH, MUSIC]),
        emotion=np.array([0, 3, 0, 4]),
        probabilities=probabilities,
        uncalibrated=probabilities,
        speakers=np.array(["A/1", "B/1", "A/2", "A/1"]),
        splits=np.array(["0", "1", "1", "1"]),
        call_ids=np.array(["a", "b", "b", "b"]),
        num_calls=2,
    )


def test_the_scores_of_calls_equal_those_by_hand(tiny_bundle):
    found = calls.evaluate_calls(windows_by_hand(), tiny_bundle, "1")
    assert found["gate"] == {"speech": {"windows": 3, "passed_as_speech": pytest.approx(2 / 3), "same_kind": 2 / 3}}
    assert (found["calls"], found["splits"], found["filled"]) == (2, ["0", "1"], 0.5)
    assert (found["emotion_windows"], found["refused"]) == (3, 1)
    assert found["uar"] == pytest.approx((1 / 2 + 1) / 2)  # angry: one of two; happy: one of one
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["negative_uar"] == 1
    low, high = found["intervals"]["uar"]
    assert low <= found["uar"] <= high
    assert found["by_corpus"]["A"]["accuracy"] == 1 / 2
    assert found["by_corpus"]["B"]["intervals"]["uar"] is None  # one customer says nothing of others
    assert found["recall"]["angry"] == 1 / 2
    assert found["calibration_error"] == pytest.approx(0.25 * 2 / 3 + 0.75 / 3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def split_clips() -> tuple[list[Clip], list[Split]]:
    """Four speakers of EMO-DB, 0 and 2 in fold 0, 1 and 3 in fold 1."""
    own = [Clip("EMO-DB", Path(f"{k}.wav"), str(k), "sad", k % 2) for k in range(4)]
    even, odd = np.array([0, 2]), np.array([1, 3])
    return own, [Split("0", odd, even), Split("1", even, odd)]


def test_calls_go_to_the_model_that_never_heard_their_customers(tmp_path):
    own, splits = split_clips()
    known = make_calls(tmp_path / "known", ("EMO-DB/1", "EMO-DB/3"))
    assert calls.find_split(known, own, splits).name == "1"
    with_stranger = make_calls(tmp_path / "with-stranger", ("EMO-DB/1", "RAVDESS/10"))
    assert calls.find_split(with_stranger, own, splits).name == "1"
    both = make_calls(tmp_path / "both", ("EMO-DB/1", "EMO-DB/2"))
    with pytest.raises(ConfigError, match=r"every model has heard some of its 2 customers.*one fold.*several times"):
        calls.find_split(both, own, splits)
    with pytest.raises(ConfigError, match=r"the one of random has heard 2: EMO-DB/1, EMO-DB/3"):
        calls.find_split(known, own, [Split("random", np.arange(4), np.array([1, 3]))])
    nobody = make_calls(tmp_path / "nobody", ("", "1001"))
    with pytest.raises(ConfigError, match=r"column speaker: received '', '1001', expected CORPUS/SPEAKER"):
        calls.find_split(nobody, own, splits)


def test_a_folder_that_holds_no_composed_calls_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"expected manifest\.csv and turns\.csv there"):
        calls.read_turns(tmp_path)
    folder = make_calls(tmp_path / "calls")
    write_csv(folder / "turns.csv", [{"call_id": "a", "start_s": 0}])
    with pytest.raises(ConfigError, match=r"turns\.csv: no column channel, end_s, kind, emotion, speaker; expected"):
        calls.read_turns(folder)


def test_calls_of_several_folders_are_scored_by_their_own_models(scored):
    found = scored["calls"]
    assert (found["calls"], found["splits"], found["speakers"]) == (4, ["0", "1"], 4)
    assert found["gate_unheard"]
    assert found["gate"]["speech"]["windows"] == 5  # the held-out fold's folder alone
    assert found["emotion_windows"] == 4


# --------------------------------------------------------------------------------------- tables, card, pictures


def test_the_tables_say_what_was_measured(scored):
    text = report.render_scores(scored, LABELS)
    assert text.startswith(describe("speaker-folds"))
    uar = scored["clips"]["uar"]
    for line in (
        "24 clips of 4 speakers in 2 splits", f"UAR{uar:31.3f}   {scored['clips']['intervals']['uar'][0]:.3f} to",
        "before temperature scaling", "corpus EMO-DB", "split 1", "sex female", "age 45 to 59", "16 clips of 24",
        "noise-10db", "Windows of 4 composed calls (split 0, 1)", "at least 50 % of a window",
    ):  # fmt: skip
        assert line in text, line
    assert max(map(len, text.splitlines())) <= 250
    leaky = scored | {"protocol": "random-leaky", "train_only": ["TESS"]}
    first, second = report.render_scores(leaky, LABELS).splitlines()[:2]
    assert first == describe("random-leaky")
    assert second == "Trained on but tested by none of these scores: TESS."


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_without_answers_can_be_told(protocol):
    nothing = scores.evaluate(predictions([0, 1], [-1, -1], ["s", "s"]), 0.5)
    text = report.render_scores({"protocol": protocol, "train_only": [], "clips": nothing}, "abc")
    assert text.startswith(describe(protocol))
    assert "calibration error" in text
    assert "fairness is not measured" in text


def test_the_card_says_what_a_user_must_know(bundle, scored):
    text = card.render_card(dataclasses.replace(bundle, scores=scored))
    for words in (
        "# tiny-folds", "EMO-DB: none stated (non-commercial use only)", "music (3 excerpts, GPL)", "seed 7",
        "## What it is worth", report.render_scores(scored, LABELS), "## Beside others",
        f"{100 * scored['clips']['uar']:.1f} UAR", "## What it is not for", "Not for commercial use", "AI Act",
        "## Train it again", "batchser train --recipe tiny",
    ):  # fmt: skip
        assert words in text, words
    assert "human listeners" not in text  # they heard CREMA-D
    silent = dict(bundle.training) | {"gate_sounds": {}}
    assert "GPL" not in card.render_card(dataclasses.replace(bundle, scores=scored, training=silent))


@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [
        ("telephone-6", [], 0),
        ("telephone-6", [
            "folds=[1, 2]", "protocol=random", "fit.epochs=3", "fit.noise_snr_db=[5, 30]", "network.units=[8, 6]",
            "network.own_means=true", 'teacher_networks=[{name = "lstm-stack", units = [8]}]',
        ], 7),
        ("telephone-6", ['augment.codecs={"mu-law" = 0.5, "gsm-6.10" = 0.3}', "name=Anna's"], 2),
        ("telephone-8", ["gate_augment.noise_snr_db=[0, 40]", "fit.corpus_weights={RAVDESS = 2}"], 2),
    ],
)  # fmt: skip
def test_the_cards_command_trains_by_the_same_recipe_again(bundle, scored, name, changes, count):
    recipe = read_recipe(name, changes)
    made = dict(bundle.training) | {"recipe": name, "whole_recipe": json.loads(json.dumps(dataclasses.asdict(recipe)))}
    text = card.render_card(dataclasses.replace(bundle, scores=scored, training=made))
    command = next(line for line in text.splitlines() if line.startswith(f"    batchser train --recipe {name}"))
    words = shlex.split(command)
    changes = [words[k + 1] for k, word in enumerate(words) if word == "--set"]
    assert len(changes) == count
    assert read_recipe(name, changes) == recipe


def test_the_card_of_a_crema_d_model_names_the_listeners(bundle, scored):
    clips = scored["clips"] | {"by_corpus": {"CREMA-D": scored["clips"]["by_corpus"]["EMO-DB"]}}
    data = ({"name": "CREMA-D", "licence": "ODbL", "commercial_use": True},)
    text = card.render_card(dataclasses.replace(bundle, data=data, scores=scored | {"clips": clips}))
    assert "| CREMA-D | 40.9 accuracy | human listeners, voice only" in text
    assert "all speakers in train and test" in text
    assert "Not for commercial use" not in text


def test_pictures_are_drawn(bundle, scored, tmp_path):
    import matplotlib.image

    two = scored["clips"]["by_corpus"] | {"TESS": scored["clips"]["by_corpus"]["EMO-DB"]}
    paths = pictures.write_pictures(tmp_path / "new", bundle, scored | {"clips": scored["clips"] | {"by_corpus": two}})
    assert [path.name for path in paths] == [
        "confusion.png", "confusion-EMO-DB.png", "confusion-TESS.png", "confusion-calls.png", "reliability.png",
        "learning-curves.png",
    ]  # fmt: skip
    for path in paths:
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels[..., 0])) > 20  # not an empty sheet


@pytest.mark.parametrize("fits", [1, 2, 7])
def test_learning_curves_of_any_number_of_fits(fits):
    history = {f"fit {k}": {"loss": [2.0, 1.0], "val_loss": [2.0, 1.5]} for k in range(fits)}
    figure = pictures.learning_curves(history | {"odd": {"loss": []}}, "tiny")
    shown = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert shown == [*history, "odd"]


def test_pictures_without_matplotlib_name_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'batchser\[train\]'"):
        pictures.make_ready(tmp_path)


# -------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """A folder for --data; what is read from it is replaced."""
    folder = tmp_path / "corpora"
    folder.mkdir()
    return folder


def command(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    kept = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", *map(str, arguments)])
    signal.signal(signal.SIGTERM, kept)
    told = capfd.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_the_command_prints_the_protocol_first_and_draws(bundle, models, clips, corpora, monkeypatch, capfd, tmp_path):
    from batchser.training.corpora import CorpusRead, Fault

    read = CorpusRead(list(clips), (Fault("EMO-DB", "03a01Xx.wav", "unlabelled", "no such letter"),))
    monkeypatch.setattr(evaluate, "read_clips", lambda bundle, data, corpora: read)
    common = ("--model", bundle.folder, "--data", corpora)
    code, out, err = command(capfd, *common, "--degradations", "none", "--pictures", tmp_path / "pictures")
    assert code == 0
    assert out.startswith(describe("speaker-folds"))
    assert "degraded lines" not in out
    assert "unlabelled" in err
    assert (tmp_path / "pictures" / "reliability.png").stat().st_size > 5000

    code, out, err = command(capfd, *common, "--degradations", "mu-law", "--clips-per-fold", 0, "--json", "--quiet")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["protocol"] == "speaker-folds"
    assert found["degradations"]["clips"] == found["clips"]["clips"] == 24
    assert list(found["degradations"]["rows"]) == ["clean", "mu-law"]
    assert found["degradations"]["rows"]["mu-law"]["uar"] == pytest.approx(found["clips"]["uar"])

    leaked = make_calls(tmp_path / "leaked", ("EMO-DB/0", "EMO-DB/1"))
    code, out, err = command(capfd, *common, "--calls", leaked)
    assert (code, out) == (2, "")
    assert "error: --calls" in err
    assert "every model has heard some of its 2 customers" in err


def test_own_labelled_calls_are_scored_by_the_shipped_model_without_speakers_it_heard(bundle, corpora, capfd, tmp_path):
    rows = []
    for speaker, emotion in enumerate(("angry", "happy", "sad", "calm")):
        write(corpora / f"{speaker}.wav", speechlike(2.0, speaker))
        rows.append({"path": f"{speaker}.wav", "emotion": emotion, "speaker": speaker, "corpus": "support"})
    write_csv(corpora / "calls.csv", rows)
    own = [Clip("support", corpora / str(r["path"]), str(r["speaker"]), str(r["emotion"]), None) for r in rows]

    def knowing(name: str, heard: Sequence[Clip]) -> Bundle:
        training = dict(bundle.training) | {"heard": [protocols.speaker_key(clip) for clip in heard]}
        return write_bundle(tmp_path / name, dataclasses.replace(bundle, training=training), tiny_arrays(), {}, "")

    model = knowing("some", own[1:2])
    common = ("--data", corpora, "--corpora", "calls.csv", "--quiet")
    code, out, err = command(capfd, "--model", model.folder, *common, "--degradations", "mu-law", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["protocol"], found["line"], found["heard"]) == ("cross-corpus", "clean", 1)
    expected = evaluate.score_clips([own[0], *own[2:]], Model(model), "clean")
    assert found["clips"]["confusion"] == scores.evaluate(expected, model.abstain_threshold)["confusion"]
    assert (found["clips"]["clips"], found["clips"]["left_out"]) == (2, 1)  # the model knows no calm
    assert list(found["degradations"]["rows"]) == ["clean", "mu-law"]
    code, out, err = command(capfd, "--model", model.folder, *common, "--degradations", "none")
    assert "Left out: 1 clips of speakers that the model was trained on." in out
    assert "untrimmed, no telephone added, through the job" in out

    for folder, more, words in (
        (knowing("all", own).folder, (), "was trained on every speaker of these 4 clips"),
        (bundle.folder, (), "does not say whom it has heard"),
        (model.folder, ("--calls", corpora), "--corpora and --calls: give one of them"),
    ):
        code, out, err = command(capfd, "--model", folder, *common, *more)
        assert (code, out) == (2, "")
        assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--degradations", "fax"), "error: degradations: received 'fax', expected some of clean"),
        (("--clips-per-fold", "-1"), "'--clips-per-fold'"),
        (("--pictures", __file__), "is a file"),
        (("--pictures", "/proc/none"), "error: --pictures /proc/none: cannot be made"),
    ],
)
def test_wrong_options_are_told_before_anything_starts(tiny_bundle, corpora, capfd, arguments, words):
    code, out, err = command(capfd, "--model", tiny_bundle.folder, "--data", corpora, *arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize("name", ["telephone-6", "telephone-8"])
def test_a_carried_bundles_card_is_what_its_scores_give(name):
    carried = find_bundle(name)
    assert (carried.folder / "README.md").read_text(encoding="utf-8") == card.render_card(carried)


def test_a_bundle_without_split_models_cannot_be_evaluated(tiny_bundle, clips, tmp_path):
    with pytest.raises(ConfigError, match="tiny: it carries no split models"):
        evaluate.split_model(tiny_bundle, "0")
    with pytest.raises(ConfigError, match="tiny: it carries no split models"):
        evaluate.evaluate_bundle(tiny_bundle, clips)


def test_a_split_without_a_model_is_told(bundle):
    with pytest.raises(ConfigError, match=r"carries no split models \(split-7\.npz\)"):
        SPLIT_MODEL(bundle, "7")
