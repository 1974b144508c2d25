"""What a run is to make, and what already lies there: looking only, nothing is changed here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from batchser.errors import ConfigError
from batchser.records import Recording
from batchser.sink.files import SinkError
from batchser.tables import Tally, tally

#: The metadata key of the fingerprints of a result.
FINGERPRINT_KEY: Final = "batchser.fingerprint"

#: What a difference in each fingerprint is called.
MEANINGS: Final = {
    "inputs": "other inputs",
    "model": "another model",
    "settings": "other settings",
    "schema": "another table schema",
    "version": "another batchser version",
}

#: A finished output of another version of batchser is finished all the same.
_OF_A_RESULT: Final = ("inputs", "model", "settings", "schema")


@dataclass(frozen=True, slots=True)
class Finished:
    """The output is there already and is what this run would make."""

    run_id: str
    out: Path | str
    segments: Path | str
    tally: Tally


@dataclass(frozen=True, slots=True)
class Target:
    """The two files to make, and of what."""

    out: Path
    segments: Path
    fingerprints: Mapping[str, str]

    @property
    def work(self) -> Path:
        """The work folder."""
        return self.out.with_name(self.out.name + ".work")


def checked_paths(out: str | Path, segments: str | Path | None) -> tuple[Path, Path]:
    """Return absolute paths that can be written.

    Raises
    ------
    ConfigError : with every fault
    SinkError : they are as they should be, but a folder is read-only now
    """
    out_path = Path(out).absolute()
    if out_path.suffix != ".parquet":
        raise ConfigError(
            f"--out {out}: expected a file name that ends in .parquet; for instance "
            f"{Path(out).with_suffix('.parquet') if out_path.name else 'r.parquet'}"
        )
    default = out_path.with_name(out_path.stem + ".segments.parquet")
    segments_path = default if segments is None else Path(segments).absolute()
    faults, closed = [], []
    tables = [("--out", out_path, out), ("--segments", segments_path, segments or default)]
    for option, path, given in tables[:1] if "://" in str(out) and segments is None else tables:
        if "://" in str(given):
            faults.append(
                f"{option} {given}: expected a local path; a dataset, whose name has no .parquet, may be a URL"
            )
        elif path.is_dir():
            faults.append(f"{option} {given}: is a folder; give the name of a file in it")
        elif not path.parent.is_dir():
            faults.append(f"{option} {given}: there is no folder {path.parent}; make it first")
        elif not os.access(path.parent, os.W_OK):
            closed.append(path.parent)
    if segments_path.suffix != ".parquet":
        faults.append(f"--segments {segments}: expected a file name that ends in .parquet")
    if segments_path.resolve() == out_path.resolve():
        faults.append(f"--segments {segments}: is the same file as --out; give it another name")
    if faults:
        raise ConfigError(faults)
    if closed:
        raise SinkError(
            f"{closed[0]}: cannot be written to; mend that, or choose another folder, and repeat the command"
        )
    return out_path, segments_path


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a Parquet file as text, nothing if it is none or is missing."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def differing(target: Target, fingerprints: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Say which of the named fingerprints are not the target's."""
    return [MEANINGS[name] for name in names if fingerprints.get(name) != target.fingerprints[name]]


def finished_result(target: Target) -> Finished | None:
    """Return what is there if it is what this run would make."""
    metadata = _metadata(target.out)
    if FINGERPRINT_KEY not in metadata or differing(target, json.loads(metadata[FINGERPRINT_KEY]), _OF_A_RESULT):
        return None
    run_id = metadata["batchser.run_id"]
    if _metadata(target.segments).get("batchser.run_id") != run_id:
        return None
    calls = pq.read_table(target.out, columns=["call_id", "status", "duration_s", "num_scored"])
    return Finished(run_id, target.out, target.segments, tally(calls))


def refuse_foreign(target: Target, *, run_id: str | None) -> None:
    """Raise if a file that is not of run ``run_id`` stands where ours is to go."""
    metadata = _metadata(target.out)
    remedy = "choose another --out, or replace it with --fresh"
    if target.out.exists() and (run_id is None or metadata.get("batchser.run_id") != run_id):
        if FINGERPRINT_KEY not in metadata:
            raise ConfigError(f"{target.out}: exists and is no result of batchser; {remedy}")
        other = differing(target, json.loads(metadata[FINGERPRINT_KEY]), _OF_A_RESULT)
        if other:
            raise ConfigError(f"{target.out}: is the result of {' and '.join(other)}; {remedy}")
        raise ConfigError(f"{target.out}: its segments {target.segments} are missing or of another run; {remedy}")
    if target.segments.exists() and (run_id is None or _metadata(target.segments).get("batchser.run_id") != run_id):
        raise ConfigError(
            f"{target.segments}: exists and belongs to no result {target.out.name}; remove it, choose another "
            "--segments, or replace it with --fresh"
        )


def inputs_fingerprint(recordings: Sequence[Recording], own: pa.Table | None = None) -> str:
    """Return the sha256 of what the inputs say: recordings, sizes and times of change of local files, own columns."""
    digest = hashlib.sha256()
    for line in _input_lines(recordings, own):
        digest.update(json.dumps(line, default=str).encode() + b"\n")
    return digest.hexdigest()


def _input_lines(recordings: Sequence[Recording], own: pa.Table | None) -> Iterator[list[Any]]:
    for recording in recordings:
        yield [
            recording.index,
            recording.call_id,
            recording.path,
            recording.roles,
            recording.started_at,
            recording.encoding,
            recording.rate_hz,
            *_size_and_time(recording.path),
        ]
    if own is not None and own.num_columns:
        yield [[column.name, column.type] for column in own.schema]
        for batch in own.to_batches(max_chunksize=10_000):
            yield from (list(row.values()) for row in batch.to_pylist())


def _size_and_time(path: str) -> tuple[int, int] | tuple[()]:
    """Return bytes and nanoseconds of the last change of a local file; nothing for URLs and files that are missing."""
    if "://" in path:
        return ()
    try:
        status = os.stat(path)  # noqa: PTH116  (a Path for each of a million files doubles the time)
    except (OSError, ValueError):
        return ()
    return status.st_size, status.st_mtime_ns
