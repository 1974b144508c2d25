"""Training on a tiny corpus made here: recipe, corpora, a whole run, and the figures by hand."""

from __future__ import annotations

import dataclasses
import errno
import json
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from composed import make_calls, write_csv
from conftest import LABELS, NEGATIVE, RATE_HZ, silence, speechlike, write
from tiny_corpus import make_corpus

import batchser
from batchser import networks
from batchser.bundle import Bundle, NetworkSpec, open_bundle, read_weights, write_bundle
from batchser.errors import BatchserError, ConfigError
from batchser.features import level_below_peak
from batchser.locks import FolderLock
from batchser.records import KINDS, MUSIC, NOISE, SILENCE, SPEECH, TONE
from batchser.scoring import Model, softmax
from batchser.settings import FeatureSettings
from batchser.training import compose, evaluate, fits, store
from batchser.training import fit as fitting
from batchser.training import train as training
from batchser.training.corpora import Clip, find_audio
from batchser.training.distil import Teaching, taught_targets
from batchser.training.emotion_lesson import TrainingSet, emotion_jobs, teacher_jobs, teaching
from batchser.training.examples import GateSounds, emotion_window, gate_window, make_take, place, running_sum
from batchser.training.fit import (
    Draws,
    Examples,
    Fitted,
    Start,
    Task,
    calibrate,
    draw_order,
    fit,
    rounded,
    seeded,
)
from batchser.training.gate_lesson import gate_weights, held_out_fold, split_music
from batchser.training.protocols import Split
from batchser.training.recipe import FitSettings, read_recipe
from batchser.training.start import open_base

RECIPE = """
name = "tiny"
corpora = ["CREMA-D"]
labels = ["angry", "disgust", "fearful", "happy", "neutral", "sad"]
negative_labels = ["angry", "disgust", "fearful", "sad"]
seed = 5
folds = [0, 1]
gate_windows = 240
gate_held_out_fold = 1
gate_held_out_music = 0.5

[features]
names = ["mel", "pitch"]
fft_samples = 1024
hop_samples = 1024
num_mels = 32
num_pitches = 16

[network]
name = "conv-dual-lstm"
filters = [4, 4, 8]
units = [4, 4]
pitch_filters = [2, 2, 4]
num_pitches = 16

[windows]
copies = 2

[fit]
epochs = 2
batch_size = 16
frequency_mask = 4
average_epochs = 2
vote_share = 0.2
balance = ["class"]

[[teacher_networks]]
name = "conv-dual-lstm"
filters = [4, 4, 4]
units = [4, 4]
pitch_filters = [2, 2, 4]
num_pitches = 16

[teacher_fit]
epochs = 1
batch_size = 16
frequency_mask = 4

[gate]
voiced_probability = 0.05  # 240 windows make an unsure gate
silence_dbfs = -80.0

[gate_network]
name = "gate-conv"
filters = [16, 16, 16, 16]

[gate_fit]
epochs = 8
batch_size = 8
learning_rate = 5e-3
label_smoothing = 0.0
frequency_mask = 0
time_mask = 0
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return read_recipe(str(path))


@dataclasses.dataclass
class Run:
    """What a training that was killed and started again left behind."""

    bundle: Bundle
    first: list[str]
    second: list[str]
    kept: list[str]


@pytest.fixture(scope="module")
def run(data: Path, recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train the tiny recipe, kill it before the shipped fit, and train it again."""
    out = tmp_path_factory.mktemp("out") / "tiny"
    first: list[str] = []
    second: list[str] = []
    fit = fits.fit

    def killed(examples, task, report, *others):
        def tell(line: str) -> None:
            report(line)
            if task.name == "shipped" and line.startswith("epoch 1/"):
                raise KeyboardInterrupt

        return fit(examples, task, tell, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, data, out, first.append, workers=1)
    assert not out.exists()
    kept = sorted(p.name.split("-")[0] for p in out.with_name("tiny.work").iterdir() if p.suffix != ".lock")
    calls = make_calls(out.parent / "calls")
    options = evaluate.EvaluateOptions(("noise-20db",), clips_per_split=6)
    bundle = training.train(recipe, data, out, second.append, [calls], workers=1, options=options)
    return Run(bundle, first, second, kept)


# -------------------------------------------------------------------------------------------------- a whole run


@pytest.mark.parametrize(("size", "width"), [(100, 1), (100, 7), (100, 8), (5, 8), (5, 5), (1, 9)])
def test_a_running_sum_is_the_convolution_with_ones(size, width):
    values = np.random.default_rng(size).random(size)
    assert np.allclose(running_sum(values, width), np.convolve(values, np.ones(width), "same")[:size])


def test_a_run_leaves_a_bundle_that_opens_and_says_where_it_comes_from(run):
    bundle = open_bundle(run.bundle.folder)
    assert bundle == run.bundle
    assert (bundle.name, bundle.labels, bundle.negative_labels) == ("tiny", LABELS, NEGATIVE)
    assert bundle.features == FeatureSettings(
        names=("mel", "pitch"), fft_samples=1024, hop_samples=1024, num_mels=32, num_pitches=16
    )
    assert bundle.training["seed"] == 5
    assert bundle.training["folds"] == [0, 1]
    assert bundle.data[0]["name"] == "CREMA-D"
    assert len(bundle.training["gate_held_out_music"]) in (2, 3)
    assert 0.3 <= bundle.temperature <= 5
    assert 0 < bundle.abstain_threshold < 1


def test_its_scores_cover_every_clip_once(run):
    clips = run.bundle.scores["clips"]
    assert (clips["clips"], clips["speakers"]) == (72, 6)
    assert sum(map(sum, clips["confusion"])) == 72
    assert clips["not_heard"] <= 7
    assert set(clips["uar_by_fold"]) == {"0", "1"}
    assert 0 <= clips["intervals"]["uar"][0] <= clips["uar"] <= clips["intervals"]["uar"][1] <= 1
    assert 0 < clips["kept_share"] <= 1
    assert set(run.bundle.scores["calls"]["gate"]) == {"speech", "silence", "tone", "music"}


def test_its_card_names_licence_seed_data_and_scores(run):
    card = (run.bundle.folder / "README.md").read_text()
    clips = run.bundle.scores["clips"]
    for text in (
        "# tiny", "commercial use allowed", "ODbL 1.0", "seed 5", "72 clips of 6 speakers in 2 splits",
        f"UAR{clips['uar']:31.3f}", "95 % interval", "What it is not for", "AI Act", "passed as speech",
    ):  # fmt: skip
        assert text in card
    assert all(label in card for label in LABELS)


