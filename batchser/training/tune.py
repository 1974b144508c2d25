"""The story of a study: trials, each the recipe at another point of its ``[search]``, and the recipe at the best one.

Only the training clips of the recipe's first split are looked at: they are dealt into parts of whole speakers (of clips
under the random protocol), and a trial is worth the mean UAR of one network a part, trained on the others. The split's
test clips stay unheard, so that what comes out can be measured on them.

The study is kept beside the recipe that comes out, in ``NAME.study/``; the same command goes on with what is there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from batchser.errors import ConfigError
from batchser.extras import load_extra
from batchser.locks import FolderLock
from batchser.records import IntArray
from batchser.scoring import start_tensorflow
from batchser.settings import fingerprint_of
from batchser.training import compose, protocols
from batchser.training.compose import ClipAudio
from batchser.training.corpora import Clip, CorpusRead, clips_key, read_corpora
from batchser.training.evaluate.pictures import tuning_picture
from batchser.training.fit import Task
from batchser.training.protocols import Split
from batchser.training.recipe import Recipe, recipe_of
from batchser.training.search import at_point, load_optuna, own_point, read_space, recipes_at_extremes, words
from batchser.training.store import Store
from batchser.training.train import check_clips, check_machine, compose_training_set, splits_of, tell_left_out
from batchser.training.trials import METHODS, Ending, Executor, Trial, TuneError, open_executor, open_study
from batchser.training.workers import Report, Workers

_MOST_FAILURES: Final = 3  # one after another
_LEAST_TO_WEIGH: Final = 8  # complete trials, before anything is said of what mattered


@dataclass(frozen=True, slots=True)
class Options:
    """How to look (trials.METHODS), in how many parts, and on what trials run."""

    method: str = "pruned"
    parts: int = 3
    workers: int = 2
    scheduler: str | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a study found: a recipe's file, its UAR, that of the recipe as it stood (None: no such trial is complete),
    and how many trials ended how.
    """

    path: Path
    uar: float
    uar_before: float | None
    endings: dict[str, int]
    picture: Path


def tune(
    values: Mapping[str, Any], data: Path, out: Path, num_trials: int, report: Report, options: Options | None = None
) -> Tuned:
    """Look for better values of a recipe, and write the recipe with the best to ``out``.

    Parameters
    ----------
    values : the recipe as its TOML has it, with a table ``search``
    data : the corpora's folder; on a cluster every worker must see it at the same path, and ``out``'s folder too
    out : the TOML file to write; the study is kept in the folder of that name that ends in ``.study``
    num_trials : trials of the whole study, those of earlier runs included
    report : takes lines of progress
    options : how, and on what

    Raises
    ------
    ConfigError : a space or recipe that cannot be tuned, a study of another one; nothing was started
    TuneError : trial after trial failed, or the cluster is gone
    """
    options = options or Options()
    data, out = data.absolute(), out.absolute()  # a worker has a folder of its own
    space, recipe = _checked(values, options)
    read = read_corpora(data, recipe.corpora, recipe.label_options)
    _check_points(values, recipe, read.clips, options)
    with _open_study(values, recipe, space, options, read, out) as study:
        left = num_trials - study.num_ended
        if left > 0:
            tell_left_out(read, [], report)
            with open_executor(options.scheduler, options.workers, [study.folder, data], report) as executor:
                store = Store(study.folder / "work", report)
                _run_trials(study, left, _Lessons(read, data, store, executor.pool, options.parts), executor, report)
        return _finish(study, out)


def _checked(values: Mapping[str, Any], options: Options) -> tuple[dict[str, Any], Recipe]:
    """Find what is wrong with the recipe before any clip is looked at."""
    start_tensorflow(1)  # before Keras is asked for networks: TensorFlow comes quietly this way
    load_optuna()
    load_extra("tomli_w", "train", "writing the recipe needs tomli-w")
    load_extra("matplotlib", "train", "pictures need matplotlib")
    space = read_space(values)
    recipe = _recipe(values)
    faults = []
    if recipe.start_from:
        faults.append(
            f"start_from: received {recipe.start_from!r}; that bundle has heard what trials are validated on. "
            'Tune without it: --set start_from=""'
        )
    if recipe.protocol == "random-leaky":
        faults.append("protocol: received 'random-leaky', which trains on what it tests; expected one that does not")
    if options.method not in METHODS:
        faults.append(f"method: received {options.method!r}, expected one of {', '.join(METHODS)}")
    if options.parts < 2:
        faults.append(f"parts: received {options.parts}, expected 2 or more: one of them validates")
    if faults:
        raise ConfigError([f"tune: {fault}" for fault in faults])
    return space, recipe


