"""The runner: inputs → shards → workers → parts → commit, in this process or over Dask.

A shard is a run of consecutive recordings of about equal minutes. Few shards are under way at once, however many there
are. A shard whose process died is halved until the culprit is alone; then it runs with nothing beside it, and if it
kills its process again it gets a row with status ``crashed``: innocents do not carry the blame.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from batchser import __version__, summary
from batchser.bundle import Bundle, find_bundle
from batchser.cluster import num_workers, open_cluster
from batchser.errors import BatchserError, ConfigError
from batchser.features import check_libraries
from batchser.manifest import Manifest, make_shards, read_inputs
from batchser.pipeline import BatchSizes, score_recordings
from batchser.preflight import Header, read_headers, refuse_if_nothing_is_scored
from batchser.records import FAULTS, Outcome, Recording
from batchser.scoring import Model, choose_engine, load_model
from batchser.settings import AUTO_ENGINE, DEFAULT_MODEL, RunSettings, available_cores, default_workers
from batchser.sink import Finished, PartSink, Run, SinkError, checked_paths, open_run
from batchser.tables import Provenance, Tally, reserved_columns

_LOG = logging.getLogger(__name__)
#: Shards: small enough to share out evenly, large enough that their own cost does not count.
_SHARDS_PER_WORKER: Final = 6
_MIN_SHARD_S: Final = 60.0
_MAX_SHARD_S: Final = 3 * 3600.0
_WARM_UP_TRIES: Final = 3
_IN_FLIGHT_PER_WORKER: Final = 2


class RunError(BatchserError):
    """The run itself broke off (exit code 3): what is done is kept, the same command resumes."""


class Progress(Protocol):
    """What a caller is told while a run goes on."""

    def say(self, line: str) -> None:
        """Take one line about what happens now."""

    def start(self, total_s: float, recordings: int) -> None:
        """Take what is to be scored: seconds of audio (by the headers) and recordings."""

    def advance(self, seconds: float, recordings: int) -> None:
        """Take what one more finished shard held."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call of `batchser run`. Only ``settings`` and the model change what comes out."""

    inputs: tuple[str, ...]
    out: str
    segments: str | None = None
    model: str = DEFAULT_MODEL
    search: tuple[Path, ...] = ()
    settings: RunSettings = field(default_factory=RunSettings)
    workers: int | None = None
    scheduler: str | None = None
    engine: str = AUTO_ENGINE
    fresh: bool = False
    sizes: BatchSizes = field(default_factory=BatchSizes)


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did; its fields are the keys of ``--json-summary``."""

    run_id: str
    exit_code: int
    started_at: str
    seconds: float
    recordings: int
    recordings_reused: int
    by_status: dict[str, int]
    audio_s: float
    scored_windows: int
    x_realtime: float
    model: str
    out: str
    segments: str


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


def run(job: Job, progress: Progress) -> Report:
    """Do the job: read the inputs, score what is missing, commit both tables.

    Raises
    ------
    ConfigError : wrong usage or configuration; nothing was started
    RunError, SinkError : the run broke off; the same command resumes
    """
    started_at, started = datetime.now(UTC), time.perf_counter()
    bundle, manifest = _checked(job)
    provenance = Provenance(
        model=bundle.name,
        model_sha256=bundle.sha256,
        settings_sha256=job.settings.fingerprint(),
        batchser_version=__version__,
        settings=asdict(job.settings),
    )
    opened = open_run(
        job.out, manifest.recordings, bundle.labels, provenance,
        segments=job.segments, own=manifest.columns, fresh=job.fresh,
    )  # fmt: skip
    if isinstance(opened, Finished):
        progress.say(f"{opened.out} is finished: same inputs, model and settings; nothing to do")
        return _report(opened, opened.tally, bundle, started_at, started, opened.tally.recordings, scored_s=0.0)
    with opened:
        finished = set(opened.finished_indices().tolist())
        missing = [recording for recording in manifest.recordings if recording.index not in finished]
        if finished:
            progress.say(f"resuming: {len(finished)} of {len(manifest.recordings)} recordings are done")
        progress.say(f"reading {len(missing)} headers")
        headers = read_headers(missing, job.settings.limits, _header_processes(job))
        if not finished:
            refuse_if_nothing_is_scored(headers, job.settings)
        _score_missing(job, bundle, opened, headers, progress)
        tally = opened.commit()
        scored_s = sum(header.duration_s or 0.0 for header in headers) if finished else tally.audio_s
        return _report(opened, tally, bundle, started_at, started, len(finished), scored_s)


def _checked(job: Job) -> tuple[Bundle, Manifest]:
    """Open the model, the inputs and the output's place, and tell all faults of the three at once."""
    faults: list[str] = []
    if job.scheduler is not None and job.workers is not None:
        faults.append("--workers and --scheduler: give one of them; the workers of a scheduler are its own")
    bundle = manifest = None
    try:
        bundle = find_bundle(job.model, job.search)
        check_libraries(bundle.features)
        choose_engine(bundle, job.engine)
    except ConfigError as error:
        faults += error.faults
    try:
        manifest = read_inputs(job.inputs, reserved_columns(bundle.labels if bundle else ()))
    except ConfigError as error:
        faults += error.faults
    try:
        checked_paths(job.out, job.segments)
    except ConfigError as error:
        faults += error.faults
    if bundle is None or manifest is None or faults:
        raise ConfigError(faults)
    return bundle, manifest