def test_evaluating_the_written_bundle_gives_the_scores_of_its_card(run, data):
    bundle = open_bundle(run.bundle.folder)
    options = evaluate.EvaluateOptions(("noise-20db",), clips_per_split=6)
    again = evaluate.evaluate_bundle(
        bundle, evaluate.read_clips(bundle, data).clips, [run.bundle.folder.parent / "calls"], options
    )
    assert_close(json.loads(json.dumps(again)), run.bundle.scores)


def assert_close(found: object, expected: object) -> None:
    """Equal in structure, numbers within 1e-6."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs)
    else:
        assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_the_bundle_scores_recordings(run, data):
    table = batchser.score(data / "CREMA-D" / "1001_DFA_HAP_XX.wav", model=str(run.bundle.folder))
    assert table["end_s"].tolist() == [1.0]
    assert {f"p_{label}" for label in LABELS} <= set(table.columns)


def test_a_killed_run_goes_on_from_its_windows_its_finished_fits_and_the_others_last_epoch(run):
    assert run.kept == ["audio", *["fit"] * 7, "gate", "lock", "windows"]
    taken = [line.split(":")[0] for line in run.second if "taken from" in line]
    teachers = [f"{split}-teacher-1" for split in ("0", "1", "shipped")]
    assert taken == ["audio", "windows", "gate-windows", "gate", *teachers, "0", "1"]
    epochs = [line for line in run.second if "epoch" in line]
    assert epochs[0] == "shipped: goes on after epoch 1 of 2"
    assert [line.split(",")[0][:19] for line in epochs[1:]] == ["shipped: epoch 2/2:"]
    assert not run.bundle.folder.with_name("tiny.work").exists()


def test_a_run_undisturbed_and_in_worker_processes_ends_in_the_same_weights(run, recipe, data, tmp_path):
    bundle = training.train(recipe, data, tmp_path / "tiny", lambda line: None, workers=2)
    for file in ("weights.npz", "split-0.npz", "split-1.npz"):
        ours, theirs = read_weights(bundle, file), read_weights(run.bundle, file)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)


def quick(recipe, **changes):
    """The recipe with one network and one epoch, and other changes."""
    fit = dataclasses.replace(recipe.fit, epochs=1, average_epochs=0)
    return dataclasses.replace(recipe, ship="split", teacher_networks=(), fit=fit, **changes)


def kept(cache: Path) -> list[str]:
    return sorted(path.name.rsplit("-", 1)[0] for path in cache.iterdir() if path.suffix != ".lock")


def test_a_cache_keeps_clips_and_windows_for_runs_that_need_the_same_and_no_fits(recipe, data, tmp_path):
    lines: list[str] = []
    for number, seed in enumerate((5, 5, 6)):
        lines.append(f"run {number}")
        changed = quick(recipe, seed=seed, folds=(1,))
        training.train(changed, data, tmp_path / "tiny", lines.append, workers=1, cache=tmp_path / "cache")
    taken = [line.split(":")[0] for line in lines if line.startswith("run") or "taken from" in line]
    # A seed makes other windows of the same clips.
    assert taken == ["run 0", "run 1", "audio", "windows", "gate-windows", "run 2", "audio"]
    assert kept(tmp_path / "cache") == ["audio", "gate-windows", "gate-windows", "windows", "windows"]
    assert not (tmp_path / "tiny.work").exists()


def test_what_is_kept_ends_with_the_code_that_made_it(recipe, data, tmp_path, monkeypatch):
    for makers in ("these", "these", "others"):
        monkeypatch.setattr(store, "makers", lambda makers=makers: makers)
        training.train(
            quick(recipe, folds=(1,)), data, tmp_path / "tiny", lambda line: None, workers=1, cache=tmp_path / "cache"
        )
    assert kept(tmp_path / "cache") == ["audio", "audio", "gate-windows", "gate-windows", "windows", "windows"]


def test_sounds_of_one_name_and_size_are_told_apart(tmp_path):
    for folder, level in (("one", 0.1), ("same", 0.1), ("other", 0.2)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "hum.wav", np.full(800, level, np.float32))
    one, same, other = (store.sounds_key([tmp_path / folder / "hum.wav"]) for folder in ("one", "same", "other"))
    assert one == same
    assert one != other


def test_two_runs_of_one_cache_make_a_thing_once(tmp_path):
    """The second waits for the first, and takes what it made."""
    told: list[str] = []
    started, go_on = threading.Event(), threading.Event()

    def fill(path: Path) -> None:
        started.set()
        assert go_on.wait(30)
        np.save(path / "x.npy", np.ones(3, np.float32))

    def tell(line: str) -> None:
        told.append(line.split(" /")[0])
        go_on.set()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(store.Store(tmp_path, lambda line: None).make, "windows", "key", fill)
        assert started.wait(30)
        second = pool.submit(store.Store(tmp_path, tell).make, "windows", "key", fill)
        assert first.result() == second.result()
    assert [line.split(": ")[1] for line in told] == ["another run is making it; waiting", "taken from"]
    assert np.load(first.result() / "x.npy").tolist() == [1, 1, 1]


def test_two_trainings_of_one_bundle_do_not_mix(recipe, data, tmp_path):
    with FolderLock(tmp_path / "model.work"), pytest.raises(ConfigError, match="another run is at work on this output"):
        training.train(recipe, data, tmp_path / "model", report=lambda line: None)


def test_a_full_disk_is_told_and_leaves_nothing_half_made(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "posix_fallocate", full)
    with pytest.raises(BatchserError, match=r"no room for windows-.*No space left"):
        store.Store(tmp_path, print).make("windows", 1, lambda path: store.allocate(path / "x.npy", (3,), np.float32))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("cache", "words"),
    [("file/cache", "cannot be made"), ("out/cache", "which this run removes"), ("out.work", "which this run removes")],
)
def test_a_cache_that_cannot_be_kept_is_refused_before_anything_starts(cache, words, recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=words):
        training.train(recipe, tmp_path / "nowhere", tmp_path / "out", print, cache=tmp_path / cache)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_windows_that_hold_one_clip_are_shared_by_protocols_and_are_the_same(recipe, data, tmp_path):
    windows = dataclasses.replace(recipe.windows, cut="clip", copies=1, variants=("plain",))
    made = []
    for protocol, cache in (("random", "one"), ("random-leaky", "one"), ("random-leaky", "other")):
        changed = quick(recipe, protocol=protocol, windows=windows, folds=())
        training.train(changed, data, tmp_path / protocol, lambda line: None, workers=1, cache=tmp_path / cache)
        made = [np.load(next((tmp_path / cache).glob("windows-*[!k]")) / "inputs.npy"), *made]
    assert kept(tmp_path / "one").count("windows") == 1
    assert np.array_equal(made[0], made[-1])


def test_a_split_model_carries_its_own_weights_and_scaler_and_the_shared_gate(run):
    own, first, second = (read_weights(run.bundle, f"{name}.npz") for name in ("weights", "split-0", "split-1"))
    assert first.keys() == second.keys() == {name for name in own if "gate/" not in name} | {"temperature"}
    assert not np.array_equal(first["emotion/000"], second["emotion/000"])
    assert not np.array_equal(first["scaler/std"], second["scaler/std"])
    assert not np.array_equal(first["emotion/000"], own["emotion/000"])
    with pytest.raises(ConfigError, match=r"carries no split models \(split-7\.npz\)"):
        evaluate.split_model(run.bundle, "7")


def test_a_bundle_says_what_was_drawn_and_how_it_went(run):
    training_of = run.bundle.training
    networks_of = [name for split in ("0", "1", "shipped") for name in (split, f"{split}-teacher-1")]
    assert set(training_of["history"]) == {"gate", *networks_of}
    assert {name: len(curve) for name, curve in training_of["history"]["shipped"].items()} == {
        "loss": 2, "val_loss": 2, "val_uar": 2,
    }  # fmt: skip
    assert training_of["whole_recipe"]["fit"]["vote_share"] == 0.2
    assert (training_of["protocol"], training_of["left_out"]) == ("speaker-folds", 0)


def test_a_bundle_without_split_models_cannot_be_evaluated(tiny_bundle):
    with pytest.raises(ConfigError, match="tiny: it carries no split models"):
        evaluate.split_model(tiny_bundle, "0")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": LABELS[:5]}, "labels: the corpora also hold sad, which the recipe does not name"),
        ({"folds": (0, 3)}, "fold 3: no clip has it"),
    ],
)
def test_folds_without_clips_and_labels_not_named_are_told_before_anything_starts(
    recipe, data, tmp_path, changes, sentence
):
    with pytest.raises(ConfigError, match=sentence):
        training.train(dataclasses.replace(recipe, **changes), data, tmp_path / "out", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_kept_fit_is_not_taken_for_another_task(recipe, tmp_path, monkeypatch):
    runs = []

    def fit(examples, task, *others):
        runs.append(task.name)
        one = np.ones(3, np.float32)
        return Fitted([one], one, one, 1.25, {"loss": [1.0]})

    monkeypatch.setattr(fits, "fit", fit)
    (tmp_path / "windows").mkdir()
    np.save(tmp_path / "windows" / "inputs.npy", np.zeros((4, 1, 2, 2), np.float16))
    rows, targets = np.arange(4), np.eye(4, 6, dtype=np.float32)
    task = Task("0", rows[:3], rows[3:], recipe.network, 6, recipe.fit, 1)

    def take(
        task: Task, targets: np.ndarray = targets, start: Start | None = None, teaching: Teaching | None = None
    ) -> Fitted:
        return fits.fit_or_take(task, tmp_path / "windows", targets, None, start, teaching, tmp_path, lambda line: None)

    take(task)
    again = take(task)
    assert (again.weights[0].tolist(), again.temperature, again.history) == ([1, 1, 1], 1.25, {"loss": [1.0]})
    assert runs == ["0"]
    for changed in ({"seed": 2}, {"train": rows[:2]}, {"settings": recipe.gate_fit}, {"num_outputs": 5}):
        take(dataclasses.replace(task, **changed))
    take(task, targets[::-1])
    take(task, start=Start("another", [], targets, targets, ()))
    monkeypatch.setattr(fits, "taught_targets", lambda inputs, targets, rows, teaching: targets)
    other = dataclasses.replace(recipe.network, options={"units": [8]})
    one = np.ones(3, np.float32)
    for network, weight, share in (
        (recipe.network, 0.0, 0.5),
        (recipe.network, 1.0, 0.5),
        (recipe.network, 1.0, 0.25),
        (other, 1.0, 0.25),
    ):
        take(task, teaching=Teaching(((network, Fitted([weight * one], one, one, 1.0, {})),), share))
    assert len(runs) == 11


def test_teachers_hear_what_their_network_may_hear_and_no_more(recipe):
    rows = np.arange(6)
    jobs = [(Task(name, rows[:k], rows[k:], recipe.network, 6, recipe.fit, 7), "windows", "targets", None, "start")
            for k, name in enumerate(("0", "1"), 3)]  # fmt: skip
    builds = (*recipe.teacher_networks, recipe.network)
    of_two_builds = dataclasses.replace(recipe, teacher_networks=builds)
    taught = teacher_jobs(of_two_builds, jobs)
    assert [job[0].name for job in taught] == ["0-teacher-1", "0-teacher-2", "1-teacher-1", "1-teacher-2"]
    for k, ((task, *others), (own, *_)) in enumerate(zip(taught, (jobs[0], jobs[0], jobs[1], jobs[1]), strict=True)):
        assert np.array_equal(task.train, own.train)
        assert np.array_equal(task.valid, own.valid)
        assert (task.network, task.settings) == (builds[k % 2], recipe.teacher_fit)
        assert others == ["windows", "targets", None, "start" if k % 2 else None]  # another build starts from chance
    assert len({job[0].seed for job in taught[:2]} | {7}) == 3
    assert teacher_jobs(dataclasses.replace(recipe, teacher_networks=()), jobs) == []
    found = teaching(of_two_builds, "1", {task.name: task for task, *_ in taught})
    assert [(build, task.name) for build, task in found.teachers] == [
        (builds[0], "1-teacher-1"), (builds[1], "1-teacher-2"),
    ]  # fmt: skip
    assert all(build == task.network for build, task in found.teachers)


def test_a_target_is_blended_with_the_mean_of_what_the_teachers_say_of_that_very_window(recipe):
    rng = np.random.default_rng(3)
    inputs = rng.normal(0, 2, (5, 2, recipe.features.num_frames, 32)).astype(np.float16)
    targets = np.eye(6, dtype=np.float32)[:5]
    rows = np.array([0, 1, 3])
    teachers, said = [], []
    for seed, spec in enumerate((recipe.network, *recipe.teacher_networks), start=1):
        network = networks.build(spec.name, *inputs.shape[2:], 6, spec.options)
        network.set_weights([rng.uniform(0, 0.3, weight.shape) for weight in network.weights])
        mean, std = rng.normal(0, 1, 32).astype(np.float32), rng.uniform(1, 2, 32).astype(np.float32)
        teachers.append((spec, Fitted(network.get_weights(), mean, std, 0.25 * seed, {})))
        windows = ((inputs - mean) / std).astype(np.float32).reshape(10, *inputs.shape[2:])
        said.append(softmax(np.asarray(network(windows, training=False)) / (0.25 * seed)).reshape(5, 2, 6))
    found = taught_targets(inputs, targets, rows, Teaching(tuple(teachers), 0.75))
    expected = 0.25 * targets[:, None] + 0.75 * np.mean(said, axis=0)
    np.testing.assert_allclose(found[rows], expected[rows], atol=1e-4)
    assert np.array_equal(found[[2, 4]], np.repeat(targets[[2, 4], None], 2, axis=1))
    assert not np.allclose(found[0, 0], found[0, 1])


def test_the_gate_is_kept_from_the_last_fold_where_there_are_fewer_than_the_recipe_names(recipe):
    clips = [Clip("own", Path(f"{k}.wav"), str(k), "sad", k % 2) for k in range(6)]
    for named, held_out in ((0, 0), (1, 1), (4, 1)):
        assert held_out_fold(dataclasses.replace(recipe, gate_held_out_fold=named), clips) == held_out
    assert held_out_fold(dataclasses.replace(recipe, protocol="random"), clips) is None


def test_excerpts_of_one_piece_stay_on_one_side(recipe, data):
    paths = find_audio(data / "music")
    assert [path.name for path in paths] == ["hymn-1.wav", "march-1.wav", "reel-1.wav", "waltz-1.wav", "waltz-2.wav"]
    for seed in range(8):
        trained, held_out = split_music(paths, dataclasses.replace(recipe, seed=seed))
        assert sorted(trained + held_out) == paths
        pieces = [{path.stem[:-2] for path in side} for side in (trained, held_out)]
        assert not pieces[0] & pieces[1]
        assert [len(side) for side in pieces] == [2, 2]


# ------------------------------------------------------------------------- protocols, and calls of one's own


@pytest.fixture(scope="module")
def own_calls(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two manifests of labelled recordings, three speakers each, and one recording in them that is silent."""
    folder = tmp_path_factory.mktemp("own")
    write(folder / "silent.wav", silence(1.0))
    for name, speakers in (("support", range(3)), ("sales", range(3, 6))):
        rows = [
            {"path": str(path), "start_s": 0.0, "end_s": 1.0, "emotion": label, "speaker": speaker}
            for speaker in speakers
            for label in LABELS
            for path in sorted((data / "CREMA-D").glob(f"{1000 + speaker}_*_{label[:3].upper()}_XX.*"))
        ]
        quiet = {"path": "silent.wav", "start_s": 0.0, "end_s": 1.0, "emotion": "sad", "speaker": "nobody"}
        write_csv(folder / f"{name}.csv", [*rows, quiet] if name == "sales" else rows)
    return folder