def _recipe(values: Mapping[str, Any]) -> Recipe:
    """A trial's recipe: one network, and no teachers."""
    return replace(recipe_of(dict(values)), teacher_networks=())


def _check_points(values: Mapping[str, Any], recipe: Recipe, clips: Sequence[Clip], options: Options) -> None:
    """Find what is wrong with the ends of the space, and with the parts, before anything starts."""
    parts_of(clips, splits_of(recipe, clips)[0], recipe, options.parts)
    faults = []
    for what, each in {"": recipe, **recipes_at_extremes(values)}.items():
        try:
            check_machine(each)
            check_clips(clips, replace(each, teacher_networks=()))
        except ConfigError as error:
            faults += [f"{what}: {fault}".removeprefix(": ") for fault in error.faults]
    if faults:
        raise ConfigError(faults)


@dataclass(slots=True)
class _Study:
    """A study on disk, with the recipe and the space that it is about; ``kept`` is Optuna's."""

    folder: Path
    values: Mapping[str, Any]
    recipe: Recipe
    space: dict[str, Any]
    options: Options
    kept: Any

    @property
    def journal(self) -> Path:
        return _journal(self.folder)

    def in_state(self, *states: str) -> list[Any]:
        """The trials that are COMPLETE, PRUNED, FAIL or RUNNING."""
        return [trial for trial in self.kept.get_trials(deepcopy=False) if trial.state.name in states]

    @property
    def num_ended(self) -> int:
        return len(self.in_state("COMPLETE", "PRUNED"))

    @property
    def best(self) -> Any:
        return max(self.in_state("COMPLETE"), key=lambda trial: trial.value, default=None)

    def of_point(self, point: Mapping[str, Any]) -> Any:
        """The complete trial of a point, or None."""
        return next((trial for trial in self.in_state("COMPLETE") if trial.params == point), None)

    def tell(self, number: int, ending: float | None) -> None:
        """Note how a trial ended: its UAR, or None where it was pruned."""
        state = load_optuna().trial.TrialState
        self.kept.tell(number, ending, state=state.PRUNED if ending is None else state.COMPLETE)

    def give_up(self, number: int) -> None:
        """Note that a trial came to nothing."""
        self.kept.tell(number, state=load_optuna().trial.TrialState.FAIL)

    def begin_again(self, trial: Any) -> None:
        """Queue a trial's point once more, to go on with the fits that it has kept.

        They are moved, so that a worker that still runs the old one, on a cluster that outlived its driver, finds
        nothing to write to.
        """
        old = self.work(trial)
        new = old.with_name(f"{old.name}-again")
        if old.is_dir():
            old.rename(new)
        self.kept.enqueue_trial(trial.system_attrs.get("fixed_params", trial.params), user_attrs={"work": new.name})
        self.give_up(trial.number)

    def work(self, trial: Any) -> Path:
        """Where a trial keeps its fits: one that was begun again goes on with those of the first."""
        return self.folder / "work" / trial.user_attrs.get("work", f"trial-{trial.number}")


def _journal(folder: Path) -> Path:
    return folder / "journal.log"


@contextmanager
def _open_study(
    values: Mapping[str, Any], recipe: Recipe, space: dict[str, Any], options: Options, read: CorpusRead, out: Path
) -> Iterator[_Study]:
    """Begin a study or take up the one that is there; nobody else may meanwhile.

    Raises
    ------
    ConfigError : it is of another recipe, space, method or of other clips; somebody else is at it; its folder cannot be
        made; ``out`` is no study's
    """
    folder = out.with_suffix(".study")
    if out.exists() and not _journal(folder).is_file():
        raise ConfigError(f"--out {out}: is there, and is no study's; choose another name, or remove it")
    with FolderLock(folder):
        kept = open_study(_journal(folder), options.method, recipe.fit.epochs)
        about = fingerprint_of([dict(values), options.method, options.parts, clips_key(read.clips)])
        if kept.user_attrs.get("about", about) != about:
            raise ConfigError(
                f"--out: {folder} holds a study of another recipe, search, method or of other clips; "
                "choose another name, or remove that folder"
            )
        kept.set_user_attr("about", about)
        yield _Study(folder, values, recipe, space, options, kept)


