"""Shards → Dask workers: few under way at once, however many there are, and no innocent carries the blame for a death.

A worker's process may die of a recording (its decoder crashes, memory runs out) or be ended as its time ran out. Its
shard is then halved until the culprit is alone; that one runs once more with nothing beside it, and if its process ends
again, its row says ``crashed``. Shards that come back wait a little longer each time, so that a machine in trouble is
not set on again at once.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from batchser import processes, summary
from batchser.cluster import num_workers
from batchser.errors import BatchserError, ConfigError
from batchser.pipeline import BatchSizes, StageClock, score_recordings
from batchser.records import Outcome, Recording
from batchser.scoring import Model, load_model
from batchser.settings import RunSettings
from batchser.sink import PartSink, SinkError

_LOG = logging.getLogger(__name__)
_WARM_UP_TRIES: Final = 3
_IN_FLIGHT_PER_WORKER: Final = 2
_LOOK_S: Final = 5.0  # how often the driver looks up while no shard ends
_NO_WORKER_S: Final = 600.0  # so long it waits for a cluster without workers
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0


class RunError(BatchserError):
    """The run itself broke off (exit code 3): what is done is kept, the same command resumes."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs besides the recordings: small, pickled, the same for all shards."""

    model_folder: Path
    model_sha256: str
    settings: RunSettings
    sizes: BatchSizes
    parts: PartSink
    num_threads: int
    engine: str


# ------------------------------------------------------------------------------------------------- in the worker


def score_shard(
    task: Task, recordings: Sequence[Recording], limits_s: Sequence[float] | None = None
) -> Mapping[str, float]:
    """Score some recordings and leave them as one part; the model is loaded once a process.

    ``limits_s`` are the seconds that each recording may take; past them this process ends. None: there is no limit.
    Returns the seconds that each stage took.

    Raises
    ------
    SinkError : the part cannot be written
    """
    clock = StageClock()
    with processes.ONE_AT_A_TIME:
        model = _model_of(task)
        timed = recordings if limits_s is None else _timed(recordings, limits_s)
        try:
            outcomes = list(score_recordings(timed, model, task.settings, task.sizes, clock))
            with clock.at("tables"):
                task.parts.write(outcomes)
        finally:
            processes.clear_alarm()
    return clock.seconds


def _timed(recordings: Sequence[Recording], limits_s: Sequence[float]) -> Iterator[Recording]:
    """Hand out recordings, each with its alarm; the last one's is for what is left to be done with all of them, too."""
    for recording, limit_s in zip(recordings, limits_s, strict=True):
        processes.set_alarm(limit_s)
        yield recording
    processes.set_alarm(max(limits_s, default=1.0))


def warm_up(task: Task) -> None:
    """Load the model, and nothing else."""
    _model_of(task)


def _model_of(task: Task) -> Model:
    """The task's model; its process loads it once."""
    return load_model(task.model_folder, task.model_sha256, task.num_threads, task.engine)


# ------------------------------------------------------------------------------------------------- in the driver


