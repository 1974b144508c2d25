"""The runner: inputs → shards → workers → parts → commit, in this process or over Dask (dispatch.py).

A shard is a run of consecutive recordings of about equal minutes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from batchser import __version__
from batchser.bundle import Bundle, find_bundle
from batchser.cluster import num_workers, open_cluster
from batchser.dispatch import Dispatcher, Task, score_shard
from batchser.errors import ConfigError
from batchser.features import check_libraries
from batchser.manifest import Manifest, make_shards, read_inputs
from batchser.pipeline import BatchSizes
from batchser.preflight import Header, read_headers, refuse_if_nothing_is_scored
from batchser.records import FAULTS, Recording
from batchser.scoring import choose_engine
from batchser.settings import AUTO_ENGINE, DEFAULT_MODEL, RunSettings, available_cores, default_workers
from batchser.sink import (
    DatasetRun,
    Finished,
    Run,
    checked_paths,
    checked_place,
    faults_in,
    is_dataset,
    open_dataset,
    open_run,
)
from batchser.tables import Provenance, Tally, reserved_columns

#: Shards: small enough to share out evenly, large enough that their own cost does not count.
_SHARDS_PER_WORKER: Final = 6
_MIN_SHARD_S: Final = 60.0
_MAX_SHARD_S: Final = 3 * 3600.0
#: What a recording may take beyond its base: so much of its own length. Decoding Opus, the slowest, takes 1/300.
_LIMIT_PER_SECOND: Final = 0.5


class Progress(Protocol):
    """What a caller is told while a run goes on."""

    def begin(self, run_id: str) -> None:
        """Take the run's id, which it keeps when it is resumed."""

    def say(self, line: str) -> None:
        """Take one line about what happens now."""

    def start(self, total_s: float, recordings: int) -> None:
        """Take what is to be scored: seconds of audio (by the headers) and recordings."""

    def advance(self, seconds: float, recordings: int, stages: Mapping[str, float]) -> None:
        """Take what one more finished shard held, and the seconds that each stage took."""


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
    retry_failed: bool = False
    time_limit_s: float = 120.0
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
        settings=job.settings.stated(),
        negative_labels=bundle.negative_labels,
    )
    opened = _opened(job, manifest, bundle, provenance)
    progress.begin(opened.run_id)
    if isinstance(opened, Finished):
        progress.say(f"{opened.out} is finished: same inputs, model and settings; nothing to do")
        return _report(opened, opened.tally, bundle, started_at, started, opened.tally.recordings, scored_s=0.0)
    with opened:
        finished = set(opened.finished_indices().tolist())
        missing = [recording for recording in manifest.recordings if recording.index not in finished]
        if finished:
            progress.say(f"resuming: {len(finished)} of {len(manifest.recordings)} recordings are done")
        progress.say(f"reading {len(missing)} headers")
        headers = read_headers(missing, job.settings.limits, _header_processes(job), job.time_limit_s)
        if not finished:
            refuse_if_nothing_is_scored(headers, job.settings, _header_processes(job), job.time_limit_s)
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
        reserved = reserved_columns(bundle.labels if bundle else ())
        manifest = read_inputs(job.inputs, reserved, job.settings.limits.trust.max_rows)
    except ConfigError as error:
        faults += error.faults
    if is_dataset(job.out) and job.segments is not None:
        faults.append(f"--segments {job.segments}: a dataset has its own place for them; leave it out")
    if job.retry_failed and not is_dataset(job.out):
        faults.append("--retry-failed: is for datasets, whose OUT is a folder; here --fresh scores all again")
    try:
        if is_dataset(job.out):
            checked_place(job.out)
        else:
            checked_paths(job.out, job.segments)
    except ConfigError as error:
        faults += error.faults
    if bundle is None or manifest is None or faults:
        raise ConfigError(faults)
    return bundle, manifest


def _opened(job: Job, manifest: Manifest, bundle: Bundle, provenance: Provenance) -> Run | DatasetRun | Finished:
    """Start or resume what makes OUT, in the form that its name asks for."""
    if is_dataset(job.out):
        return open_dataset(
            job.out, manifest.recordings, bundle.labels, provenance,
            own=manifest.columns, fresh=job.fresh, retry_failed=job.retry_failed, trust=job.settings.limits.trust,
        )  # fmt: skip
    return open_run(
        job.out, manifest.recordings, bundle.labels, provenance,
        segments=job.segments, own=manifest.columns, fresh=job.fresh,
    )  # fmt: skip


def _report(
    result: Run | DatasetRun | Finished,
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
        started_at=started_at.isoformat(timespec="milliseconds"),
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


def _score_missing(
    job: Job, bundle: Bundle, opened: Run | DatasetRun, headers: Sequence[Header], progress: Progress
) -> None:
    longest_s = job.settings.limits.max_duration_s  # what a header may say and mean nothing by it
    lengths = [None if header.duration_s is None else min(header.duration_s, longest_s) for header in headers]
    total_s = sum(length or 0.0 for length in lengths)
    recordings = [header.recording for header in headers]
    seconds_of = {header.recording.index: length or 0.0 for header, length in zip(headers, lengths, strict=True)}
    progress.start(total_s, len(headers))

    def done(recordings: Sequence[Recording], stages: Mapping[str, float]) -> None:
        progress.advance(sum(seconds_of[recording.index] for recording in recordings), len(recordings), stages)

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
            done(shard, score_shard(task, shard))
    elif recordings:
        # Even one shard gets a process of its own: a recording that kills its process must not kill the driver.
        limits_s = {index: job.time_limit_s + _LIMIT_PER_SECOND * length_s for index, length_s in seconds_of.items()}
        with open_cluster(job.scheduler, min(workers, len(shards_for(workers))), progress.say) as client:
            Dispatcher(client, task, limits_s, done).run(shards_for(num_workers(client)))


def _header_processes(job: Job) -> int:
    if job.scheduler is not None:  # this machine only looks on
        return 1
    return default_workers() if job.workers is None else job.workers


def faults_of(report: Report, most: int) -> list[tuple[str, str, str]]:
    """Read the first ``most`` faults of a finished run from its calls table: call_id, status, sentence."""
    if not FAULTS & report.by_status.keys():
        return []
    since = datetime.fromisoformat(report.started_at) if is_dataset(report.out) else None  # not of the nights before
    return faults_in(report.out, since, most)
