"""One run on one output: open or resume it, see what is missing, commit."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from batchser.errors import ConfigError
from batchser.locks import FolderLock
from batchser.records import Recording
from batchser.settings import fingerprint_of
from batchser.sink.files import SinkError, placing, remove_temporaries
from batchser.sink.parts import PartSink, assemble, check_whole, read_parts
from batchser.sink.rows import write_rows
from batchser.sink.store import LocalStore
from batchser.sink.target import (
    FINGERPRINT_KEY,
    MEANINGS,
    Finished,
    Target,
    checked_paths,
    differing,
    finished_result,
    inputs_fingerprint,
    refuse_foreign,
)
from batchser.tables import (
    SCHEMA_VERSION,
    Provenance,
    Tally,
    attach_own_columns,
    check_own_columns,
    segments_schema,
    tally,
    with_metadata,
)


class Run:
    """A run that holds its work folder. Leave it with ``close`` or ``with``: only ``commit`` removes the folder.

    ``parts`` goes to the workers; ``run_id`` stays the same when a run is resumed.
    """

    def __init__(
        self, target: Target, lock: FolderLock, run_id: str, parts: PartSink, num_recordings: int, own: pa.Table | None
    ) -> None:
        self.run_id = run_id
        self.out = target.out
        self.segments = target.segments
        self.parts = parts
        self._target = target
        self._lock = lock
        self._num_recordings = num_recordings
        self._own = own

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ConfigError) and not self.finished_indices().size:
            # Refused: nothing of it may stand in the way of the next.
            shutil.rmtree(self._target.work, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let others work on the output; what is done stays."""
        self._lock.release()

    def finished_indices(self) -> npt.NDArray[np.int64]:
        """Return the indices of the recordings that some part holds, ascending, int64 (n,)."""
        parts = read_parts(self.parts.store, self.parts.folder, self.parts.prefix)
        return np.unique(np.concatenate([part.indices for part in parts] or [np.empty(0, np.int64)]))

    def commit(self) -> Tally:
        """Make the two files of the parts, the calls last, and remove the work folder.

        Raises
        ------
        SinkError : a recording is in no part, or the files cannot be written; the parts stay
        """
        parts = read_parts(self.parts.store, self.parts.folder, self.parts.prefix)
        assembly = assemble(self.parts.store, parts)
        check_whole(assembly, np.arange(self._num_recordings))
        stamp = {FINGERPRINT_KEY: json.dumps(self._target.fingerprints)}
        labels, provenance = self.parts.labels, self.parts.provenance
        schema = with_metadata(segments_schema(labels).with_metadata(stamp), self.run_id, labels, provenance)
        calls, indices = assembly.calls()
        if self._own is not None:
            calls = attach_own_columns(calls, indices, self._own)
        calls = with_metadata(calls.replace_schema_metadata(stamp), self.run_id, labels, provenance)
        with placing(self.segments) as temporary:
            write_rows(assembly.segments(), schema, temporary)
        with placing(self.out) as temporary:
            pq.write_table(calls, temporary, compression="zstd")
        # Committed. What cannot be removed now is removed by the next run, which finds the run_id in OUT.
        shutil.rmtree(self._target.work, ignore_errors=True)
        self.close()
        return tally(calls)


def open_run(
    out: str | Path,
    recordings: Sequence[Recording],
    labels: Sequence[str],
    provenance: Provenance,
    *,
    segments: str | Path | None = None,
    own: pa.Table | None = None,
    fresh: bool = False,
) -> Run | Finished:
    """Start or resume the run that makes ``out``, or see that it is made.

    Parameters
    ----------
    out : where the calls table goes, a local path that ends in ``.parquet``
    recordings : the whole manifest, ``recordings[i].index == i``
    labels : the bundle's
    provenance : the model, settings and version that score
    segments : where the segments go; by default beside ``out``
    own : the manifest's own columns, row i for recording i
    fresh : start anew whatever is there; an old result stays until the commit replaces it

    Raises
    ------
    ConfigError : a path cannot be used, an own column collides, another run is at work, or what is there is the
        result or the work of other inputs, another model or other settings
    """
    if not recordings:
        raise ConfigError("there is no recording to score; the inputs are empty")
    check_own_columns(own.column_names if own is not None else (), labels)
    out_path, segments_path = checked_paths(out, segments)
    fingerprints = {
        "inputs": inputs_fingerprint(recordings, own),
        "model": provenance.model_sha256,
        "settings": provenance.settings_sha256,
        "schema": fingerprint_of([SCHEMA_VERSION, list(labels)]),
        "version": provenance.batchser_version,
    }
    target = Target(out_path, segments_path, fingerprints)
    if not fresh and not target.work.exists():  # looking needs no lock, and leaves no folder behind
        finished = finished_result(target)
        if finished is not None:
            return finished
        refuse_foreign(target, run_id=None)
    lock = FolderLock(target.work)
    try:
        begun = _begin(target, fresh=fresh)
    except OSError as error:
        lock.release()
        raise SinkError(f"{target.work}: cannot be used ({error.strerror or error})") from error
    except BaseException:
        lock.release()
        raise
    if isinstance(begun, Finished):
        lock.release()
        return begun
    prefix = fingerprint_of(fingerprints)[:12]
    parts = PartSink(LocalStore(target.work.parent), target.work.name, prefix, tuple(labels), provenance)
    return Run(target, lock, begun, parts, len(recordings), own)


def _begin(target: Target, *, fresh: bool) -> str | Finished:
    """Make the locked work folder ready and return the run's id, unless the output proves to be finished."""
    state = _read_state(target.work)
    if not fresh:
        finished = finished_result(target)
        if finished is not None:
            if state is None or state["run_id"] == finished.run_id:
                shutil.rmtree(target.work, ignore_errors=True)  # it was killed after its commit
            return finished
        if state is not None or any(target.work.glob("calls-*.parquet")):
            return _resume(target, state)
        refuse_foreign(target, run_id=None)
    for path in target.work.iterdir():
        if path.name != "lock":
            path.unlink()
    _remove_temporaries(target)
    state = {
        "run_id": uuid.uuid4().hex,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprints": dict(target.fingerprints),
        "replaces": fresh,
    }
    with placing(target.work / "run.json") as temporary:
        temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    return str(state["run_id"])


def _resume(target: Target, state: Mapping[str, Any] | None) -> str:
    """Go on with the work that lies there, if it is ours."""
    if state is None:
        raise ConfigError(f"{target.work}: holds parts, but no readable run.json; start anew with --fresh")
    other = differing(target, state["fingerprints"], MEANINGS)
    if other:
        raise ConfigError(
            f"{target.work}: holds an interrupted run of {' and '.join(other)}; repeat the command "
            "of that run to finish it, or drop its work with --fresh"
        )
    run_id = str(state["run_id"])
    if not state["replaces"]:
        refuse_foreign(target, run_id=run_id)
    _remove_temporaries(target)
    return run_id


def _read_state(work: Path) -> dict[str, Any] | None:
    """Read run.json; None where there is none, or none that makes sense."""
    try:
        state = json.loads((work / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"run_id", "fingerprints", "replaces"}
    return state if isinstance(state, dict) and needed <= state.keys() else None


def _remove_temporaries(target: Target) -> None:
    """Remove half-written files of earlier runs; the lock is ours, so that nobody is writing them."""
    for path in target.work.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in (target.out, target.segments):
        remove_temporaries(path)