@pytest.mark.parametrize(
    ("protocol", "tested"), [("random", 14), ("random-leaky", 14), ("cross-corpus", 36), ("speaker-folds", 72)]
)
def test_every_protocol_trains_on_manifests_and_is_measured_again_the_same(
    recipe, own_calls, tmp_path, protocol, tested
):
    quick = {"epochs": 1, "average_epochs": 0, "balance": ("class", "corpus")}
    changes = {
        "protocol": protocol, "corpora": ("support.csv", "sales.csv"), "gate_windows": 40,
        "teacher_networks": (),
        "test_corpora": ("sales",) if protocol == "cross-corpus" else (),
        "fit": dataclasses.replace(recipe.fit, **quick),
        "gate_fit": dataclasses.replace(recipe.gate_fit, epochs=1),
    }  # fmt: skip
    lines: list[str] = []
    bundle = training.train(
        dataclasses.replace(recipe, **changes), own_calls, tmp_path / "own", lines.append, workers=1,
        options=evaluate.EvaluateOptions(()),
    )  # fmt: skip
    assert any("1 clips are left out" in line and "silent" in line for line in lines)
    clips = bundle.scores["clips"]
    assert abs(clips["clips"] - tested) <= 2
    assert bundle.scores["protocol"] == protocol
    again = evaluate.evaluate_bundle(bundle, evaluate.read_clips(bundle, own_calls).clips)
    assert_close(json.loads(json.dumps(again["clips"])), clips)


