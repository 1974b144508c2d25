"""Training on a tiny corpus made here: recipe, corpora, a whole run, and the figures by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from composed import make_calls, write_csv
from conftest import LABELS, NEGATIVE, RATE_HZ, speechlike, write

import batchser
from batchser.bundle import Bundle, open_bundle, read_weights
from batchser.errors import ConfigError
from batchser.records import MUSIC, NOISE, SILENCE, SPEECH, TONE
from batchser.settings import FeatureSettings
from batchser.training import evaluate
from batchser.training import train as training
from batchser.training.corpora import find_audio
from batchser.training.examples import GateSounds, emotion_window, gate_window, place
from batchser.training.fit import Examples, fit_temperature, mask, mix
from batchser.training.recipe import FitSettings, read_recipe
from batchser.training.sounds import composed_music, generated_noise

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
fft_samples = 1024
hop_samples = 1024
num_mels = 32

[network]
name = "conv-dual-lstm"
filters = [4, 4, 8]
units = [4, 4]

[fit]
epochs = 2
batch_size = 16
copies = 2
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
copies = 1
label_smoothing = 0.0
frequency_mask = 0
time_mask = 0
"""


def make_clip(path: Path, speaker: int, emotion: int, take: int) -> None:
    """One second of a voice whose swell depends on the emotion."""
    t = np.arange(16_000) / 16_000
    line = speechlike(1.0, 100 * speaker + 10 * emotion + take, 16_000)
    swell = 1 + 0.8 * np.sin(2 * np.pi * (1 + emotion) * t)
    subtype = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, (line * swell).astype(np.float32), 16_000, **subtype)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpora's folder: six speakers in two folds, six emotions, two takes, music and noise."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    (folder / "CREMA-D").mkdir()
    for speaker in range(6):
        for emotion, label in enumerate(LABELS):
            for take in range(2):
                suffix = "opus" if speaker == 0 else "wav"
                path = f"CREMA-D/{1000 + speaker}_{['DFA', 'IEO'][take]}_{label[:3].upper()}_XX.{suffix}"
                make_clip(folder / path, speaker, emotion, take)
                votes = {f"votes_{name}": int(name == label) for name in LABELS}
                row = {"corpus": "CREMA-D", "path": path, "speaker": 1000 + speaker, "emotion": label}
                rows.append(row | {"intensity": "XX", "duration_s": 1.0, "fold": speaker % 2} | votes)
    write_csv(folder / "index.csv", [*rows, rows[0] | {"corpus": "TESS", "path": "TESS/none.wav", "fold": ""}])
    rng = np.random.default_rng(0)
    for kind, make, names in (
        ("music", composed_music, ["waltz-1", "waltz-2", "march-1", "hymn-1", "reel-1"]),
        ("noise", generated_noise, ["street-1"]),
    ):
        (folder / kind).mkdir()
        for name in names:
            write(folder / kind / f"{name}.wav", 0.3 * make(rng, 4 * RATE_HZ, RATE_HZ))
    (folder / "music" / "README.md").write_text("licences")
    return folder


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
    num_kept: int


