"""`batchser tune` on a tiny corpus: it goes on after a kill, is over Dask as in one process, and hears no test clip."""

from __future__ import annotations

import fcntl
import functools
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner
from distributed import Client, LocalCluster
from tiny_corpus import make_corpus

from batchser.cli import cli
from batchser.errors import ConfigError
from batchser.training import protocols, trials, tune
from batchser.training.corpora import Clip, read_corpora
from batchser.training.protocols import Split
from batchser.training.recipe import read_recipe, read_values, recipe_of
from batchser.training.search import at_point, load_optuna, own_point, read_space
from batchser.training.train import splits_of
from batchser.training.trials import METHODS, TuneError, open_study
from batchser.training.tune import Options

#: So little of everything that a trial is through in seconds.
TINY = (
    'corpora=["CREMA-D"]', "protocol=speaker-folds", "folds=[1]", "windows.copies=4", "fit.epochs=3",
    "network.units=[4, 4]", "gate_windows=20", "gate_fit.epochs=1",
)  # fmt: skip
SEARCH = """
[search]
"network.units" = [[4, 4], [8, 4]]
"features.steps" = [20, 31]
"fit.learning_rate" = { from = 1e-3, to = 1e-1, log = true }
"fit.frequency_mask" = { from = 0, to = 4 }
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("data"))


def tiny_values(search: str = SEARCH) -> dict:
    return read_values("dual-lstm-mfcc20", TINY) | tomllib.loads(search)


def test_a_study_writes_a_recipe_that_trains_and_goes_on_where_it_was(data, tmp_path, monkeypatch):
    values, lines = tiny_values(), []
    monkeypatch.setattr(trials, "_TELL_EVERY_S", 3600.0)  # lines of trials are of those that end
    monkeypatch.chdir(tmp_path)
    out = Path("better.toml")  # as one says it on the command line
    found = tune.tune(values, data, out, 3, lines.append, Options(parts=2, workers=1))
    assert found.endings == {"COMPLETE": 3, "PRUNED": 0, "FAIL": 0}
    uars = [float(line.split("UAR ")[1][:5]) for line in lines if line.startswith("trial ")]
    assert len(uars) == 3
    assert (found.uar, found.uar_before) == (pytest.approx(max(uars), abs=1e-3), pytest.approx(uars[0], abs=1e-3))
    assert found.picture.read_bytes().startswith(b"\x89PNG")

    recipe = read_recipe(str(out))
    assert (recipe.name, recipe.folds, recipe.corpora) == ("better", (1,), ("CREMA-D",))
    assert out.read_text().startswith("# dual-lstm-mfcc20, tuned by `batchser tune`, pruned: trial ")
    assert set(recipe.search) == set(values["search"])
    study = tmp_path / "better.study"
    assert sorted(path.name for path in study.iterdir()) == ["journal.log", "lock", "tuning.png"]

    lines.clear()
    more = tune.tune(values, data, out, 4, lines.append, Options(parts=2, workers=1))
    assert sum(more.endings.values()) == 4
    assert sum(line.startswith("trial ") for line in lines) == 1
    lines.clear()
    assert tune.tune(values, data, out, 4, lines.append, Options(parts=2, workers=1)) == more
    assert not lines

    changed = at_point(values, {"fit.patience": 4})
    with pytest.raises(ConfigError, match="holds a study of another recipe"):
        tune.tune(changed, data, out, 5, lines.append, Options(parts=2, workers=1))
    with (study / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run is at work on this output"):
            tune.tune(values, data, out, 5, lines.append, Options(parts=2, workers=1))
    own = tmp_path / "own.toml"
    own.write_text("name = 'mine'")
    with pytest.raises(ConfigError, match="is there, and is no study's"):
        tune.tune(values, data, own, 5, lines.append, Options(parts=2, workers=1))
    assert own.read_text() == "name = 'mine'"


def test_a_killed_study_goes_on_with_its_running_trial_after_its_last_epoch(data, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    fit, epochs = trials.fit_or_take, []

    def watched(*arguments, kill_after: int = 1000):
        def report(line: str) -> None:
            arguments[-2](line)
            if "epoch " in line and ":" in line:
                epochs.append(line)
                if len(epochs) == kill_after:
                    raise Killed

        return fit(*arguments[:-2], report, arguments[-1])

    options, out = Options(parts=2, workers=1), tmp_path / "better.toml"
    monkeypatch.setattr(trials, "fit_or_take", functools.partial(watched, kill_after=5))  # the second part's second
    with pytest.raises(Killed):
        tune.tune(tiny_values(), data, out, 1, print, options)
    assert not out.exists()
    epochs.clear()
    monkeypatch.setattr(trials, "fit_or_take", watched)
    lines = []
    found = tune.tune(tiny_values(), data, out, 1, lines.append, options)
    assert "1 trials that were under way go on; 1 of 1 trials to do" in lines[0]
    assert [line.split(":")[1] for line in epochs] == [" goes on after epoch 2 of 3", " epoch 3/3"]
    undisturbed = tune.tune(tiny_values(), data, tmp_path / "other.toml", 1, print, options)
    assert found.uar == found.uar_before == undisturbed.uar_before
    assert found.endings == {"COMPLETE": 1, "PRUNED": 0, "FAIL": 1}


def test_trials_over_dask_are_those_of_one_process(data, tmp_path):
    here = tune.tune(tiny_values(), data, tmp_path / "here.toml", 1, print, Options(parts=2, workers=1))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        options = Options(parts=2, scheduler=client.scheduler.address)
        there = tune.tune(tiny_values(), data, tmp_path / "there.toml", 3, print, options)
        again = tune.tune(tiny_values(), data, tmp_path / "again.toml", 1, print, options)
        blind = trials.open_executor(client.scheduler.address, 2, [Path("/nowhere")], print)
        with pytest.raises(ConfigError, match=r"worker tcp://.* does not see /nowhere; expected a folder"), blind:
            pass
    assert there.uar_before == again.uar_before
    assert there.uar_before == pytest.approx(here.uar_before, abs=0.05)  # this process has other threads in TensorFlow
    assert there.endings == {"COMPLETE": 3, "PRUNED": 0, "FAIL": 0}


def test_a_trial_whose_worker_died_is_begun_again_once_and_one_that_was_done_is_not_done_twice(
    data, tmp_path, monkeypatch
):
    class KilledWorker(Exception):  # noqa: N818
        pass

    ran, values = [], tiny_values('[search]\n"network.units" = [[4, 4]]')  # a space of one point

    def run(trial, report=None):
        ran.append(trial)
        if len(ran) == 1:
            (trial.work / "fit.npz").write_text("kept")
            raise KilledWorker
        return 0.5

    monkeypatch.setattr(trials, "run_trial", run)
    lines = []
    found = tune.tune(values, data, tmp_path / "x.toml", 3, lines.append, Options(parts=2, workers=1))
    assert found.endings == {"COMPLETE": 3, "PRUNED": 0, "FAIL": 1}
    assert len(ran) == 2
    assert ran[1].work.name == "trial-0-again"
    assert "trial 0: its worker died; it is begun again" in lines


def test_parts_are_of_whole_speakers_and_never_of_test_clips(data):
    recipe = recipe_of(tiny_values())
    clips = read_corpora(data, recipe.corpora, recipe.label_options).clips
    split = splits_of(recipe, clips)[0]
    parts = tune.parts_of(clips, split, recipe, 3)
    assert sorted(np.concatenate(parts)) == split.train.tolist()
    speakers = [{protocols.speaker_of(clips[k]) for k in part} for part in parts]
    assert all(not a & b for k, a in enumerate(speakers) for b in speakers[k + 1 :])
    assert not set.union(*speakers) & {protocols.speaker_of(clips[k]) for k in split.test}
    at_random = read_recipe("dual-lstm-mfcc20", [*TINY, "protocol=random"])
    split = splits_of(at_random, clips)[0]
    parts = tune.parts_of(clips, split, at_random, 4)
    assert sorted(np.concatenate(parts)) == split.train.tolist()
    with pytest.raises(ConfigError, match="clips cannot be dealt into 500 parts"):
        tune.parts_of(clips, split, at_random, 500)


def test_a_speaker_of_two_corpora_is_in_one_part():
    clips = [
        Clip(corpus, Path(f"{corpus}-{k}.wav"), str(k % 7), "angry", None)
        for corpus in ("RAVDESS", "RAVDESS-song")
        for k in range(28)
    ]
    recipe = read_recipe("dual-lstm-mfcc20", TINY)
    parts = tune.parts_of(clips, Split("0", np.arange(56), np.array([0, 30])), recipe, 3)
    speakers = [{protocols.speaker_of(clips[k]) for k in part} for part in parts]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 7
    assert sum(map(len, parts)) == 56


def test_a_bad_trial_is_ended_early_and_a_random_search_ends_none(tmp_path):
    """Six trials said 0.5 at every epoch; one that says 0.1 is pruned where that is asked for."""
    for method in METHODS:
        study = open_study(tmp_path / f"{method}.log", method, 12)
        for value in [0.5] * 6:
            trial = study.ask()
            for epoch in range(1, 12):
                trial.report(value, epoch)
            study.tell(trial, value)
        asked = study.ask()
        in_study = load_optuna().trial.Trial(open_study(tmp_path / f"{method}.log", method, 12), asked._trial_id)
        in_study.report(0.1, 4)
        assert in_study.should_prune() == (method == "pruned")


def test_trials_that_fail_one_after_another_end_the_study(data, tmp_path, monkeypatch):
    def broken(*arguments):
        raise ValueError("no such thing")

    monkeypatch.setattr(trials, "fit_or_take", broken)
    with pytest.raises(TuneError, match="3 trials failed one after another, the last with ValueError: no such thing"):
        tune.tune(tiny_values(), data, tmp_path / "x.toml", 5, print, Options(parts=2, workers=1))


@pytest.mark.parametrize("name", ["telephone-6", "dual-lstm-stack", "dual-lstm-mfcc20"])
def test_the_recipes_own_spaces_hold_the_recipe_as_it_stands(name):
    values = read_values(name)
    space = read_space(values)
    point = own_point(recipe_of(values), space)
    assert recipe_of(at_point(values, point)) == recipe_of(values)
    study = load_optuna().create_study(sampler=load_optuna().samplers.RandomSampler(seed=1))
    for _ in range(20):
        recipe_of(at_point(values, study.ask(space).params))  # raises where a point makes no recipe


@pytest.mark.parametrize(
    ("search", "sentences"),
    [
        ("[search]", ["it has no [search] to tune in"]),
        (
            '[search]\n"fit.pace" = [1]\n"gate_fit.epochs" = [1]\n"network.depth" = [1]\n'
            '"fit.epochs" = [5, 9]\n"fit.mixup" = 3\n"fit.batch_size" = [0]\n'
            '"features.steps" = { from = 20, to = 40 }\n"fit.patience" = { from = 5, to = 9 }\n'
            '"fit.time_mask" = { from = 0, to = 9, step = 0.5, log = true }\n"network.dense" = [1979-05-27]\n'
            '"fit.frequency_mask" = { from = 0, to = 9, step = 2 }\n"fit.clip_norm" = { from = 0, to = 9, steps = 2 }',
            [
                "search.fit.pace: the recipe does not have fit.pace: no such key",
                "search.gate_fit.epochs: expected a key of one of the tables features, windows",
                "search.network.depth: the recipe does not have network.depth: say it in the recipe's [network]",
                "search.fit.epochs: epochs cannot be searched",
                "search.fit.mixup: received 3, expected a list of choices or { from",
                "search.fit.batch_size: fit.batch_size: received 0, expected a whole number of 1 or more",
                "search.features.steps: received",
                "search.fit.patience: received 5 to 9, expected a range with the recipe's own 60 inside",
                "search.fit.time_mask: received",
                "search.network.dense: received",
                "search.fit.frequency_mask: received a step of 2, expected one that leads to 0 and to 9",
                "search.fit.clip_norm: received",
            ],
        ),
    ],
)  # fmt: skip
def test_faults_of_a_search_are_told_at_once(search, sentences):
    with pytest.raises(ConfigError) as raised:
        read_space(tiny_values(search))
    assert len(raised.value.faults) == len(sentences)
    for fault, sentence in zip(raised.value.faults, sentences, strict=True):
        assert sentence in fault


def test_ranges_and_choices_are_of_their_keys_kinds():
    space = read_space(
        tiny_values(
            '[search]\n"fit.weight_decay" = { from = 0, to = 1 }\n'
            '"fit.batch_size" = { from = 16, to = 64, step = 16 }\n'
            '"fit.clip_norm" = [0, 1]\n"fit.schedule" = ["cosine", "plateau"]'
        )
    )
    distributions = load_optuna().distributions
    assert isinstance(space["fit.weight_decay"], distributions.FloatDistribution)
    assert isinstance(space["fit.batch_size"], distributions.IntDistribution)
    assert space["fit.clip_norm"].choices == ("0.0", "1")
    values = tiny_values()
    point = {"fit.schedule": '"plateau"', "augment.codecs": '{"pcm16": 1.0}'}
    recipe = recipe_of(at_point(values | {"augment": {"codecs": {"mu-law": 1.0}}}, point))
    assert (recipe.fit.schedule, recipe.augment.codecs) == ("plateau", {"pcm16": 1.0})


def test_ends_of_a_space_that_no_network_takes_are_told_before_anything_starts(data, tmp_path):
    values = tiny_values('[search]\n"fit.frequency_mask" = { from = 0, to = 400 }\n"network.units" = [[4, 4, 4]]')
    with pytest.raises(ConfigError) as raised:
        tune.tune(values, data, tmp_path / "x.toml", 5, print, Options(parts=2, workers=1))
    assert [fault.split(": ")[0] for fault in raised.value.faults] == [
        "search.fit.frequency_mask = 400", "search.network.units = [4, 4, 4]",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_the_command_tells_what_is_wrong_and_what_was_found(data, tmp_path):
    def run(*arguments: str):
        return CliRunner().invoke(cli, ["tune", "--data", str(data), *arguments], catch_exceptions=True)

    recipe = tmp_path / "own.toml"
    recipe.write_text(tomli_w.dumps(tiny_values()))
    ran = run("--recipe", str(recipe), "--out", str(tmp_path / "out.json"))
    assert "expected a name that ends in .toml" in str(ran.exception)
    ran = run("--recipe", "telephone-8", "--out", str(tmp_path / "out.toml"))
    assert "it has no [search] to tune in" in str(ran.exception)
    ran = run("--recipe", str(recipe), "--set", "start_from=telephone-6", "--out", str(tmp_path / "out.toml"))
    assert "has heard what trials are validated on" in str(ran.exception)
    ran = run("--recipe", str(recipe), "--set", "protocol=random-leaky", "--out", str(tmp_path / "out.toml"))
    assert "which trains on what it tests" in str(ran.exception)
    ran = run(
        "--recipe", str(recipe), "--out", str(tmp_path / "out.toml"), "--trials", "1", "--parts", "2", "--workers", "1"
    )
    assert ran.exit_code == 0, ran.output
    assert "trials: 1 complete; UAR of the parts 0." in ran.output
    assert f"recipe   {tmp_path / 'out.toml'}" in ran.output
