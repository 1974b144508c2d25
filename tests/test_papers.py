"""The five published systems: each recipe trains, is measured again the same, and scores recordings through the job."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import RATE_HZ, speechlike, write
from tiny_corpus import make_corpus

from batchser import networks
from batchser.bundle import read_weights
from batchser.cli import cli
from batchser.errors import ConfigError
from batchser.settings import FeatureSettings
from batchser.training import evaluate
from batchser.training import train as training
from batchser.training.augment import AugmentSettings
from batchser.training.examples import Take, clip_window, cut_clip
from batchser.training.recipe import WindowSettings, read_recipe

#: Recipe, what its network reads of a window, and its parameters with the labels of its paper.
PAPERS = {
    "dual-lstm-stack": ((126, 233), 734_984),
    "dual-lstm-mfcc20": ((20, 40), 238_600),
    "lstm-mfcc20": ((20, 40), 107_016),
    "lstm-mfcc13": ((1, 13), 355_720),
    "dense-prosody": ((1, 30), 51_014),
    "cnn-lstm-prosody": ((1, 45), 405_830),
    "cnn2d-lstm": ((559, 128), 148_040),
}
#: So little of everything that a recipe is through in seconds.
TINY = ('corpora=["CREMA-D"]', "fit.epochs=1", "gate_windows=20", "gate_fit.epochs=1", "gate.voiced_probability=0.01")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_network_reads_what_its_paper_says_and_has_its_parameters(name):
    recipe = read_recipe(name)
    shape = (recipe.features.num_steps, recipe.features.num_features)
    network = networks.build(recipe.network.name, *shape, len(recipe.labels), recipe.network.options)
    assert (shape, network.count_params()) == PAPERS[name]
    assert (recipe.name, recipe.protocol, recipe.line) == (name, "random", "clean")


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_recipe_trains_is_measured_again_and_scores_recordings(name, data, tmp_path):
    recipe, lines = read_recipe(name, TINY), []
    bundle = training.train(recipe, data, tmp_path / name, lines.append, workers=1)
    clips = bundle.scores["clips"]
    assert [bundle.scores[key] for key in ("protocol", "line", "cut")] == ["random", "clean", "clip"]
    card = " ".join((bundle.folder / "README.md").read_text().split())
    for words in (
        "cut as in training, no telephone added, through the job",
        "Training windows are clips from",
        "--set '",
    ):
        assert words in card
    assert "telephone lines" not in card.split("##")[0]
    assert abs(clips["clips"] - recipe.test_share * 72) < 4  # a whole number of each label
    again = evaluate.evaluate_bundle(bundle, evaluate.read_clips(bundle, data).clips)
    assert np.allclose(again["clips"]["uar"], clips["uar"])
    assert json.loads(json.dumps(again["clips"]["confusion"])) == clips["confusion"]

    (tmp_path / "calls").mkdir()
    write(tmp_path / "calls" / "call.wav", speechlike(7.0, 1))
    out = tmp_path / "results.parquet"
    ran = CliRunner().invoke(
        cli, ["run", str(tmp_path / "calls"), "--out", str(out), "--model", str(bundle.folder), "--workers", "0"]
    )
    assert ran.exit_code == 0, ran.output
    segments = pd.read_parquet(tmp_path / "results.segments.parquet")
    scored = segments[segments["emotion"].notna()]
    assert len(segments) == 3
    assert len(scored)
    np.testing.assert_allclose(scored[[f"p_{label}" for label in recipe.labels]].sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "parameters"),
    [
        ("lstm-mfcc13", "network.units=[128, 64]", 125_320),  # the paper's first version
        ("dual-lstm-stack", "network.units=[256, 256, 128]", 1_261_320),
        ("dual-lstm-stack", "network.units=[512, 256, 128]", 2_550_536),
    ],
)
def test_a_variant_of_a_papers_network_is_one_change(name, change, parameters):
    recipe = read_recipe(name, [change])
    shape = (recipe.features.num_steps, recipe.features.num_features)
    network = networks.build(recipe.network.name, *shape, len(recipe.labels), recipe.network.options)
    assert network.count_params() == parameters


def test_the_wideband_recipe_trains_and_ships_the_network_that_was_measured(data, tmp_path):
    bundle = training.train(read_recipe("wideband-8", TINY), data, tmp_path / "wide", [].append, workers=1)
    assert [bundle.scores[key] for key in ("protocol", "line")] == ["random", "clean"]
    card = " ".join((bundle.folder / "README.md").read_text().split())
    assert "The shipped weights are those of the first of them." in card
    shipped = [w for name, w in read_weights(bundle).items() if name.startswith("emotion/")]
    measured = [w for name, w in read_weights(bundle, "split-random.npz").items() if name.startswith("emotion/")]
    assert all(np.array_equal(a, b) for a, b in zip(shipped, measured, strict=True))


def test_rows_are_compared_on_the_same_clips(data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "bench"))
    import published

    for name, seed in (("one", 1), ("other", 1), ("apart", 2)):
        changes = [*TINY, f"seed={seed}", "network.units=[8, 4]" if name == "other" else "network.units=[4, 4]"]
        training.train(read_recipe("dual-lstm-mfcc20", changes), data, tmp_path / name, [].append, workers=1)
    same = published.points_between(tmp_path / "one", tmp_path / "one", data)
    assert same == "one less one: UAR +0.0 points (+0.0 to +0.0)"
    assert re.match(
        r"other less one: UAR [+-]\d+\.\d points \(",
        published.points_between(tmp_path / "one", tmp_path / "other", data),
    )
    with pytest.raises(click.UsageError, match="not tested on the same clips"):
        published.points_between(tmp_path / "one", tmp_path / "apart", data)


def test_changes_to_a_recipe_are_toml_or_words():
    recipe = read_recipe("dual-lstm-stack", ["fit.epochs=3", "folds=[4]", "protocol=speaker-folds", "fit.mixup = 0.2"])
    assert (recipe.fit.epochs, recipe.fit.mixup, recipe.folds, recipe.protocol) == (3, 0.2, (4,), "speaker-folds")
    assert recipe.fit.batch_size == read_recipe("dual-lstm-stack").fit.batch_size


def test_a_clip_is_cut_from_its_offset_on_and_each_copy_is_its_variant():
    settings = FeatureSettings()
    windows = WindowSettings(
        cut="clip", offset_s=0.5, copies=4, variants=("plain", "noise", "pitch", "stretch"), noise_snr_db=(20.0, 20.0)
    )
    lines = AugmentSettings(stretch=(0.8, 0.8))
    voice = speechlike(2.5, 1)
    take = Take(voice, voice)

    def cut(copy: int) -> tuple[np.ndarray, int]:
        return clip_window(np.random.default_rng(copy), take, copy, settings, windows, lines)

    plain, length = cut(0)
    assert (plain.size, length) == (settings.window_samples, 2 * RATE_HZ)
    assert np.array_equal(plain[:length], voice[RATE_HZ // 2 :])
    assert not plain[length:].any()
    noisy, _ = cut(1)
    noise = noisy[:length] - plain[:length]
    assert 15 < 20 * np.log10(plain[:length].std() / noise.std()) < 22
    assert cut(3)[1] == pytest.approx(length / 0.8, rel=0.02)
    pitched, same_length = cut(2)
    assert abs(same_length - length) < 100
    assert not np.allclose(pitched, plain, atol=0.01)
    assert all(np.array_equal(cut(k)[0], cut(k)[0]) for k in range(4))
    long = clip_window(np.random.default_rng(0), Take(np.tile(voice, 3), voice), 0, settings, windows, lines)
    assert long[1] == settings.window_samples
    assert np.array_equal(long[0], cut_clip(np.tile(voice, 3), RATE_HZ, 0.5)[: settings.window_samples])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["fit.epochs"], "received the change 'fit.epochs', expected KEY=VALUE"),
        (["fit.epochs=many"], "fit.epochs: received 'many', expected a whole number of 1 or more"),
        (["folds=4"], "folds: received 4, expected a list"),
        (['windows.variants=["plain", "reverb"]'], "variants: received 'reverb', expected one of plain"),
        (["windows.copies=3"], "copies: received 3, expected a multiple of the 4 variants"),
        (["windows.cut=call"], 'cut: received "call" with offset_s or variants'),
        (['teacher_fit.balance=["class"]'], "teacher_fit.balance: received"),
        (["fit.balance=corpus-class"], "fit.balance: received 'corpus-class', expected a list of class"),
        (["fit.pace=3"], "fit.pace: no such key"),
    ],
)
def test_changes_that_make_no_recipe_are_told(changes, sentence):
    with pytest.raises(ConfigError) as raised:
        read_recipe("lstm-mfcc13", changes)
    assert sentence in "\n".join(raised.value.faults)
