"""`batchser tune` on a tiny corpus: it goes on after a kill, is over Dask as in one process, and hears no test clip."""

from __future__ import annotations

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
from batchser.training import protocols, tune
from batchser.training.corpora import read_corpora
from batchser.training.recipe import read_recipe, read_values, recipe_of
from batchser.training.search import at_point, load_optuna, own_point, read_space
from batchser.training.tune import Options, TuneError

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


def test_a_study_writes_a_recipe_that_trains_and_goes_on_where_it_was(data, tmp_path):
    values, lines = tiny_values(), []
    out = tmp_path / "better.toml"
    found = tune.tune(values, data, out, 3, lines.append, Options(parts=2, workers=1))
    assert sum(found.trials.values()) == 3
    assert found.trials["FAIL"] == 0
    assert found.own is not None
    assert found.best >= found.own
    assert "trial 0: UAR" in "\n".join(lines)
    assert found.picture.read_bytes().startswith(b"\x89PNG")

    recipe = read_recipe(str(out))
    assert (recipe.name, recipe.folds, recipe.corpora) == ("better", (1,), ("CREMA-D",))
    assert out.read_text().startswith("# dual-lstm-mfcc20, tuned by `batchser tune`: trial ")
    assert set(recipe.search) == set(values["search"])
    assert sorted(path.name for path in out.with_suffix(".study").iterdir()) == ["journal.log", "tuning.png"]

    lines.clear()
    more = tune.tune(values, data, out, 4, lines.append, Options(parts=2, workers=1))
    assert sum(more.trials.values()) == 4
    assert sum("UAR" in line or "pruned" in line for line in lines) == 1
    lines.clear()
    assert tune.tune(values, data, out, 4, lines.append, Options(parts=2, workers=1)) == more
    assert not lines

    changed = at_point(values, {"fit.epochs": 4})
    with pytest.raises(ConfigError, match="holds a study of another recipe"):
        tune.tune(changed, data, out, 5, lines.append, Options(parts=2, workers=1))


def test_a_killed_study_begins_its_running_trial_again_at_its_last_epoch(data, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    fit, epochs = tune.fit_or_take, []

    def killed(*arguments):
        def watch(epoch: int, uar: float) -> None:
            arguments[-1](epoch, uar)
            epochs.append(epoch)  # after the state of that epoch is on disk
            if epochs == [1, 2, 3, 1, 2]:  # in the middle of the second part
                raise Killed

        return fit(*arguments[:-1], watch)

    monkeypatch.setattr(tune, "fit_or_take", killed)
    options, out = Options(parts=2, workers=1), tmp_path / "better.toml"
    with pytest.raises(Killed):
        tune.tune(tiny_values(), data, out, 1, print, options)
    assert not out.exists()
    monkeypatch.undo()
    lines = []
    found = tune.tune(tiny_values(), data, out, 1, lines.append, options)
    assert "1 trials that were under way are begun again; 1 of 1 trials to do" in lines[0]
    undisturbed = tune.tune(tiny_values(), data, tmp_path / "other.toml", 1, print, options)
    assert found.best == pytest.approx(undisturbed.best)
    assert found.own == undisturbed.own  # trial 0 is the recipe as it stands, and so is what was begun again
    assert found.trials == {"COMPLETE": 1, "PRUNED": 0, "FAIL": 1}


def test_trials_over_dask_are_those_of_one_process(data, tmp_path):
    here = tune.tune(tiny_values(), data, tmp_path / "here.toml", 1, print, Options(parts=2, workers=1))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        options = Options(parts=2, scheduler=client.scheduler.address)
        there = tune.tune(tiny_values(), data, tmp_path / "there.toml", 3, print, options)
    assert there.own == pytest.approx(here.own, abs=0.05)  # TensorFlow's threads are other ones in this process
    assert sum(there.trials.values()) == 3
    assert there.trials["FAIL"] == 0


def test_parts_are_of_whole_speakers_and_never_of_test_clips(data):
    recipe = recipe_of(tiny_values())
    clips = read_corpora(data, recipe.corpora, recipe.label_options).clips
    split = tune.first_split(recipe, clips)
    parts = tune.parts_of(clips, split, recipe, 3)
    assert sorted(np.concatenate(parts)) == split.train.tolist()
    speakers = [{protocols.speaker_of(clips[k]) for k in part} for part in parts]
    assert all(not a & b for k, a in enumerate(speakers) for b in speakers[k + 1 :])
    assert not set.union(*speakers) & {protocols.speaker_of(clips[k]) for k in split.test}
    at_random = read_recipe("dual-lstm-mfcc20", [*TINY, "protocol=random"])
    split = tune.first_split(at_random, clips)
    parts = tune.parts_of(clips, split, at_random, 4)
    assert sorted(np.concatenate(parts)) == split.train.tolist()
    with pytest.raises(ConfigError, match="cannot be dealt into 500 parts"):
        tune.parts_of(clips, split, at_random, 500)


def test_a_bad_trial_is_ended_early_and_a_random_search_ends_none(tmp_path):
    """Six trials said 0.5 at every epoch; one that says 0.1 is pruned where that is asked for."""
    for method in tune.METHODS:
        study = tune.open_study(tmp_path / f"{method}.log", method, 12)
        for value in [0.5] * 6:
            trial = study.ask()
            for epoch in range(1, 12):
                trial.report(value, epoch)
            study.tell(trial, value)
        asked = study.ask()
        told = load_optuna().trial.Trial(tune.open_study(tmp_path / f"{method}.log", method, 12), asked._trial_id)
        told.report(0.1, 4)
        assert told.should_prune() == (method == "pruned")


def test_trials_that_fail_one_after_another_end_the_study(data, tmp_path, monkeypatch):
    def broken(*arguments):
        raise ValueError("no such thing")

    monkeypatch.setattr(tune, "fit_or_take", broken)
    with pytest.raises(TuneError, match="3 trials failed one after another, the last with: no such thing"):
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
            '"fit.epochs" = { from = 5, to = 9 }\n"fit.mixup" = 3\n"fit.batch_size" = [0]\n'
            '"features.rate_hz" = { from = 8000, to = 16000, steps = 2 }',
            [
                "search.fit.pace: the recipe does not have fit.pace: no such key",
                "search.gate_fit.epochs: expected a key of one of the tables features, windows",
                "search.network.depth: the recipe does not have network.depth: say it in the recipe's [network]",
                "search.fit.epochs: received 5 to 9, expected a range with the recipe's own 3 inside",
                "search.fit.mixup: received 3, expected a list of choices or { from",
                "search.fit.batch_size: fit.batch_size: received 0, expected a whole number of 1 or more",
                "search.features.rate_hz: received",
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
    ran = run(
        "--recipe", str(recipe), "--out", str(tmp_path / "out.toml"), "--trials", "1", "--parts", "2", "--workers", "1"
    )
    assert ran.exit_code == 0, ran.output
    assert "trials: 1 complete; UAR of the parts 0." in ran.output
    assert f"recipe   {tmp_path / 'out.toml'}" in ran.output
