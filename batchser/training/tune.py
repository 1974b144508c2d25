"""Tuning: a study of trials, each the recipe at another point of its ``[search]``, over Dask workers as scoring is.

Only the training clips of the recipe's first split are looked at: they are dealt into parts of whole speakers (of clips
under the random protocols), and a trial is worth the mean UAR of one network a part, trained on the others. The split's
test clips stay unheard, so that what comes out can be measured on them.

The study is Optuna's journal beside the recipe that comes out, ``NAME.study/journal.log``. Workers report every epoch
to it and end a trial that does worse than most did by then. The same command goes on with what is there.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from batchser.cluster import num_workers, open_cluster
from batchser.errors import BatchserError, ConfigError
from batchser.extras import load_extra
from batchser.records import IntArray
from batchser.scoring import start_tensorflow
from batchser.settings import fingerprint_of
from batchser.training import compose, protocols
from batchser.training.compose import ClipAudio, SoundFiles, Store
from batchser.training.corpora import Clip, CorpusRead, clips_key, read_corpora
from batchser.training.emotion_lesson import TrainingSet
from batchser.training.evaluate.pictures import tuning_picture
from batchser.training.fit import Task
from batchser.training.fits import fit_or_take
from batchser.training.protocols import Split
from batchser.training.recipe import Recipe, recipe_of
from batchser.training.search import at_point, load_optuna, own_point, read_space, words
from batchser.training.train import check_clips, check_machine
from batchser.training.workers import Report, Workers

METHODS: Final = ("pruned", "random")
_TELL_EVERY_S: Final = 60.0
_MOST_FAILURES: Final = 3  # one after another


class TuneError(BatchserError):
    """The study broke off (exit code 3): what is done is kept, the same command goes on."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a study found: a recipe's file, its UAR and that of the recipe as it stood, trials by how they ended."""

    path: Path
    best: float
    own: float | None
    trials: dict[str, int]
    picture: Path