class Dispatcher:
    """Sends shards to a cluster's workers until every recording is done.

    Parameters
    ----------
    client : of the cluster (cluster.open_cluster)
    task : what its workers need
    limits_s : recording.index → seconds that a worker may take for it
    done : told of the recordings of each finished shard, and of the seconds that each stage took
    """

    def __init__(
        self,
        client: Any,
        task: Task,
        limits_s: Mapping[int, float],
        done: Callable[[Sequence[Recording], Mapping[str, float]], None],
    ) -> None:
        self._client = client
        self._task = task
        self._limits_s = limits_s
        self._done = done
        self._deaths_in_a_row = 0

    def run(self, shards: Sequence[Sequence[Recording]]) -> None:
        """Score all shards.

        Raises
        ------
        RunError : the scheduler is gone, or workers cannot work
        SinkError : a part cannot be written
        """
        waiting = deque(shards)
        suspects: deque[Recording] = deque()
        while waiting or suspects:
            if waiting:
                for shard in self._failed(waiting):
                    if len(shard) == 1:
                        suspects.append(shard[0])
                    else:
                        half = len(shard) // 2
                        waiting += [shard[:half], shard[half:]]
            else:
                self._try_alone(suspects.popleft())

    def _failed(self, waiting: deque[Sequence[Recording]]) -> Iterator[Sequence[Recording]]:
        """Run all waiting shards; give back those whose process died, so that the caller may put them in halves."""
        running: dict[Any, Sequence[Recording]] = {}
        while waiting or running:
            while waiting and len(running) < _IN_FLIGHT_PER_WORKER * max(1, self._num_workers()):
                shard = waiting.popleft()
                limits_s = [self._limits_s[recording.index] for recording in shard]
                running[self._submit(score_shard, self._task, shard, limits_s)] = shard
            for future in self._ended(list(running)):
                shard = running.pop(future)
                if self._has_died(future):
                    _LOG.warning("a worker ended in the middle of %d recordings", len(shard))
                    yield shard
                    self._pause()
                else:
                    self._deaths_in_a_row = 0
                    self._done(shard, _result_of(future))

    def _try_alone(self, suspect: Recording) -> None:
        """Score a recording whose process died once more, with nothing beside it; if it dies again that is its row."""
        self._check_workers()
        started = time.monotonic()
        if list(self._failed(deque([[suspect]]))):
            limit_s = self._limits_s[suspect.index]
            self._quarantine(suspect, limit_s if time.monotonic() - started >= limit_s else None)
            self._done([suspect], {})

    def _quarantine(self, recording: Recording, limit_s: float | None) -> None:
        """Leave the row of a recording that ended its process twice, the second time with nothing beside it."""
        _LOG.error("%s: ended its process; its row has status 'crashed'", recording.call_id)
        happened = "died" if limit_s is None else f"died, or was ended after {limit_s:.0f} s (--time-limit)"
        row = summary.failed(
            "crashed",
            f"the process that read this recording {happened}, twice; expected a recording that decodes. Convert it "
            "with another program, or leave it out, and report it",
        )
        self._task.parts.write([Outcome(recording, (row,), scored_at=datetime.now(UTC))])

    def _check_workers(self) -> None:
        """Make sure that a worker lives at all before a recording is blamed for its death.

        Several times: a worker may be given this while it still ends from what it did before.

        Raises
        ------
        RunError : worker after worker dies with nothing to do but load the model
        """
        for _ in range(_WARM_UP_TRIES):
            (future,) = self._ended([self._submit(warm_up, self._task)])
            if not self._has_died(future):
                return
            self._pause()
        raise RunError(
            "a worker died while it loaded the model, with no recording to blame; it needs some 1.3 GB of memory. Give "
            "it more, or use fewer workers (--workers), and repeat the same command"
        )

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        with _told_when_gone():
            return self._client.submit(work, *arguments, pure=False, retries=0)

    def _ended(self, futures: Sequence[Any]) -> list[Any]:
        """Wait until one future at least is no longer under way, and return those.

        Raises
        ------
        RunError : the scheduler is gone, or no worker has been there for long
        """
        from distributed import wait

        deserted_s = 0.0
        while True:
            try:
                with _told_when_gone():
                    wait(futures, timeout=_LOOK_S, return_when="FIRST_COMPLETED")
            except TimeoutError:
                deserted_s = 0.0 if self._num_workers() else deserted_s + _LOOK_S
            # "lost": its worker died with the result, and the scheduler has it done again.
            ended = [future for future in futures if future.status not in ("pending", "lost")]
            if self._client.status != "running" or any(future.status == "cancelled" for future in ended):
                raise RunError(_GONE)
            if ended:
                return ended
            if deserted_s >= _NO_WORKER_S:
                raise RunError(
                    f"the cluster has had no worker for {deserted_s / 60:.0f} minutes; what is done is kept, the same "
                    "command resumes"
                )

    def _num_workers(self) -> int:
        if self._client.status != "running":  # asked, a client that looks for its scheduler takes half a minute
            raise RunError(_GONE)
        with _told_when_gone():
            return num_workers(self._client)

    def _has_died(self, future: Any) -> bool:
        """Whether the process that worked on this died.

        Raises
        ------
        RunError : it failed otherwise, for instance as it lacks the package
        """
        from distributed import KilledWorker

        error = future.exception() if future.status == "error" else None
        if isinstance(error, SinkError | ConfigError):
            raise error
        if error is None or isinstance(error, KilledWorker):
            return error is not None
        raise RunError(f"a worker failed with {type(error).__name__}: {error}; mend that and repeat the same command")

    def _pause(self) -> None:
        """Wait longer after each death that follows another."""
        time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._deaths_in_a_row))
        self._deaths_in_a_row += 1


def _result_of(future: Any) -> Mapping[str, float]:
    """The seconds of a finished shard; none where its worker died with them, as its part is written all the same."""
    try:
        return future.result(timeout=_LOOK_S)
    except Exception:  # distributed has several for it
        return {}


_GONE: Final = "the Dask scheduler is gone; what is done is kept, the same command resumes"


@contextmanager
def _told_when_gone() -> Iterator[None]:
    """Tell what distributed raises where there is no scheduler any more; waiting that only takes long is none of it."""
    try:
        yield
    except TimeoutError:
        raise
    except (CancelledError, OSError, RuntimeError) as error:
        raise RunError(_GONE) from error