def test_what_a_random_protocol_tests_on_lies_in_no_training_window(run, data):
    clips = evaluate.read_clips(run.bundle, data).clips
    neighbours = compose._pools(clips, frozenset({3, 8}))
    beside = {k for rows in neighbours.values() for k in rows}
    assert beside == set(range(72)) - {3, 8}


def test_too_few_speakers_for_the_folds_are_told_with_the_remedy(recipe, own_calls, tmp_path):
    few = dataclasses.replace(recipe, corpora=("support.csv",), folds=())
    with pytest.raises(ConfigError, match=r"fewer speakers than 5 folds.*such as folds = \[0, 1\]"):
        training.train(few, own_calls, tmp_path / "own", lambda line: None, workers=1)


# --------------------------------------------------------------------------------- starting from another bundle


@pytest.fixture(scope="module")
def tuned(run, recipe, data, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle trained on for an epoch of steps that are next to nothing, with a label more."""
    settings = dataclasses.replace(recipe.fit, epochs=1, average_epochs=0, learning_rate=1e-12, weight_decay=0.0)
    labels = ("calm", *LABELS)
    more = dataclasses.replace(
        recipe, labels=labels, fit=settings, teacher_networks=(), start_from=str(run.bundle.folder)
    )
    return training.train(more, data, tmp_path_factory.mktemp("out") / "tuned", lambda line: None, workers=0)


def test_a_fit_starts_where_the_other_bundle_ended_each_split_where_its_own_clips_were_not_heard(run, tuned):
    for file in ("split-0.npz", "split-1.npz", "weights.npz"):
        ours, theirs = read_weights(tuned, file), read_weights(run.bundle, file)
        kernel, bias = sorted(name for name in theirs if name.startswith("emotion/"))[-2:]
        np.testing.assert_allclose(ours["emotion/000"], theirs["emotion/000"], atol=1e-5)
        np.testing.assert_allclose(ours[kernel][:, 1:], theirs[kernel], atol=1e-3)  # the labels they share
        assert ours[bias].shape == (7,)


def test_what_the_other_bundle_was_calibrated_on_stays_for_that(run, tuned):
    assert tuned.training["validation_speakers"] == run.bundle.training["validation_speakers"]
    assert tuned.training["start_from"] == {"name": "tiny", "sha256": run.bundle.sha256}
    assert "Training began with the networks of tiny" in " ".join((tuned.folder / "README.md").read_text().split())


def test_data_behind_the_other_bundle_stay_named_with_their_licence(run, recipe):
    base = open_base(dataclasses.replace(recipe, teacher_networks=(), start_from=str(run.bundle.folder)))
    assert base.data_besides(["CREMA-D"]) == []
    assert base.data_besides(["own-calls.csv"]) == [{**run.bundle.data[0], "through": "tiny"}]


def test_speakers_that_the_other_bundle_has_heard_are_no_test(run, recipe, data):
    clips = evaluate.read_clips(run.bundle, data).clips
    base = open_base(dataclasses.replace(recipe, teacher_networks=(), start_from=str(run.bundle.folder)))
    fold = np.array([k for k, clip in enumerate(clips) if clip.fold == 0])
    assert base.model_for(clips, Split("0", fold[:0], fold), "speaker-folds") == "0"
    for split, protocol in (
        (Split("1", fold[:0], fold), "speaker-folds"),
        (Split("0", fold[:0], fold), "random"),
    ):
        with pytest.raises(ConfigError, match="tests on 3 speakers that it has heard"):
            base.model_for(clips, split, protocol)
    elsewhere = [dataclasses.replace(clip, path=Path("other") / clip.path.name, start_s=1.0) for clip in clips]
    with pytest.raises(ConfigError, match="tests on 3 speakers that it has heard"):
        base.model_for(elsewhere, Split("1", fold[:0], fold), "speaker-folds")
    strangers = [dataclasses.replace(clip, corpus="own") for clip in clips]
    assert base.model_for(strangers, Split("1", fold[:0], fold), "speaker-folds") == "shipped"


def test_a_bundle_of_before_split_files_scores_but_nothing_starts_from_it(run, recipe, data, tmp_path):
    draft = dataclasses.replace(run.bundle, sha256="", folder=None)
    older = write_bundle(tmp_path / "older", draft, read_weights(run.bundle), {}, "")
    (older.folder / "folds.npz").write_bytes(b"")
    assert Model(open_bundle(older.folder)).bundle == older
    clips = evaluate.read_clips(older, data).clips
    base = open_base(dataclasses.replace(recipe, teacher_networks=(), start_from=str(older.folder)))
    fold = np.array([k for k, clip in enumerate(clips) if clip.fold == 0])
    for told in (
        lambda: evaluate.evaluate_bundle(older, clips),
        lambda: base.model_for(clips, Split("0", fold[:0], fold), "speaker-folds"),
    ):
        with pytest.raises(ConfigError, match=r"split-0\.npz.*an earlier batchser wrote them as folds\.npz"):
            told()


def test_whom_the_other_bundle_heard_is_known_over_generations(run, tuned):
    assert set(run.bundle.training["heard"]) <= set(tuned.training["heard"])
    assert len(tuned.training["heard"]) == 6
    assert all(len(key) == 12 for key in tuned.training["heard"])  # keys, not names


def test_clips_dealt_otherwise_than_in_training_are_not_evaluated(run, data):
    clips = evaluate.read_clips(run.bundle, data).clips
    shuffled = [dataclasses.replace(clip, fold=(int(clip.speaker) // 3) % 2) for clip in clips]
    with pytest.raises(ConfigError, match=r"not dealt as in its training: split 0: \d speakers that its model"):
        evaluate.bundle_splits(run.bundle, shuffled)


def test_another_network_or_other_features_are_told_before_anything_starts(run, recipe):
    features = dataclasses.replace(recipe.features, num_mels=40)
    other = dataclasses.replace(recipe, teacher_networks=(), features=features, start_from=str(run.bundle.folder))
    with pytest.raises(ConfigError, match="features differ"):
        open_base(other)


def test_the_gate_works_on_levels_as_it_was_taught_on_scaled_ones(run, recipe):
    settings, rng = recipe.features, np.random.default_rng(0)
    mel_db = rng.uniform(-80, 0, (4, settings.num_frames, settings.num_mels)).astype(np.float32)
    frames = np.full(4, settings.num_frames, np.int32)
    std = np.linspace(0.3, 0.6, settings.num_mels, dtype=np.float32)
    network = networks.build(
        "gate-conv", settings.num_frames, settings.num_mels, len(KINDS), recipe.gate_network.options
    )
    fitted = Fitted(network.get_weights(), 0 * std, std, 1.0, {})
    model = Model(run.bundle, read_weights(run.bundle) | gate_weights(fitted))
    taught = network(level_below_peak(mel_db, frames, settings.top_db) / std, training=False)
    np.testing.assert_allclose(model.gate(mel_db, frames), softmax(np.asarray(taught)), atol=1e-5)


def test_rounded_weights_need_half_the_bits_and_keep_their_value():
    values = np.random.default_rng(0).normal(0, 10.0 ** np.arange(-20, 20)).astype(np.float32)
    np.testing.assert_allclose(rounded(values), values, rtol=1 / 4096)
    assert not (rounded(values).view(np.uint32) & 0xFFF).any()
    assert np.array_equal(rounded(rounded(values)), rounded(values))


# ------------------------------------------------------------------------------------------------------ recipes


def test_the_carried_recipe_is_read_by_name():
    recipe = read_recipe("telephone-6")
    assert recipe.labels == LABELS
    assert recipe.features == FeatureSettings(names=("mel", "pitch"), keep_colour=True, centred_min_db=-36.0)
    assert recipe.protocol == "speaker-folds"


def test_faults_of_a_recipe_are_told_all_at_once(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(
        'name = "x"\ncorpora = ["CREMA-D"]\nlables = ["angry"]\nnegative_labels = []\ngate = 3\n'
        'teacher_networks = ["lstm-stack"]\n'
        "[fit]\nepoch = 3\n[features]\nhop = 1\n[network]\nfilters = [1]\n"
    )
    with pytest.raises(ConfigError) as raised:
        read_recipe(str(path))
    told = "\n".join(raised.value.faults)
    for text in (
        "recipe: lables: no such key; expected one of name,", "recipe: fit.epoch: no such key; expected one of epochs,",
        "recipe: features.hop: no such key", "recipe: gate: received 3, expected a table", "recipe: labels: missing",
        "recipe: network: received {'filters': [1]}, expected a table with the network's name",
        "recipe: teacher_networks: received ['lstm-stack'], expected a list of tables with the networks' names",
    ):  # fmt: skip
        assert text in told
    assert len(raised.value.faults) == 7


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (RECIPE.replace('negative_labels = ["angry",', 'negative_labels = ["cross",'), "negative_labels: received"),
        (RECIPE.replace("hop_samples = 1024", "hop_samples = 1280"), "hop_samples: received 1280, expected 1 to 1024"),
        ("name = ", "not TOML"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_told(tmp_path, text, sentence):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_recipe(str(path))


def test_an_unknown_recipe_is_told_with_those_that_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"recipe 'strong': received no known name; expected one of .*telephone-6"):
        read_recipe("strong")
    with pytest.raises(ConfigError, match="no such file"):
        read_recipe(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ("kept_share = 75\n", "kept_share: received 75, expected a number of 0.01 to 1"),
        ("[fit]\nepochs = 0\n[windows]\ncopies = 0\n", "fit.epochs: received 0"),  # all at once
        (
            "[fit]\nepochs = 0\n[windows]\ncopies = 0\n",
            "windows.copies: received 0, expected a whole number of 1 or more",
        ),
        ("[windows]\ntails = 2.0\n", "windows.tails: received 2.0, expected a number of 0 to 1"),
        ('[fit]\nepochs = "45"\n', "fit.epochs: received '45', expected a whole number of 1 or more"),
        (
            "[fit]\ncorpus_weights = {TESS = 0}\n",
            "fit.corpus_weights: received {'TESS': 0}, expected a table of numbers above 0",
        ),
        ("[teacher_fit]\ncorpus_weights = {TESS = 2}\n", "teacher_fit.corpus_weights: received {'TESS': 2}; say it in"),
        ('[gate_fit]\nbalance = ["class"]\n', "gate_fit.balance: received ('class',); it is for [fit]"),
        ("[fit]\ncorpus_weights = {TESS = inf}\n", "fit.corpus_weights: received {'TESS': inf}"),
        ('[fit]\nvalidation_corpora = "TESS"\n', "fit.validation_corpora: received 'TESS', expected a list of corpora"),
        (
            '[teacher_fit]\nvalidation_corpora = ["TESS"]\n',
            "teacher_fit.validation_corpora: received ('TESS',); say it",
        ),
        (
            "[augment]\ncodecs = {mu-law = inf}\n",
            "augment.codecs: received {'mu-law': inf}, expected a table of weights",
        ),
        ("[fit]\nvote_share = true\n", "fit.vote_share: received True, expected a number of 0 to 1"),
        ("[gate_fit]\nplateau_patience = 0\n", "gate_fit.plateau_patience: received 0"),
        (
            'start_from = "telephone-6"\n[[teacher_networks]]\nname = "lstm-stack"\n',
            "teacher_networks: received 1 of another build than [network] with start_from",
        ),
        (
            '[network]\nname = "conv-dual-lstm"\npitch_filters = [4, 4, 4]\n',
            "network: takes 48 pitches (pitch_filters, num_pitches), and the features end with 0",
        ),
        (
            '[features]\nnames = ["mel", "pitch"]\nnum_pitches = 24\n[[teacher_networks]]\nname = "conv-dual-lstm"\n'
            "pitch_filters = [4, 4, 4]\n",
            "teacher_networks[0]: takes 48 pitches (pitch_filters, num_pitches), and the features end with 24",
        ),
    ],
)
def test_numbers_out_of_range_are_told_when_the_recipe_is_read(tmp_path, changes, sentence):
    head = RECIPE[: RECIPE.index("[features]")]
    (tmp_path / "odd.toml").write_text(head + changes)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        read_recipe(str(tmp_path / "odd.toml"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fit": FitSettings(time_mask=200)}, r"fit\.time_mask: received 200, expected at most"),
        ({"network": NetworkSpec("lstm-stack", {"heads": 8})}, "network: .*does not take these options"),
        (
            {"teacher_networks": (NetworkSpec("dense-stack", {}), NetworkSpec("gate-conv", {}))},
            r"teacher_networks\[1\]: 'gate-conv' judges chunks of windows",
        ),
        ({"gate_network": NetworkSpec("dense-stack", {})}, "gate_network: 'dense-stack' judges windows"),
        (
            {"fit": FitSettings(corpus_weights={"TESS": 0.3, "CREMA-D": 2})},
            r"fit\.corpus_weights: received TESS, expected some of CREMA-D$",
        ),
        (
            {"fit": FitSettings(validation_corpora=("CREMA-D", "RAVDESS"))},
            r"fit\.validation_corpora: received RAVDESS, expected some of CREMA-D$",
        ),
    ],
)
def test_what_does_not_fit_the_network_is_told_before_anything_starts(recipe, data, tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        training.train(dataclasses.replace(recipe, **changes), data, tmp_path / "out", lambda line: None, workers=1)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------- examples


def test_emotion_windows_have_a_true_length_and_padding_behind_it():
    settings = FeatureSettings()
    take, *others = (
        make_take(np.concatenate([silence(0.5), speechlike(seconds, seed), silence(0.5)]), RATE_HZ)
        for seed, seconds in ((1, 2.0), (2, 1.5), (3, 4.0))
    )
    assert 2.0 <= take.spoken.size / RATE_HZ <= 2.2

    def neighbour(rng: np.random.Generator):
        return others[int(rng.integers(len(others)))]

    lengths = []
    for seed in range(20):
        window, length = emotion_window(np.random.default_rng(seed), take, neighbour, settings)
        again, _ = emotion_window(np.random.default_rng(seed), take, neighbour, settings)
        assert window.shape == (settings.window_samples,)
        assert window.dtype == np.float32
        assert np.isfinite(window).all()
        assert not window[length:].any()
        assert np.square(window[:length]).mean() > 1e-7
        np.testing.assert_array_equal(window, again)
        lengths.append(length)
    assert settings.rate_hz <= min(lengths) < max(lengths) == settings.window_samples


def test_gate_windows_say_what_each_chunk_holds():
    rng = np.random.default_rng(0)
    sounds = GateSounds({"a": [speechlike(1.0, 1)], "b": [speechlike(2.0, 2)]}, [], [])
    seen = set()
    for _ in range(40):
        window, kinds = gate_window(rng, sounds, FeatureSettings(), 46)
        assert window.shape == (24_000,)
        assert kinds.shape == (46,)
        assert np.isfinite(window).all()
        seen |= set(kinds.tolist())
    assert seen == {SPEECH, SILENCE, MUSIC, TONE, NOISE}


def test_a_sound_is_placed_as_far_as_it_lies_inside():
    for start, expected in ((-2, [3, 0, 0, 0]), (1, [0, 1, 2, 3]), (3, [0, 0, 0, 1]), (4, [0] * 4), (-3, [0] * 4)):
        line = np.zeros(4, np.float32)
        place(line, start, np.array([1, 2, 3], np.float32))
        assert line.tolist() == expected


def evenly(groups: np.ndarray) -> Draws:
    return Draws(groups, np.ones(len(groups)))


def test_groups_are_drawn_equally_often():
    groups = np.array([[0]] * 90 + [[1]] * 10, np.int32)
    drawn = draw_order(np.random.default_rng(0), np.arange(100), evenly(groups))
    assert len(drawn) == 100
    assert 35 <= (drawn >= 90).sum() <= 65
    assert sorted(draw_order(np.random.default_rng(0), np.arange(5, 9), None)) == [5, 6, 7, 8]


def test_two_kinds_of_groups_are_balanced_at_once_though_one_label_is_in_one_corpus_only():
    corpus = np.repeat([0, 1], [9000, 1000])
    label = np.where(corpus == 0, np.arange(10_000) % 3, np.arange(10_000) % 4)  # label 3: corpus 1 alone
    drawn = draw_order(np.random.default_rng(0), np.arange(10_000), evenly(np.stack([label, corpus], axis=1)))
    np.testing.assert_allclose(np.bincount(label[drawn]) / 10_000, 1 / 4, atol=0.02)
    np.testing.assert_allclose(np.bincount(corpus[drawn]) / 10_000, 1 / 2, atol=0.02)


def test_classes_of_a_corpus_are_drawn_alike_where_that_is_asked_for(recipe, tmp_path):
    """A class that one corpus has to itself would else fill more than its share of what is drawn of that corpus."""
    clips = [
        Clip(corpus, tmp_path / f"{corpus}-{label}-{k}.wav", "1", label, None)
        for corpus, labels, count in (("CREMA-D", ("happy", "sad"), 90), ("RAVDESS", ("happy", "sad", "calm"), 10))
        for label in labels
        for k in range(count)
    ]
    shares = {}
    for balance in (("class", "corpus"), ("corpus-class",), ("corpus-class", "corpus")):
        changed = dataclasses.replace(recipe, fit=dataclasses.replace(recipe.fit, balance=balance))
        draws = TrainingSet(changed, tuple(clips), tmp_path).draws()
        rng = np.random.default_rng(0)
        drawn = np.concatenate([draw_order(rng, np.arange(len(clips)), draws) for _ in range(40)])
        of = [f"{clips[k].corpus} {clips[k].emotion}" for k in drawn]
        shares[balance] = {name: of.count(name) / len(of) for name in sorted(set(of))}
    assert shares["class", "corpus"]["RAVDESS calm"] == pytest.approx(1 / 3, abs=0.02)
    assert shares["class", "corpus"]["RAVDESS sad"] == pytest.approx(1 / 12, abs=0.02)
    assert list(shares["corpus-class",].values()) == pytest.approx([1 / 5] * 5, abs=0.02)
    assert list(shares["corpus-class", "corpus"].values()) == pytest.approx([1 / 4] * 2 + [1 / 6] * 3, abs=0.02)


@pytest.mark.parametrize(("balance", "share"), [((), 1 / 31), (("corpus",), 1 / 4), (("corpus-class",), 1 / 4)])
def test_a_corpus_of_less_weight_is_drawn_less_often_than_balance_has_it(recipe, tmp_path, balance, share):
    clips = [
        Clip(corpus, tmp_path / f"{corpus}-{label}-{k}.wav", "1", label, None)
        for corpus, count in (("CREMA-D", 300), ("TESS", 30))
        for label in ("happy", "sad")
        for k in range(count)
    ]
    settings = dataclasses.replace(recipe.fit, balance=balance, corpus_weights={"TESS": 1 / 3})
    draws = TrainingSet(dataclasses.replace(recipe, fit=settings), tuple(clips), tmp_path).draws()
    drawn = np.concatenate([draw_order(np.random.default_rng(k), np.arange(660), draws) for k in range(20)])
    assert (drawn >= 600).mean() == pytest.approx(share, abs=0.02)
    assert (drawn % 60 < 30).mean() == pytest.approx(1 / 2, abs=0.02)


@pytest.mark.parametrize(
    ("named", "expected"),
    [((), {"CREMA-D", "RAVDESS"}), (("CREMA-D",), {"CREMA-D"}), (("TESS",), {"CREMA-D", "RAVDESS"})],
)
def test_validation_may_be_on_some_of_the_tested_corpora_alone(recipe, tmp_path, named, expected):
    clips = [
        Clip(corpus, tmp_path / f"{corpus}-{speaker}-{label}.wav", str(speaker), label, None)
        for corpus, speakers in (("CREMA-D", 20), ("RAVDESS", 10), ("TESS", 2))
        for speaker in range(speakers)
        for label in ("happy", "sad")
    ]
    tested = [k for k, clip in enumerate(clips) if clip.corpus != "TESS" and clip.speaker in ("0", "1")]
    split = Split("0", np.setdiff1d(np.arange(len(clips)), tested), np.array(tested))
    settings = dataclasses.replace(recipe.fit, validation_corpora=named, validation_speakers=6)
    training_set = TrainingSet(dataclasses.replace(recipe, fit=settings), tuple(clips), tmp_path)
    for (task, *_), rows in zip(emotion_jobs(training_set, [split], None), (split.train, np.arange(64)), strict=True):
        assert {clips[k].corpus for k in task.valid} == expected
        speakers = {(clips[k].corpus, clips[k].speaker) for k in task.valid}
        assert speakers.isdisjoint((clips[k].corpus, clips[k].speaker) for k in task.train)
        assert sorted([*task.train, *task.valid]) == rows.tolist()


def test_a_network_begins_the_same_whatever_other_threads_draw():
    shape, firsts, ended = (20, 8, 4), [], threading.Event()

    def draw() -> None:
        while not ended.is_set():
            random.random()

    for disturbed in (False, True, True):
        thread = threading.Thread(target=draw)
        if disturbed:
            thread.start()
        with seeded(3):
            network = networks.build("lstm-stack", *shape, {"units": [4, 4]})
        firsts.append(np.concatenate([np.asarray(w).ravel() for w in network.get_weights()]))
        ended.set()
        if disturbed:
            thread.join()
        ended.clear()
    assert np.array_equal(firsts[0], firsts[1])
    assert np.array_equal(firsts[0], firsts[2])


def test_calibration_undoes_overconfidence_and_a_label_said_too_often():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6000, 4))
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (rng.random((6000, 1)) > odds.cumsum(axis=1)).sum(axis=1)
    temperature, offsets = calibrate((3 * logits + [3, 0, 0, 0]).astype(np.float32), truth)
    assert temperature == pytest.approx(3, rel=0.1)
    np.testing.assert_allclose(offsets - offsets[1:].mean(), [-1, 0, 0, 0], atol=0.15)


def test_the_scaler_is_found_on_all_copies_of_an_example():
    rng = np.random.default_rng(0)
    inputs = np.stack([np.zeros((40, 4, 3)), rng.normal(6, 1, (40, 4, 3))], axis=1).astype(np.float16)
    examples = Examples(inputs, np.eye(2, dtype=np.float32)[np.arange(40) % 2])
    settings = FitSettings(epochs=1, batch_size=10, frequency_mask=0, time_mask=0)
    network, rows = NetworkSpec("dense-stack", {"units": [4]}), np.arange(40, dtype=np.int32)
    coloured = FeatureSettings(keep_colour=True)  # not around zero: their mean is taken out
    fitted = fit(examples, Task("0", rows[:30], rows[30:], network, 2, settings, 1, features=coloured), [].append)
    np.testing.assert_allclose(fitted.mean, 3, atol=1)
    np.testing.assert_allclose(fitted.std, 3, atol=0.5)


def test_norms_behind_dropout_are_settled_on_what_they_meet_in_use():
    import keras

    rng = np.random.default_rng(0)
    inputs = rng.normal(1, 2, size=(40, 1, 24, 16)).astype(np.float16)
    examples = Examples(inputs, np.eye(2, dtype=np.float32)[np.arange(40) % 2])
    spec = NetworkSpec("conv2d-lstm", {"chunk_frames": 16, "chunk_hop": 8, "filters": [4, 4], "pools": [2, 2]})
    rows = np.arange(40, dtype=np.int32)
    by_windows = {}
    for norm_windows in (0, 30):
        settings = FitSettings(epochs=3, batch_size=10, frequency_mask=0, time_mask=0, norm_windows=norm_windows)
        by_windows[norm_windows] = fit(examples, Task("0", rows[:30], rows[30:], spec, 2, settings, 1), [].append)
    assert by_windows[0].history["loss"] == by_windows[30].history["loss"]  # training itself is undisturbed

    far = {}
    for norm_windows, fitted in by_windows.items():
        network = networks.build("conv2d-lstm", 24, 16, 2, spec.options)
        network.set_weights(fitted.weights)
        norm = network.get_layer("norm_1")  # behind the first dropout
        met = np.asarray(keras.Model(network.input, norm.input)((inputs[:30, 0] - fitted.mean) / fitted.std))
        mean, deviation = met.mean(axis=(0, 1, 2)), met.std(axis=(0, 1, 2))
        far[norm_windows] = np.abs(np.sqrt(norm.moving_variance) / deviation - 1).max()
        if norm_windows:
            np.testing.assert_allclose(np.asarray(norm.moving_mean), mean, atol=0.01 * deviation.max())
    assert far[30] < 0.01 < 0.1 < far[0]


def test_validation_windows_are_calibrated_on_with_their_clips_groups(monkeypatch):
    seen = []
    monkeypatch.setattr(fitting, "calibrate", lambda *given, **options: seen.append(given) or calibrate(*given))
    rng, rows = np.random.default_rng(0), np.arange(12, dtype=np.int32)
    groups = np.stack([rows % 2, rows % 3], axis=1)
    targets = np.eye(2, dtype=np.float32)[rows % 2]
    examples = Examples(rng.normal(0, 1, (12, 3, 4, 3)).astype(np.float16), targets, evenly(groups))
    settings = FitSettings(epochs=1, batch_size=4, frequency_mask=0, time_mask=0, validation_copies=2)
    fit(examples, Task("0", rows[:7], rows[7:], NetworkSpec("dense-stack", {"units": [4]}), 2, settings, 1), [].append)
    ((_, truth, received),) = seen
    assert truth.tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 1, 1]
    assert received.tolist() == evenly(groups).chances(rows[7:]).repeat(2).tolist()


def test_calibration_counts_groups_as_training_draws_them():
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((900, 3)).astype(np.float32)
    groups = (np.arange(900) >= 700).astype(np.int32)[:, None]
    truth = (logits + rng.standard_normal((900, 3)) + [0.0, 1.0, 0.0] * groups).argmax(axis=1)
    more = np.concatenate([np.arange(900), *[np.arange(700, 900)] * 4])  # the small group five times
    once, often = (
        calibrate(logits[rows], truth[rows], evenly(groups).chances(rows)) for rows in (np.arange(900), more)
    )
    np.testing.assert_allclose(often[0] * often[1], once[0] * once[1], atol=1e-3)  # of the logits
    assert np.abs(calibrate(logits[more], truth[more])[1] - calibrate(logits, truth)[1]).max() > 0.05


def test_the_temperature_is_that_of_the_examples_as_they_come():
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((4000, 3))
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (rng.random((4000, 1)) > odds.cumsum(axis=1)).sum(axis=1)
    hard = np.arange(4000) >= 3800  # a small group that is guessed at
    truth[hard] = rng.integers(0, 3, hard.sum())
    groups = hard.astype(np.int32)[:, None]
    temperature, _ = calibrate((2 * logits).astype(np.float32), truth, evenly(groups).chances(np.arange(4000)))
    assert temperature == pytest.approx(calibrate((2 * logits).astype(np.float32), truth)[0], rel=0.05)
    assert temperature == pytest.approx(2.1, abs=0.15)  # balanced, it would be 4


def test_calibration_leaves_a_label_that_it_has_no_examples_of_as_it_is():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((600, 4)).astype(np.float32)
    _, offsets = calibrate(logits, logits[:, :3].argmax(axis=1))
    assert offsets[3] == 0


def test_calibration_of_chunks_is_a_temperature_alone():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((200, 30, 3))
    odds = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    truth = (rng.random((200, 30, 1)) > odds.cumsum(axis=2)).sum(axis=2)
    temperature, offsets = calibrate((2 * logits).astype(np.float32), truth)
    assert temperature == pytest.approx(2, rel=0.1)
    assert not offsets.any()