@pytest.fixture(scope="module")
def run(data: Path, recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train the tiny recipe, kill it before the shipped fit, and train it again."""
    out = tmp_path_factory.mktemp("out") / "tiny"
    first: list[str] = []
    second: list[str] = []
    fit_emotion = training.fit_emotion

    def killed(recipe, training_set, folds, report, what):
        if what == "shipped model":
            raise KeyboardInterrupt
        return fit_emotion(recipe, training_set, folds, report, what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit_emotion", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, data, out, first.append)
    assert not out.exists()
    num_kept = len(list(out.with_name("tiny.work").iterdir()))
    bundle = training.train(recipe, data, out, second.append, calls=[make_calls(out.parent / "calls")])
    return Run(bundle, first, second, num_kept)


# -------------------------------------------------------------------------------------------------- a whole run


def test_a_run_leaves_a_bundle_that_opens_and_says_where_it_comes_from(run):
    bundle = open_bundle(run.bundle.folder)
    assert bundle == run.bundle
    assert (bundle.name, bundle.labels, bundle.negative_labels) == ("tiny", LABELS, NEGATIVE)
    assert bundle.features == FeatureSettings(fft_samples=1024, hop_samples=1024, num_mels=32)
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
    again = evaluate.evaluate_bundle(
        bundle, evaluate.read_clips(bundle, data).clips, [run.bundle.folder.parent / "calls"]
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


def test_a_killed_run_goes_on_from_its_finished_fits(run):
    assert run.num_kept == 3  # the gate and two folds
    taken = [line.split(":")[0] for line in run.second if "taken from" in line]
    assert taken == ["gate", "without-fold-0", "without-fold-1"]
    assert not any("epoch" in line for line in run.second if not line.startswith("shipped model"))
    uars = [[line for line in lines if ": UAR " in line] for lines in (run.first, run.second)]
    assert uars[0] == uars[1] != []
    assert not run.bundle.folder.with_name("tiny.work").exists()


def test_a_fold_model_carries_its_own_weights_and_the_shared_gate(run):
    own = read_weights(run.bundle)
    folds = read_weights(run.bundle, "folds.npz")
    assert {name.split("/")[0] for name in folds} == {"0", "1", "temperature"}
    assert not np.array_equal(folds["0/000"], folds["1/000"])
    assert not np.array_equal(folds["0/000"], own["emotion/000"])
    with pytest.raises(ConfigError, match=r"folds\.npz has no model of fold 7"):
        evaluate.fold_model(run.bundle, "7")


def test_a_bundle_without_fold_models_cannot_be_evaluated(tiny_bundle):
    with pytest.raises(ConfigError, match="tiny: it carries no fold models"):
        evaluate.fold_model(tiny_bundle, "0")


def test_folds_without_clips_and_labels_not_named_are_told_at_once(recipe, data, tmp_path):
    wrong = dataclasses.replace(recipe, folds=(0, 3), labels=LABELS[:5])
    with pytest.raises(ConfigError) as raised:
        training.train(wrong, data, tmp_path / "out", lambda line: None)
    assert raised.value.faults == (
        "recipe tiny: fold 3: no clip has it",
        "recipe tiny: labels: the corpora also hold sad, which the recipe does not name",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed", [{"seed": 6}, {"folds": (0,)}, {"labels": LABELS[::-1]}, {"data": "corrected"}])
def test_a_kept_fit_is_not_taken_for_another_recipe_or_corpus(recipe, tmp_path, changed):
    fitted = training.Fitted([np.arange(3, dtype=np.float32)], 1.25, {"loss": [1.0]})
    runs = []

    def fit() -> training.Fitted:
        runs.append(1)
        return fitted

    def keep(data_key: str = "as it was", **values: object) -> training.Fitted:
        kept = training.KeptFits(tmp_path, dataclasses.replace(recipe, **values), data_key, lambda line: None)
        return kept.fit("shipped", training._EMOTION_KEYS, fit)

    keep()
    again = keep()
    assert len(runs) == 1
    assert (again.weights[0].tolist(), again.temperature, again.history) == ([0, 1, 2], 1.25, {"loss": [1.0]})
    if "data" in changed:
        keep(data_key="corrected")
    else:
        keep(**changed)
    assert len(runs) == 2


def test_excerpts_of_one_piece_stay_on_one_side(recipe, data):
    paths = find_audio(data / "music")
    assert [path.name for path in paths] == ["hymn-1.wav", "march-1.wav", "reel-1.wav", "waltz-1.wav", "waltz-2.wav"]
    for seed in range(8):
        trained, held_out = training.split_music(paths, dataclasses.replace(recipe, seed=seed))
        assert sorted(trained + held_out) == paths
        pieces = [{path.stem[:-2] for path in side} for side in (trained, held_out)]
        assert not pieces[0] & pieces[1]
        assert [len(side) for side in pieces] == [2, 2]


# ------------------------------------------------------------------------------------------------------ recipes


def test_the_carried_recipe_is_read_by_name():
    recipe = read_recipe("telephone-6")
    assert recipe.labels == LABELS
    assert recipe.features == FeatureSettings()
    assert recipe.network.options["units"] == [64, 64]


def test_faults_of_a_recipe_are_told_all_at_once(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(
        'name = "x"\ncorpora = ["CREMA-D"]\nlables = ["angry"]\nnegative_labels = []\ngate = 3\n'
        "[fit]\nepoch = 3\n[features]\nhop = 1\n[network]\nfilters = [1]\n"
    )
    with pytest.raises(ConfigError) as raised:
        read_recipe(str(path))
    told = "\n".join(raised.value.faults)
    for text in (
        "recipe: lables: no such key; expected one of name,", "recipe: fit.epoch: no such key; expected one of epochs,",
        "recipe: features.hop: no such key", "recipe: gate: received 3, expected a table", "recipe: labels: missing",
        "recipe: network: received {'filters': [1]}, expected a table with the network's name",
    ):  # fmt: skip
        assert text in told
    assert len(raised.value.faults) == 6


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


# ----------------------------------------------------------------------------------------------------- examples


def test_emotion_windows_have_a_true_length_and_padding_behind_it():
    settings = FeatureSettings()
    clip, other = speechlike(2.0, 1), speechlike(1.5, 2)
    lengths = []
    for seed in range(20):
        window, length = emotion_window(np.random.default_rng(seed), clip, other, settings)
        again, _ = emotion_window(np.random.default_rng(seed), clip, other, settings)
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


def test_masks_are_stripes_no_wider_than_stated():
    x = np.ones((50, 30, 20), np.float32)
    mask(np.random.default_rng(0), x, FitSettings(frequency_mask=3, time_mask=5))
    rows = (x == 0).all(axis=2).sum(axis=1)
    columns = (x == 0).all(axis=1).sum(axis=1)
    assert 0 < rows.max() <= 10
    assert 0 < columns.max() <= 6
    for example in x:  # nothing but whole stripes
        silent_rows, silent_columns = (example == 0).all(axis=1), (example == 0).all(axis=0)
        np.testing.assert_array_equal(example == 0, silent_rows[:, None] | silent_columns)


def test_mixup_blends_inputs_and_targets_alike():
    x = np.repeat(np.arange(8, dtype=np.float32)[:, None, None], 3, axis=1)
    mixed_x, mixed_y = mix(np.random.default_rng(0), x, np.eye(8, dtype=np.float32), 0.4)
    np.testing.assert_allclose(mixed_y.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed_x[:, 0, 0], mixed_y @ np.arange(8), atol=1e-5)


def test_examples_are_taken_with_their_targets():
    taken = Examples(np.arange(6, dtype=np.float16).reshape(3, 1, 2, 1), np.array([7, 8, 9])).take(np.array([2, 0]))
    assert taken.inputs[:, 0, 0, 0].tolist() == [4, 0]
    assert taken.targets.tolist() == [9, 7]


def test_the_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4000, 4))
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (rng.random((4000, 1)) > odds.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature((3 * logits).astype(np.float32), truth) == pytest.approx(3, rel=0.1)
    assert fit_temperature(logits.astype(np.float32), truth) == pytest.approx(1, rel=0.1)
