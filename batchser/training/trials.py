"""Trials of a study: what one is, how a worker fits it, and where trials run: in this process or on Dask workers.

The study is Optuna's, kept as a journal on disk that the driver and all workers open.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from batchser.cluster import num_workers, open_cluster
from batchser.errors import BatchserError, ConfigError
from batchser.scoring import start_tensorflow
from batchser.training.fits import fit_or_take
from batchser.training.search import load_optuna
from batchser.training.workers import Report, Workers

#: ``pruned``: look where it went well (TPE), and end bad trials early; ``random``: neither.
METHODS: Final = ("pruned", "random")
_TELL_EVERY_S: Final = 60.0
#: Trials to be compared with before one is ended, in the study and at that step.
_LEAST_TRIALS: Final = (5, 3)


class TuneError(BatchserError):
    """The study broke off (exit code 3): what is done is kept, the same command goes on."""


def open_study(journal: Path, method: str, epochs: int) -> Any:
    """Open the study of a journal, in the driver or in a worker: both decide by the same trials.

    With ``pruned`` a trial is ended at a step where its best UAR so far is below the median of the others' at that
    step; not within the first sixth of a part's epochs.
    """
    optuna = load_optuna()
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    pruned = method == "pruned"
    in_all, at_step = _LEAST_TRIALS
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="tune",
        load_if_exists=True,
        direction="maximize",
        # Without a seed: Optuna's knows nothing of past trials, and a run that goes on would draw the same ones again.
        sampler=optuna.samplers.TPESampler() if pruned else optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.MedianPruner(in_all, max(1, epochs // 6), n_min_trials=at_step)
        if pruned
        else optuna.pruners.NopPruner(),
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """What a worker needs for one trial.

    ``fits`` has one a part: task, folder of windows, targets, draws, as ``fit_or_take`` takes them; ``work`` keeps
    them until the trial has ended.
    """

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

    Every epoch tells the study the mean UAR of the parts so far, and so does the end of a part, as its last epoch:
    trials whose fits were stopped early can be compared with those that went on. Runs in a worker.
    """
    say = report or _say_nothing
    start_tensorflow(1)
    epochs = trial.fits[0][0].settings.epochs
    study = open_study(trial.journal, trial.method, epochs)
    in_study = load_optuna().trial.Trial(study, trial.trial_id)
    done: list[float] = []

    def watch(epoch: int, uar: float) -> None:
        in_study.report(float(np.mean([*done, uar])), len(done) * epochs + epoch)
        if in_study.should_prune():
            raise _PrunedError

    try:
        for task, folder, targets, draws in trial.fits:
            fitted = fit_or_take(task, folder, targets, draws, None, None, trial.work, say, watch)
            if len(fitted.history["loss"]) < epochs:
                watch(epochs, fitted.valid_uar)
            done.append(fitted.valid_uar)
    except _PrunedError:
        return None
    return float(np.mean(done))


def _say_nothing(line: str) -> None:
    """A worker's trial tells its epochs to the study."""


#: How a trial ended: its UAR, None where it was pruned, or what went wrong.
Ending = float | Exception | None


class Executor(Protocol):
    """Where trials run."""

    pool: Workers

    @property
    def capacity(self) -> int:
        """How many trials run at once."""

    def submit(self, trial: Trial) -> None:
        """Begin a trial."""

    def next_ended(self, idle: Callable[[], None]) -> tuple[Trial, Ending]:
        """Wait for a trial to end, calling ``idle`` now and then."""


@contextmanager
def open_executor(scheduler: str | None, workers: int, folders: Sequence[Path], report: Report) -> Iterator[Executor]:
    """Open what trials run on: a cluster by its address, worker processes here, or with one worker this process.

    Raises
    ------
    ConfigError : no scheduler answers, or its workers do not see the folders
    """
    if scheduler is None and workers <= 1:
        start_tensorflow(1)
        yield _Here(Workers(report, None, None), report)
        return
    with open_cluster(scheduler, workers, report) as client:
        seen = client.run(_lost, [str(folder) for folder in folders])
        blind = [f"worker {worker} does not see {path}" for worker, lost in seen.items() for path in lost]
        if blind:
            raise ConfigError([f"--scheduler: {fault}; expected a folder that all machines share" for fault in blind])
        yield _OverDask(client, report)


def _lost(paths: Sequence[str]) -> list[str]:
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

    def next_ended(self, idle: Callable[[], None]) -> tuple[Trial, Ending]:
        trial = self.waiting.popleft()
        try:
            return trial, run_trial(trial, _now_and_then(f"trial {trial.number}", self.report))
        except Exception as error:
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

    def next_ended(self, idle: Callable[[], None]) -> tuple[Trial, Ending]:
        from distributed import wait

        while True:
            try:
                with _scheduler_gone():
                    waited = wait(list(self.running), timeout=_TELL_EVERY_S, return_when="FIRST_COMPLETED")
            except TimeoutError:
                idle()
                continue
            future = next(iter(waited.done))
            trial = self.running.pop(future)
            return trial, future.exception() if future.status != "finished" else future.result()


class _DaskWorkers(Workers):
    """The training module's jobs on the workers of a Dask cluster, before trials that wait."""

    def __init__(self, client: Any, report: Report) -> None:
        super().__init__(report, None, None)
        self._client = client

    def run(self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        from distributed import KilledWorker

        with _scheduler_gone():
            futures = [self._client.submit(_call, function, job, pure=False, priority=1, retries=1) for job in jobs]
            try:
                return list(self._client.gather(futures))
            except KilledWorker as error:
                raise TuneError(
                    f"a worker died while it composed windows ({error}); the same command goes on"
                ) from error


@contextmanager
def _scheduler_gone() -> Iterator[None]:
    try:
        yield
    except CancelledError as error:
        raise TuneError("the Dask scheduler is gone; the study is kept, the same command goes on") from error


def _call(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    start_tensorflow(1)
    return function(*job, _say_nothing)