@dataclass(slots=True)
class _Lessons:
    """The fits of any recipe of the space; audio and windows are made once for all trials that need the same."""

    read: CorpusRead
    data: Path
    store: Store
    pool: Workers
    num_parts: int
    audio: dict[int, tuple[list[Clip], ClipAudio]] = field(default_factory=dict)

    def fits(self, recipe: Recipe) -> tuple[tuple[Any, ...], ...]:
        """Compose the windows of a recipe, and give its fits: one for each part that validates."""
        rate_hz = recipe.features.rate_hz
        if rate_hz not in self.audio:
            clips, audio, silent = compose.read_audio(self.read.clips, rate_hz, self.store, self.pool)
            tell_left_out(replace(self.read, faults=(), dropped={}), silent, self.store.report)
            self.audio[rate_hz] = clips, audio
        clips, audio = self.audio[rate_hz]
        split = splits_of(recipe, clips)[0]
        training = compose_training_set(recipe, clips, audio, split, self.data, self.store, self.pool)
        targets, draws = training.targets(), training.draws()
        return tuple(
            (
                Task(
                    f"part-{number}", np.setdiff1d(split.train, part), part, recipe.network, len(recipe.labels),
                    recipe.fit, recipe.seed + number, features=recipe.features,
                ),
                training.folder, targets, draws,
            )
            for number, part in enumerate(parts_of(clips, split, recipe, self.num_parts))
        )  # fmt: skip


def parts_of(clips: Sequence[Clip], split: Split, recipe: Recipe, count: int) -> list[IntArray]:
    """Deal a split's training clips into parts, each of which validates once; int (·,) each.

    Speakers stay whole, in whatever corpora they speak, and are dealt corpus by corpus; clips of corpora that the
    split does not test on are in no part, unless all are such. Under the random protocol clips are dealt one by one.

    Raises
    ------
    ConfigError : fewer speakers, or clips, than parts
    """
    rng = np.random.default_rng([recipe.seed, 6])
    by_clip = recipe.protocol.startswith("random")
    tested = {clips[k].corpus for k in split.test} & {clips[k].corpus for k in split.train}
    rows = [int(k) for k in split.train if not tested or clips[k].corpus in tested]
    units: dict[str, list[int]] = {}
    for k in rows:
        units.setdefault(str(k) if by_clip else protocols.speaker_of(clips[k]), []).append(k)
    if len(units) < count:
        what = "clips" if by_clip else "speakers"
        raise ConfigError(f"tune: {len(units)} {what} cannot be dealt into {count} parts; expected at least as many")
    by_corpus: dict[str, list[str]] = {}
    for name, own in units.items():
        by_corpus.setdefault(clips[own[0]].corpus, []).append(name)
    dealt = [own[k] for _, own in sorted(by_corpus.items()) for k in rng.permutation(len(own))]
    return [np.array(sorted(k for name in dealt[part::count] for k in units[name]), np.int32) for part in range(count)]


def _run_trials(study: _Study, left: int, lessons: _Lessons, executor: Executor, report: Report) -> None:
    """Keep a trial under way for each worker until so many more have ended."""
    running = study.in_state("RUNNING")
    for trial in running:
        study.begin_again(trial)
    if not study.kept.get_trials(deepcopy=False):
        study.kept.enqueue_trial(own_point(study.recipe, study.space))
    again = f"{len(running)} trials that were under way go on; " if running else ""
    report(f"{again}{left} of {study.num_ended + left} trials to do in {study.folder}")
    first, goal, failures, started = study.num_ended, study.num_ended + left, 0, time.monotonic()
    under_way: dict[int, Any] = {}

    def idle() -> None:
        for trial in study.in_state("RUNNING"):
            if trial.last_step is not None:
                uar = trial.intermediate_values[trial.last_step]
                report(f"trial {trial.number}: step {trial.last_step}, UAR {uar:.3f}")

    while study.num_ended < goal:
        while len(under_way) < min(executor.capacity, goal - study.num_ended):
            asked = study.kept.ask(study.space)
            known = study.of_point(asked.params)
            if known is not None:  # the same point and seed come to the same
                study.tell(asked.number, known.value)
                continue
            try:
                executor.submit(_trial(study, asked, lessons))
            except ConfigError as error:  # a combination that no network takes
                failures = _note_failure(study, asked.number, error, failures, report)
            else:
                under_way[asked.number] = asked
        if not under_way:
            continue
        done, ending = executor.next_ended(idle)
        asked = under_way.pop(done.number)
        if isinstance(ending, Exception):
            if _died(ending) and "work" not in asked.user_attrs:
                report(f"trial {done.number}: its worker died; it is begun again")
                study.begin_again(study.kept.get_trials(deepcopy=False)[done.number])
            else:
                failures = _note_failure(study, done.number, ending, failures, report)
            continue
        failures = 0
        study.tell(done.number, ending)
        shutil.rmtree(done.work, ignore_errors=True)
        minutes = (time.monotonic() - started) / 60 / (study.num_ended - first) * (goal - study.num_ended)
        report(f"{_told(study, done.number, ending)}; about {minutes:.0f} min left")