def _report(
    result: Run | Finished,
    tally: Tally,
    bundle: Bundle,
    started_at: datetime,
    started: float,
    reused: int,
    scored_s: float,
) -> Report:
    seconds = time.perf_counter() - started
    return Report(
        run_id=result.run_id,
        exit_code=1 if FAULTS & {status for status, count in tally.by_status.items() if count} else 0,
        started_at=started_at.isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        recordings=tally.recordings,
        recordings_reused=reused,
        by_status=tally.by_status,
        audio_s=round(tally.audio_s, 3),
        scored_windows=tally.scored_windows,
        x_realtime=round(scored_s / seconds, 1),
        model=bundle.name,
        out=str(result.out),
        segments=str(result.segments),
    )


def _score_missing(job: Job, bundle: Bundle, opened: Run, headers: Sequence[Header], progress: Progress) -> None:
    lengths = [header.duration_s for header in headers]
    total_s = sum(length or 0.0 for length in lengths)
    recordings = [header.recording for header in headers]
    seconds_of = {header.recording.index: header.duration_s or 0.0 for header in headers}
    progress.start(total_s, len(headers))

    def done(recordings: Sequence[Recording]) -> None:
        progress.advance(sum(seconds_of[recording.index] for recording in recordings), len(recordings))

    def shards_for(workers: int) -> list[Sequence[Recording]]:
        target_s = min(_MAX_SHARD_S, max(_MIN_SHARD_S, total_s / (max(1, workers) * _SHARDS_PER_WORKER)))
        return [shard.recordings for shard in make_shards(recordings, lengths, target_s)]

    workers = default_workers() if job.workers is None else job.workers
    here = job.scheduler is None and workers == 0
    task = Task(
        model_folder=Path(bundle.folder or "."),
        model_sha256=bundle.sha256,
        settings=job.settings,
        sizes=job.sizes,
        parts=opened.parts,
        num_threads=available_cores() if here else 1,
        # Chosen here for workers here; those of a scheduler choose for themselves.
        engine=job.engine if job.scheduler else choose_engine(bundle, job.engine),
    )
    if here:
        for shard in shards_for(1):
            score_shard(task, shard)
            done(shard)
    elif recordings:
        # Even one shard gets a process of its own: a recording that kills its process must not kill the driver.
        with open_cluster(job.scheduler, min(workers, len(shards_for(workers))), progress.say) as client:
            _score_over_dask(client, task, shards_for(num_workers(client)), done)


def _header_processes(job: Job) -> int:
    if job.scheduler is not None:  # this machine only looks on
        return 1
    return default_workers() if job.workers is None else job.workers


def score_shard(task: Task, recordings: Sequence[Recording]) -> None:
    """Score some recordings and leave them as one part. Runs in the worker; the model is loaded once a process.

    Raises
    ------
    SinkError : the part cannot be written
    """
    task.parts.write(list(score_recordings(recordings, _model_of(task), task.settings, task.sizes)))