@dataclass(frozen=True, slots=True)
class Options:
    """How to look: ``pruned`` (TPE, and bad trials are ended early) or ``random``; in so many parts; on what."""

    method: str = "pruned"
    parts: int = 3
    workers: int = 2
    scheduler: str | None = None


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
    ConfigError : a space or recipe that cannot be tuned, or a study of another one; nothing was started
    TuneError : trial after trial failed
    """
    options = options or Options()
    space, recipe = _checked(values, options)
    read = read_corpora(data, recipe.corpora, recipe.label_options)
    check_clips(read.clips, recipe)
    study = _Study.open(values, recipe, space, options, read, out.with_suffix(".study"))
    if left := num_trials - study.num_finished:
        with _executor(options, study.folder, data, report) as executor:
            lessons = _Lessons(read, data, Store(study.folder / "work", report), executor.pool, options.parts)
            _run_trials(study, max(0, left), lessons, executor, report)
    return _finish(study, out)


def _checked(values: Mapping[str, Any], options: Options) -> tuple[dict[str, Any], Recipe]:
    """Find what is wrong with the recipe before anything starts."""
    start_tensorflow(1)  # before Keras is asked for networks: TensorFlow comes quietly this way
    load_optuna()
    load_extra("tomli_w", "train", "writing the recipe needs tomli-w")
    load_extra("matplotlib", "train", "pictures need matplotlib")
    space = read_space(values)
    recipe = replace(recipe_of(dict(values)), teachers=0)  # a trial is one network, not two
    check_machine(recipe)
    faults = []
    if recipe.start_from:
        faults.append(
            f"start_from: received {recipe.start_from!r}; that bundle has heard what trials are validated on. "
            'Tune without it: --set start_from=""'
        )
    if options.method not in METHODS:
        faults.append(f"method: received {options.method!r}, expected one of {', '.join(METHODS)}")
    if options.parts < 2:
        faults.append(f"parts: received {options.parts}, expected 2 or more: one of them validates")
    if faults:
        raise ConfigError([f"tune: {fault}" for fault in faults])
    return space, recipe


@dataclass(slots=True)
class _Study:
    """Optuna's study on disk, with the recipe and the space that it is about."""

    folder: Path
    values: Mapping[str, Any]
    recipe: Recipe
    space: dict[str, Any]
    options: Options
    optuna: Any
    own: Any = None

    @classmethod
    def open(
        cls, values: Mapping[str, Any], recipe: Recipe, space: dict[str, Any], options: Options, read: CorpusRead,
        folder: Path,
    ) -> _Study:  # fmt: skip
        """Begin a study or take up the one that is there.

        Raises
        ------
        ConfigError : it is of another recipe, space, method or of other clips, or its folder cannot be made
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out: {folder} cannot be made ({error.strerror})") from error
        study = cls(folder, values, recipe, space, options, load_optuna())
        opened = study.own = open_study(study.journal, options.method, recipe.fit.epochs)
        about = fingerprint_of([dict(values), options.method, options.parts, clips_key(read.clips)])
        if opened.user_attrs.setdefault("about", about) != about:
            raise ConfigError(
                f"--out: {folder} holds a study of another recipe, search, method or of other clips; "
                "choose another name, or remove that folder"
            )
        opened.set_user_attr("about", about)
        return study

    @property
    def journal(self) -> Path:
        return self.folder / "journal.log"

    def in_state(self, *states: str) -> list[Any]:
        """The trials that ended so, or ``RUNNING`` ones."""
        return [trial for trial in self.own.get_trials(deepcopy=False) if trial.state.name in states]

    @property
    def num_finished(self) -> int:
        return len(self.in_state("COMPLETE", "PRUNED"))

    def take_up(self) -> int:
        """Queue again what was under way when an earlier run ended, and on a new study the recipe as it stands."""
        running = self.in_state("RUNNING")
        for trial in running:
            self.own.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
            self.own.enqueue_trial(trial.params)
        if not self.own.get_trials(deepcopy=False):
            self.own.enqueue_trial(own_point(self.recipe, self.space))
        return len(running)


def open_study(journal: Path, method: str, epochs: int) -> Any:
    """Open the study of a journal, in the driver or in a worker: both decide by the same trials."""
    optuna = load_optuna()
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    pruned = method == "pruned"
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="tune",
        load_if_exists=True,
        direction="maximize",
        # Without a seed: Optuna's knows nothing of past trials, and a run that goes on would draw the same ones again.
        sampler=optuna.samplers.TPESampler() if pruned else optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, epochs // 6))
        if pruned
        else optuna.pruners.NopPruner(),
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """What a worker needs for one trial: where it reports to, and one fit a part, arguments of ``fit_or_take``."""

    journal: Path
    method: str
    number: int
    trial_id: int
    fits: tuple[tuple[Any, ...], ...]
    work: Path


class _PrunedError(Exception):
    """A trial does worse than most did."""


def run_trial(trial: Trial, report: Report | None = None) -> float | None:
    """Fit the networks of a trial one after another: their mean UAR, or None where it was ended early.

    Every epoch tells the study the mean UAR of the parts so far. Runs in a worker.
    """
    say = report or _say_nothing
    start_tensorflow(1)
    epochs = trial.fits[0][0].settings.epochs
    study = open_study(trial.journal, trial.method, epochs)
    told = load_optuna().trial.Trial(study, trial.trial_id)
    done: list[float] = []

    def watch(epoch: int, uar: float) -> None:
        told.report(float(np.mean([*done, uar])), len(done) * epochs + epoch)
        if told.should_prune():
            raise _PrunedError

    try:
        for task, folder, targets, groups in trial.fits:
            fitted = fit_or_take(task, folder, targets, groups, None, None, trial.work, say, watch)
            done.append(fitted.valid_uar)
    except _PrunedError:
        return None
    return float(np.mean(done))


def _say_nothing(line: str) -> None:
    """A trial tells its epochs to the study."""


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
            self.audio[rate_hz] = compose.read_audio(self.read.clips, rate_hz, self.store, self.pool)[:2]
        clips, audio = self.audio[rate_hz]
        split = first_split(recipe, clips)
        sounds = SoundFiles(self.data / "noise", self.data / "music", self.data / "rir")
        apart = frozenset(split.test.tolist()) if recipe.protocol == "random" else frozenset()
        folder = compose.compose_emotions(recipe, clips, audio, sounds, apart, self.store, self.pool)
        training = TrainingSet(recipe, tuple(clips), folder)
        targets, groups = training.targets(), training.groups()
        return tuple(
            (
                Task(
                    f"part-{number}", np.setdiff1d(split.train, part), part, recipe.network, len(recipe.labels),
                    recipe.fit, recipe.seed + number, remove_mean=not recipe.features.centred,
                ),
                folder, targets, groups,
            )
            for number, part in enumerate(parts_of(clips, split, recipe, self.num_parts))
        )  # fmt: skip


def first_split(recipe: Recipe, clips: Sequence[Clip]) -> Split:
    """The split whose training clips are tuned on."""
    return protocols.splits(
        clips, recipe.protocol, folds=recipe.folds, test_corpora=recipe.test_corpora, seed=recipe.seed,
        test_share=recipe.test_share,
    )[0]  # fmt: skip


def parts_of(clips: Sequence[Clip], split: Split, recipe: Recipe, count: int) -> list[IntArray]:
    """Deal a split's training clips into parts, each of which validates once; int (·,) each.

    Speakers stay whole and are dealt corpus by corpus; clips that no split tests on are in no part. Under the random
    protocols clips are dealt one by one, as where a corpus has fewer speakers than there are parts.

    Raises
    ------
    ConfigError : fewer clips than parts
    """
    rng = np.random.default_rng([recipe.seed, 6])
    tested = {clips[k].corpus for k in split.test}
    parts: list[list[int]] = [[] for _ in range(count)]
    for corpus in sorted(tested if recipe.protocol == "speaker-folds" else {clip.corpus for clip in clips}):
        rows = [int(k) for k in split.train if clips[k].corpus == corpus]
        speakers = sorted({protocols.speaker_of(clips[k]) for k in rows})
        by_clip = recipe.protocol.startswith("random") or len(speakers) < count
        units = [[k] for k in rows] if by_clip else [
            [k for k in rows if protocols.speaker_of(clips[k]) == speaker] for speaker in speakers
        ]  # fmt: skip
        for place, k in enumerate(rng.permutation(len(units))):
            parts[place % count] += units[k]
    if not all(parts):
        raise ConfigError(f"tune: {sum(map(len, parts))} clips cannot be dealt into {count} parts; expected more clips")
    return [np.array(sorted(part), np.int32) for part in parts]


class _Executor(Protocol):
    """Where trials are run."""

    pool: Workers

    @property
    def capacity(self) -> int:
        """How many trials run at once."""

    def submit(self, trial: Trial) -> None:
        """Begin a trial."""

    def next_done(self, idle: Callable[[], None]) -> tuple[Trial, float | Exception | None]:
        """Wait for a trial to end, calling ``idle`` now and then: its UAR, None where it was pruned, or its error."""


@contextmanager
def _executor(options: Options, folder: Path, data: Path, report: Report) -> Iterator[_Executor]:
    """Open what trials run on: this process, worker processes here, or a cluster.

    Raises
    ------
    ConfigError : no scheduler answers, or its workers do not see the folders
    """
    if options.scheduler is None and options.workers <= 1:
        start_tensorflow(1)
        yield _Here(Workers(report, None, None), report)
        return
    with open_cluster(options.scheduler, options.workers, report) as client:
        seen = client.run(_sees, [str(folder), str(data)])
        blind = [f"worker {worker} does not see {path}" for worker, lost in seen.items() for path in lost]
        if blind:
            raise ConfigError([f"--scheduler: {fault}; expected a folder that all machines share" for fault in blind])
        yield _OverDask(client, report)


def _sees(paths: Sequence[str]) -> list[str]:
    """Which of some folders this machine does not have."""
    return [path for path in paths if not Path(path).is_dir()]


@dataclass(slots=True)
class _Here:
    """Trials in this process, one after another."""

    pool: Workers
    report: Report
    waiting: deque[Trial] = field(default_factory=deque)

    @property
    def capacity(self) -> int:
        return 1

    def submit(self, trial: Trial) -> None:
        self.waiting.append(trial)

    def next_done(self, idle: Callable[[], None]) -> tuple[Trial, float | Exception | None]:
        trial = self.waiting.popleft()
        try:
            return trial, run_trial(trial, _now_and_then(f"trial {trial.number}", self.report))
        except (ConfigError, ValueError, ArithmeticError) as error:
            return trial, error


def _now_and_then(what: str, report: Report) -> Report:
    """Pass on a line a minute."""
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_EVERY_S:
            last = time.monotonic()
            report(f"{what}, {line}")

    return say


class _OverDask:
    """Trials on the workers of a Dask cluster, one each."""

    def __init__(self, client: Any, report: Report) -> None:
        self.client, self.running = client, dict[Any, Trial]()
        self.pool: Workers = _DaskWorkers(client, report)

    @property
    def capacity(self) -> int:
        return max(1, num_workers(self.client))

    def submit(self, trial: Trial) -> None:
        self.running[self.client.submit(run_trial, trial, pure=False, retries=0)] = trial

    def next_done(self, idle: Callable[[], None]) -> tuple[Trial, float | Exception | None]:
        from distributed import wait

        while True:
            try:
                done = next(iter(wait(list(self.running), timeout=_TELL_EVERY_S, return_when="FIRST_COMPLETED").done))
            except TimeoutError:
                idle()
                continue
            trial = self.running.pop(done)
            if self.client.status != "running" or done.status == "cancelled":
                raise TuneError("the Dask scheduler is gone; the study is kept, the same command goes on")
            return trial, done.exception() if done.status != "finished" else done.result()


class _DaskWorkers(Workers):
    """The training module's jobs on the workers of a Dask cluster."""

    def __init__(self, client: Any, report: Report) -> None:
        super().__init__(report, None, None)
        self._client = client

    def run(self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        futures = [self._client.submit(_call, function, job, pure=False, priority=1) for job in jobs]
        return list(self._client.gather(futures))


def _call(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    start_tensorflow(1)
    return function(*job, _say_nothing)


def _run_trials(study: _Study, left: int, lessons: _Lessons, executor: _Executor, report: Report) -> None:
    """Keep a trial under way for each worker until so many more have ended."""
    again = study.take_up()
    told = f"{again} trials that were under way are begun again; " if again else ""
    report(f"{told}{left} of {study.num_finished + left} trials to do in {study.folder}")
    goal, under_way, failures, started = study.num_finished + left, 0, 0, time.monotonic()
    first = study.num_finished

    def idle() -> None:
        for trial in study.in_state("RUNNING"):
            if trial.last_step is not None:
                uar = trial.intermediate_values[trial.last_step]
                report(f"trial {trial.number}: step {trial.last_step}, UAR {uar:.3f}")

    while study.num_finished < goal:
        while under_way < min(executor.capacity, goal - study.num_finished):
            asked = study.own.ask(study.space)
            try:
                trial = _trial(study, asked, lessons)
            except ConfigError as error:
                failures = _fail(study, asked.number, error, failures, report)
                continue
            executor.submit(trial)
            under_way += 1
        trial, value = executor.next_done(idle)
        under_way -= 1
        if isinstance(value, Exception):
            failures = _fail(study, trial.number, value, failures, report)
            continue
        failures = 0
        if value is None:
            study.own.tell(trial.number, state=study.optuna.trial.TrialState.PRUNED)
        else:
            study.own.tell(trial.number, value)
        shutil.rmtree(trial.work, ignore_errors=True)
        minutes = (time.monotonic() - started) / 60 / (study.num_finished - first) * (goal - study.num_finished)
        report(f"{_told(study, trial.number)}; about {minutes:.0f} min left")


def _trial(study: _Study, asked: Any, lessons: _Lessons) -> Trial:
    """Make ready what a worker needs for a trial."""
    recipe = replace(recipe_of(at_point(study.values, asked.params)), teachers=0)
    work = study.folder / "work" / f"trial-{fingerprint_of(asked.params)[:16]}"  # found again after a kill
    work.mkdir(parents=True, exist_ok=True)
    return Trial(study.journal, study.options.method, asked.number, asked._trial_id, lessons.fits(recipe), work)


def _fail(study: _Study, number: int, error: Exception, failures: int, report: Report) -> int:
    """Note a trial that could not be run.

    Raises
    ------
    TuneError : it is one of several in a row
    """
    study.own.tell(number, state=study.optuna.trial.TrialState.FAIL)
    report(f"trial {number} failed: {error}")
    if failures + 1 >= _MOST_FAILURES:
        raise TuneError(f"{_MOST_FAILURES} trials failed one after another, the last with: {error}") from error
    return failures + 1


def _told(study: _Study, number: int) -> str:
    """A line on a trial that has ended."""
    trial = study.own.get_trials(deepcopy=False)[number]
    complete = study.in_state("COMPLETE")
    best = max(complete, key=lambda each: each.value) if complete else None
    ended = f"UAR {trial.value:.3f}" if trial.state.name == "COMPLETE" else f"pruned at step {trial.last_step}"
    leader = f"best {best.value:.3f} (trial {best.number})" if best else "none complete yet"
    return f"trial {number}: {ended}, {leader}; {words(trial.params)}"


def _finish(study: _Study, out: Path) -> Tuned:
    """Write the recipe at the best point, and draw what mattered."""
    tomli_w = load_extra("tomli_w", "train", "writing the recipe needs tomli-w")
    complete = study.in_state("COMPLETE")
    if not complete:
        raise TuneError(f"no trial of {study.folder} is complete; the same command with more --trials goes on")
    best = max(complete, key=lambda trial: trial.value)
    own = next((trial for trial in complete if trial.params == own_point(study.recipe, study.space)), None)
    counts = {name: len(study.in_state(name)) for name in ("COMPLETE", "PRUNED", "FAIL")}
    values = at_point(study.values, best.params)
    values["name"] = out.stem
    start = f"{own.value:.3f} as it stood" if own else "pruned as it stood"
    head = (
        f"# {study.recipe.name}, tuned by `batchser tune`: trial {best.number} of {sum(counts.values())} "
        f"({counts['PRUNED']} pruned), {study.options.method}.\n# Mean UAR of {study.options.parts} parts of the first "
        f"split's training clips: {best.value:.3f} ({start}).\n# Trials were chosen by it, so it flatters: measure the "
        "recipe on test clips with `batchser train`.\n"
    )
    beside = out.with_suffix(".part")
    beside.write_text(head + tomli_w.dumps(values), encoding="utf-8")
    beside.replace(out)
    picture = tuning_picture(_trials_told(study), _importances(study), study.recipe.name, study.folder / "tuning.png")
    shutil.rmtree(study.folder / "work", ignore_errors=True)
    return Tuned(out, best.value, own.value if own else None, counts, picture)


def _trials_told(study: _Study) -> list[tuple[int, float, bool]]:
    """Number, UAR and whether it was complete, of every trial that came to say something."""
    return [
        (trial.number, float(trial.value), trial.state.name == "COMPLETE")
        for trial in study.in_state("COMPLETE", "PRUNED")
        if trial.value is not None
    ]


def _importances(study: _Study) -> dict[str, float]:
    """How much each key mattered, by functional ANOVA; empty where there is too little to tell."""
    if len(study.in_state("COMPLETE")) < 4:  # a forest of trees needs some points
        return {}
    try:
        return dict(study.optuna.importance.get_param_importances(study.own))
    except (RuntimeError, ValueError):
        return {}  # all trials of one value