def _trial(study: _Study, asked: Any, lessons: _Lessons) -> Trial:
    """Make ready what a worker needs for a trial.

    Raises
    ------
    ConfigError : its values make no recipe, or no network
    """
    recipe = _recipe(at_point(study.values, asked.params))
    check_clips(lessons.read.clips, recipe)
    work = study.work(asked)
    work.mkdir(parents=True, exist_ok=True)
    return Trial(study.journal, study.options.method, asked.number, asked._trial_id, lessons.fits(recipe), work)


def _died(error: Exception) -> bool:
    """Whether a trial ended with its worker, not by itself."""
    return type(error).__name__ == "KilledWorker"


def _note_failure(study: _Study, number: int, error: Exception, failures: int, report: Report) -> int:
    """Note a trial that could not be run; how many in a row there are now.

    Raises
    ------
    TuneError : too many
    """
    study.give_up(number)
    said = f"{type(error).__name__}: {error}"
    report(f"trial {number} failed: {said}")
    if failures + 1 >= _MOST_FAILURES:
        raise TuneError(f"{_MOST_FAILURES} trials failed one after another, the last with {said}") from error
    return failures + 1


def _told(study: _Study, number: int, ending: Ending) -> str:
    """A line on a trial that has ended."""
    trial, best = study.kept.get_trials(deepcopy=False)[number], study.best
    ended = f"pruned at step {trial.last_step}" if ending is None else f"UAR {ending:.3f}"
    leader = f"best {best.value:.3f} (trial {best.number})" if best else "none complete yet"
    return f"trial {number}: {ended}, {leader}; {words(trial.params)}"


def _finish(study: _Study, out: Path) -> Tuned:
    """Write the recipe at the best point, and draw what mattered."""
    tomli_w = load_extra("tomli_w", "train", "writing the recipe needs tomli-w")
    best = study.best
    if best is None:
        raise TuneError(f"no trial of {study.folder} is complete; the same command with more --trials goes on")
    before = study.of_point(own_point(study.recipe, study.space))
    endings = {name: len(study.in_state(name)) for name in ("COMPLETE", "PRUNED", "FAIL")}
    values = at_point(study.values, best.params)
    values["name"] = out.stem
    stood = f"{before.value:.3f}" if before else "not known"
    head = "".join(
        f"# {line}\n"
        for line in (
            f"{study.recipe.name}, tuned by `batchser tune`, {study.options.method}: trial {best.number} of "
            f"{sum(endings.values())}, {endings['PRUNED']} of them pruned.",
            f"Mean UAR of {study.options.parts} parts of the first split's training clips: {best.value:.3f}; "
            f"as it stood: {stood}.",
            "The trial was chosen by it, so it flatters: measure the recipe on test clips with `batchser train`.",
        )
    )
    beside = out.with_suffix(".part")
    beside.write_text(head + tomli_w.dumps(values), encoding="utf-8")
    beside.replace(out)
    shown = [(t.number, float(t.value), t.state.name == "COMPLETE") for t in study.in_state("COMPLETE", "PRUNED")]
    picture = tuning_picture(shown, _importances(study), study.recipe.name, study.folder / "tuning.png")
    if not study.in_state("RUNNING"):
        shutil.rmtree(study.folder / "work", ignore_errors=True)
    return Tuned(out, best.value, before.value if before else None, endings, picture)


def _importances(study: _Study) -> dict[str, float]:
    """How much of the variance of UAR each key explains, by functional ANOVA (Hutter et al. 2014); few trials: none."""
    optuna = load_optuna()
    if len(study.in_state("COMPLETE")) < _LEAST_TO_WEIGH:
        return {}
    try:
        weigh = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study.kept, evaluator=weigh))
    except (RuntimeError, ValueError):
        return {}  # all trials of one value