def warm_up(task: Task) -> None:
    """Load the model, and nothing else."""
    _model_of(task)


def _model_of(task: Task) -> Model:
    """The task's model; its process loads it once."""
    return load_model(task.model_folder, task.model_sha256, task.num_threads, task.engine)


def _score_over_dask(
    client: Any, task: Task, shards: Sequence[Sequence[Recording]], done: Callable[[Sequence[Recording]], None]
) -> None:
    """Keep a few shards per worker under way until all are done.

    Raises
    ------
    RunError : the scheduler is gone, or workers cannot work
    """
    waiting = deque(shards)
    suspects: deque[Recording] = deque()
    while waiting or suspects:
        if waiting:
            most = _IN_FLIGHT_PER_WORKER * max(1, num_workers(client))
            for shard in _failed_shards(client, task, waiting, most, done):
                if len(shard) == 1:
                    suspects.append(shard[0])
                else:
                    half = len(shard) // 2
                    waiting += [shard[:half], shard[half:]]
        else:
            suspect = suspects.popleft()
            _check_workers(client, task)
            if list(_failed_shards(client, task, deque([[suspect]]), 1, done)):
                _quarantine(task, suspect)
                done([suspect])


def _failed_shards(
    client: Any,
    task: Task,
    waiting: deque[Sequence[Recording]],
    most: int,
    done: Callable[[Sequence[Recording]], None],
) -> Iterator[Sequence[Recording]]:
    """Run all waiting shards, at most ``most`` at once; give back those whose process died.

    Raises
    ------
    RunError : the scheduler is gone, or a worker failed otherwise, for instance as it lacks the package
    """
    from distributed import KilledWorker, as_completed

    running: dict[str, Sequence[Recording]] = {}
    completed = as_completed()
    while waiting or running:
        while waiting and len(running) < most:
            shard = waiting.popleft()
            future = client.submit(score_shard, task, shard, pure=False, retries=0)
            running[future.key] = shard
            completed.add(future)
        future = next(completed)
        shard = running.pop(future.key)
        error = future.exception() if future.status != "finished" else None
        if client.status != "running" or future.status == "cancelled":
            raise RunError("the Dask scheduler is gone; what is done is kept, the same command resumes")
        if isinstance(error, SinkError | ConfigError):
            raise error
        if isinstance(error, KilledWorker):
            _LOG.warning("a worker ended in the middle of %d recordings", len(shard))
            yield shard
        elif error is not None:
            raise RunError(
                f"a worker failed with {type(error).__name__}: {error}; mend that and repeat the same command"
            )
        else:
            done(shard)


def _check_workers(client: Any, task: Task) -> None:
    """Make sure that a worker lives at all before a recording is blamed for its death.

    Several times: a worker may be given this while it still ends from what it did before.

    Raises
    ------
    RunError : worker after worker dies with nothing to do but load the model
    """
    from distributed import KilledWorker

    died: KilledWorker | None = None
    for _ in range(_WARM_UP_TRIES):
        try:
            client.submit(warm_up, task, pure=False).result()
        except KilledWorker as error:
            died = error
        else:
            return
    raise RunError(
        "a worker died while it loaded the model, with no recording to blame; it needs some 1.3 GB of memory. Give it "
        "more, or use fewer workers (--workers), and repeat the same command"
    ) from died


def _quarantine(task: Task, recording: Recording) -> None:
    """Leave the row of a recording that killed its process twice, the second time with nothing beside it."""
    _LOG.error("%s: killed its process; its row has status 'crashed'", recording.call_id)
    row = summary.failed(
        "crashed",
        "the process that read this recording died, twice; expected a recording that decodes. Convert it with another "
        "program, or leave it out, and report it",
    )
    task.parts.write([Outcome(recording, (row,), scored_at=datetime.now(UTC))])


def faults_of(report: Report, most: int) -> list[tuple[str, str, str]]:
    """Read the first ``most`` faults of a finished run from its calls table: call_id, status, sentence."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(report.out, columns=["call_id", "status", "error"])
    faulty = table.filter(pc.is_in(table["status"].cast("string"), pa.array(sorted(FAULTS)))).slice(0, most)
    return [(row["call_id"], row["status"], row["error"] or "") for row in faulty.to_pylist()]
