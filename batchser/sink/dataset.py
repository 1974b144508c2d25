"""A growing dataset: what many nights' runs leave under one folder or object-store prefix. This text is the contract.

::

    calls/call_date=2026-11-20/calls.parquet          one file a day of ``started_at`` (UTC; the day of scoring without)
    segments/call_date=2026-11-20/segments.parquet
    _batchser/dataset.json                            schema version and labels: what all files have in common
    _batchser/ledger/call_date=2026-11-20.parquet     what was scored, of which bytes (ledger.py)
    _batchser/runs/TIME-RUN.json                      one for each run that came to its end: the marker of completion
    _batchser/lock                                    held by the one driver at work: a flock, in a store a lease
    _batchser/work/                                   run.json, recordings.parquet, parts (parts.py), and the journal

Readers see ``calls/`` and ``segments/`` alone, whole files always.

1. A recording is skipped if it stands there with the same call_id, manifest row, bytes, model and settings. Any other
   replaces its call's rows, wherever they stood.
2. A day's file is written anew with a night's rows behind those that it has, beside its place, and moved there: there
   are no small parts to be compacted. All files of a run change as one (commit.py): segments first, then calls, then
   the ledger, the run's marker last. While ``_batchser/work/commit.json`` is there, they are about to.
3. What a run that died has finished is committed by the next one, which then skips it: the same command scores only
   what is missing, and so does any other.
4. Whatever manifests name, all calls files have the same columns: a night that brings a new own column has it added to
   the days before, as null. A column that changes its type is refused, but for integers that become numbers.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchser.errors import ConfigError
from batchser.locks import FolderLock
from batchser.records import FAULTS, Recording
from batchser.settings import TrustSettings
from batchser.sink.commit import RUN, WORK, Commit, clear_work, replay
from batchser.sink.days import CALL_ID, DAY, INDEX, STATED, VERSION, Addition, days_of
from batchser.sink.files import SinkError
from batchser.sink.lease import Lease
from batchser.sink.ledger import LEDGER_SCHEMA, Entry, entries_of, read_ledger, unchanged
from batchser.sink.own import fitted
from batchser.sink.parts import PartSink, assemble, check_whole, read_parts
from batchser.sink.store import LocalStore, RemoteStore, Store, store_at
from batchser.sink.target import Finished
from batchser.tables import SCHEMA_VERSION, Provenance, Tally, check_own_columns, tally_recordings

_LOG = logging.getLogger(__name__)
_STATE: Final = "_batchser/dataset.json"
_RUNS: Final = "_batchser/runs"
_RECORDINGS: Final = f"{WORK}/recordings.parquet"
_CRASHED: Final = frozenset({"crashed", "failed"})
_MEND: Final = "mend that, or choose another folder, and repeat the command"
_Indices = npt.NDArray[np.int64]


class DatasetRun:
    """A run that adds to a dataset. Leave it with ``close`` or ``with``; ``parts`` goes to the workers."""

    def __init__(
        self, store: Store, lock: FolderLock | Lease, run_id: str, parts: PartSink, skipped: _Indices, ledger: pa.Table
    ) -> None:
        self.run_id = run_id
        self.out = store.where().rstrip("/")
        self.segments = store.where("segments")
        self.parts = parts
        self._store = store
        self._lock = lock
        self._skipped = skipped
        self._ledger = ledger

    def __enter__(self) -> DatasetRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, ConfigError) and not read_parts(self._store, WORK, self.parts.prefix):
                clear_work(self._store)  # refused: there is nothing to go on with
        finally:
            self.close()

    def close(self) -> None:
        """Let others work on the dataset; what is done stays."""
        self._lock.release()

    def finished_indices(self) -> _Indices:
        """Return the indices of the recordings that stand in the dataset as they are, ascending, int64 (n,)."""
        return self._skipped

    def commit(self) -> Tally:
        """Add what was scored to the dataset, and count all recordings of the manifest.

        Raises
        ------
        SinkError : a recording is in no part, or a file cannot be written; the parts stay
        """
        added = _commit_parts(self._store, self._lock.check, self.run_id)
        self.close()
        kept = self._ledger.select(added.column_names)
        return tally_recordings(pa.concat_tables([kept, added]))


def open_dataset(
    out: str | Path,
    recordings: Sequence[Recording],
    labels: Sequence[str],
    provenance: Provenance,
    *,
    own: pa.Table | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    trust: TrustSettings | None = None,
) -> DatasetRun | Finished:
    """Start a run that adds to a dataset, or see that it has nothing to add.

    Parameters
    ----------
    out : a folder, which is made where it is missing, or an fsspec URL
    recordings : the whole manifest, ``recordings[i].index == i``
    labels, provenance : the bundle's labels; the model, settings and version that score
    own : the manifest's own columns, row i for recording i
    fresh : score all again; their rows replace those that are there
    retry_failed : score those again that are there as ``crashed`` or ``failed``
    trust : where recordings may lie; others are not looked at

    Raises
    ------
    ConfigError : the place cannot be used, is another dataset, or another run is at work on it; own columns collide
    SinkError : the store refuses
    """
    if not recordings:
        raise ConfigError("there is no recording to score; the inputs are empty")
    check_own_columns(own.column_names if own is not None else (), labels)
    store = checked_place(out)
    lock = hold(store)
    try:
        _check_state(store, labels)
        days = days_of(store)
        own = fitted(store, days, own) if own is not None and own.num_columns else None
        trust = trust or TrustSettings()
        entries = entries_of(recordings, own, trust)
        call_ids = pa.array([recording.call_id for recording in recordings], pa.string())
        ledger = read_ledger(store, days, call_ids)
        again = _CRASHED if retry_failed else frozenset[str]()
        skips = [False] * len(recordings) if fresh else unchanged(recordings, entries, ledger, provenance, again, trust)
        skipped = np.flatnonzero(skips).astype(np.int64)
        kept = ledger.filter(pc.is_in(ledger["call_id"], call_ids.filter(pa.array(skips, pa.bool_()))))
        if all(skips):
            lock.release()
            where = store.where().rstrip("/")
            return Finished(_last_run(store), where, store.where("segments"), tally_recordings(kept))
        run_id = uuid.uuid4().hex
        started_at = datetime.now(UTC)
        _write_work(store, recordings, entries, own, ~np.array(skips), run_id, labels, provenance, started_at)
    except BaseException:
        lock.release()
        raise
    parts = PartSink(store, WORK, run_id[:12], tuple(labels), provenance)
    return DatasetRun(store, lock, run_id, parts, skipped, kept)


def is_dataset(out: str | Path) -> bool:
    """Say whether OUT stands for a dataset: any name that does not end in .parquet."""
    return not str(out).endswith(".parquet")


def checked_place(out: str | Path) -> Store:
    """Return the store of a dataset's place; nothing is made there.

    Raises
    ------
    ConfigError : no dataset can be there
    """
    store = store_at(out)
    if not isinstance(store, LocalStore):
        return store
    root = store.root
    if root.exists() and not root.is_dir():
        raise ConfigError(f"--out {out}: is a file; give a folder for a dataset, or a name that ends in .parquet")
    if not root.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {root.parent}; make it first")
    if root.is_dir() and not (root / "_batchser").is_dir() and any(root.iterdir()):
        raise ConfigError(
            f"--out {out}: holds files and is no dataset of batchser; give a new or an empty folder, or a name that "
            "ends in .parquet"
        )
    return store


def hold(store: Store) -> FolderLock | Lease:
    """Hold a dataset until the lock is released, and finish what has died there.

    Raises
    ------
    ConfigError : another run is at work on it
    SinkError : it cannot be written to, or what has died cannot be finished
    """
    lock: FolderLock | Lease
    if isinstance(store, LocalStore):
        try:
            (store.root / "_batchser").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"{store.root}: cannot be written to ({error.strerror or error}); {_MEND}") from error
        if not os.access(store.root / "_batchser", os.W_OK):
            raise SinkError(f"{store.root}: cannot be written to; {_MEND}")
        lock = FolderLock(store.root / "_batchser")
    else:
        assert isinstance(store, RemoteStore)  # noqa: S101  there are no others
        lock = Lease(store, "_batchser/lock")
    try:
        _finish_what_died(store, lock.check)
    except BaseException:
        lock.release()
        raise
    return lock


def _check_state(store: Store, labels: Sequence[str]) -> None:
    """See that the dataset is of our kind, or begin it."""
    expected = {"schema_version": SCHEMA_VERSION, "labels": list(labels)}
    state = _read_json(store, _STATE)
    if state is None and _STATE in store.names("_batchser"):
        raise ConfigError(f"{store.where(_STATE)}: makes no sense; restore it, or choose another --out")
    if state is None:
        with store.placing(_STATE) as temporary:
            temporary.write_text(json.dumps(expected) + "\n", encoding="utf-8")
    elif state != expected:
        raise ConfigError(
            f"{store.where()}: is a dataset of schema {state.get('schema_version')} with the labels "
            f"{', '.join(state.get('labels', ()))}; this run has schema {SCHEMA_VERSION} with {', '.join(labels)}. "
            "Choose another --out, or the model that it was made with"
        )


def _read_json(store: Store, name: str) -> Any:
    """Read a JSON file of ours; None where there is none, or it makes no sense."""
    try:
        with store.open(name) as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None


def _last_run(store: Store) -> str:
    """Return the id of the last run that came to its end, or nothing."""
    names = store.names(_RUNS)
    return names[-1].rpartition("-")[2].removesuffix(".json") if names else ""


def faults_in(out: str | Path, since: datetime | None, most: int) -> list[tuple[str, str, str]]:
    """Read the first faults of a result, or of a dataset what was scored since then: call_id, status, sentence."""
    columns = ["call_id", "status", "error", "scored_at"]
    if is_dataset(out):
        store = store_at(out)
        names = [f"calls/{day}/calls.parquet" for day in days_of(store)]
    else:
        store, names = store_at(Path(out).parent), [Path(out).name]
    found: list[tuple[str, str, str]] = []
    for name in names:
        with store.open(name) as file:
            rows = pq.read_table(file, columns=columns)
        chosen = pc.is_in(rows["status"].cast(pa.string()), pa.array(sorted(FAULTS)))
        if since is not None:
            chosen = pc.and_(chosen, pc.greater_equal(rows["scored_at"], pa.scalar(since, rows["scored_at"].type)))
        faulty = rows.filter(chosen).slice(0, most - len(found)).to_pylist()
        found += [(row["call_id"], row["status"], row["error"] or "") for row in faulty]
        if len(found) == most:
            break
    return found


# ------------------------------------------------------------------------------------------------ work in progress


def _write_work(
    store: Store,
    recordings: Sequence[Recording],
    entries: Sequence[Entry],
    own: pa.Table | None,
    missing: npt.NDArray[np.bool_],
    run_id: str,
    labels: Sequence[str],
    provenance: Provenance,
    started_at: datetime,
) -> None:
    """Leave all that a commit needs, so that another process can do it when this one has died."""
    store.make(WORK)
    rows = [(recordings[index], entries[index]) for index in np.flatnonzero(missing).tolist()]
    today = started_at.date()
    columns: dict[str, Any] = {
        INDEX: pa.array([recording.index for recording, _ in rows], pa.int64()),
        CALL_ID: pa.array([recording.call_id for recording, _ in rows], pa.string()),
        STATED: pa.array([entry.stated for _, entry in rows], pa.string()),
        VERSION: pa.array([entry.version for _, entry in rows], pa.string()),
        DAY: pa.array([_day(recording, today) for recording, _ in rows], pa.string()),
    }
    if own is not None:
        columns |= zip(own.column_names, own.filter(pa.array(missing)).columns, strict=True)
    with store.placing(_RECORDINGS) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
    state = {
        "run_id": run_id,
        "started_at": started_at.isoformat(timespec="seconds"),
        "labels": list(labels),
        "provenance": asdict(provenance),
    }
    with store.placing(RUN) as temporary:
        temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def _day(recording: Recording, today: date) -> str:
    started_at = recording.started_at
    return f"call_date={today if started_at is None else started_at.astimezone(UTC).date()}"


def _finish_what_died(store: Store, check: Callable[[], None]) -> None:
    """Commit what an earlier run has left: its journal, else its finished parts."""
    if not replay(store) and _read_json(store, RUN) is not None:
        try:
            _commit_parts(store, check)
        except (pa.ArrowException, ConfigError, LookupError, TypeError, ValueError, FileNotFoundError) as error:
            # It must not stand in the way for ever; what it was of is scored again.
            _LOG.warning("what a run that died has left makes no sense (%s: %s)", type(error).__name__, error)
    clear_work(store)


def _commit_parts(store: Store, check: Callable[[], None], run_id: str | None = None) -> pa.Table:
    """Add the parts in the work folder to the dataset; return the ledger's rows of what was added.

    With a ``run_id`` the work must be that run's, and all its recordings in some part; else what is there is taken.
    ``check`` raises where the dataset is not held any more.

    Raises
    ------
    SinkError : a recording is in no part, the work is another's, or a file cannot be written
    """
    complete = run_id is not None
    state = _read_json(store, RUN)
    if complete and (state is None or state["run_id"] != run_id):
        raise SinkError(f"{store.where(WORK)}: is another run's now; repeat the same command")
    labels, provenance = state["labels"], Provenance(**state["provenance"])
    with store.open(_RECORDINGS) as file:
        recordings = pq.read_table(file)
    assembly = assemble(store, read_parts(store, WORK, state["run_id"][:12]))
    if complete:
        check_whole(assembly, recordings[INDEX].to_numpy())
    if not len(assembly.index):
        return LEDGER_SCHEMA.empty_table()
    recordings = recordings.filter(pc.is_in(recordings[INDEX], pa.array(assembly.index)))
    commit = Commit(store)
    added = Addition(store, commit, assembly, recordings, labels, provenance, state["run_id"]).place()
    if complete:
        finished_at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        marker = {
            **state,
            "finished_at": finished_at,
            "recordings": added.num_rows,
            "by_status": tally_recordings(added).by_status,
        }
        with commit.placing(f"{_RUNS}/{finished_at}-{state['run_id']}.json") as temporary:
            temporary.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    commit.publish(check)
    return added
