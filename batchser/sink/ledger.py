"""The ledger of a growing dataset: what was scored, of which bytes, by which model, and what its manifest said of it.

One small Parquet file per partition, one row per recording. By it a run knows what it need not score again without
opening a recording: a file's size and time of change tell that it is as it was, and where they differ, its sha256 does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchser import audio
from batchser.errors import AudioError
from batchser.records import FAULTS, Recording
from batchser.settings import TrustSettings, fingerprint_of
from batchser.sink.store import Store
from batchser.tables import Provenance, by_recording

LEDGER: Final = "_batchser/ledger"
_TEXT: Final = pa.string()
#: ``stated``: fingerprint of all that the manifest says of a recording. ``version``: its file's size and time of
#: change, null where it could not be seen. Both are null where a ledger was lost and made anew from the calls.
LEDGER_SCHEMA: Final = pa.schema(
    [
        pa.field("call_id", _TEXT, nullable=False),
        pa.field("stated", _TEXT),
        pa.field("version", _TEXT),
        pa.field("source_sha256", _TEXT),
        pa.field("model_sha256", _TEXT),
        pa.field("settings_sha256", _TEXT),
        pa.field("status", _TEXT),
        pa.field("duration_s", pa.float64()),
        pa.field("num_scored", pa.int64()),
    ]
)
_OF_CALLS: Final = tuple(name for name in LEDGER_SCHEMA.names if name not in ("stated", "version"))
_THREADS: Final = 8  # they wait for disks


@dataclass(frozen=True, slots=True)
class Entry:
    """A recording of a manifest as it is now."""

    stated: str
    version: str | None


def entries_of(recordings: Sequence[Recording], own: pa.Table | None, trust: TrustSettings) -> list[Entry]:
    """Look at every recording of a manifest, with its own columns; no file is opened."""
    rows: Iterator[Mapping[str, Any]] = iter({} for _ in recordings)
    if own is not None and own.num_columns:
        rows = (row for batch in own.to_batches(max_chunksize=10_000) for row in batch.to_pylist())
    with ThreadPoolExecutor(_THREADS) as pool:
        versions = pool.map(lambda recording: _version(recording.path, trust), recordings)
        return [
            Entry(_stated(recording, row), version)
            for recording, row, version in zip(recordings, rows, versions, strict=True)
        ]


def _stated(recording: Recording, own: Mapping[str, Any]) -> str:
    said = {
        "path": recording.path,
        "roles": recording.roles,
        "started_at": str(recording.started_at),
        "encoding": recording.encoding,
        "rate_hz": recording.rate_hz,
        "own": {name: _text(value) for name, value in own.items() if value is not None},  # a new column changes nothing
    }
    return fingerprint_of(said)[:32]


def _text(value: Any) -> str:
    """A manifest's value, alike whether its column holds whole numbers or, for another row's sake, others."""
    return str(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _version(path: str, trust: TrustSettings) -> str | None:
    try:
        audio.check_trusted(path, trust)
    except AudioError:
        return None
    if "://" not in path:
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return None
        return f"{status.st_size}-{status.st_mtime_ns}"
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        info = filesystem.info(inner)
    except Exception:  # whatever a driver raises: who scores it will see, and say
        return None
    known = {key.lower().replace("_", ""): value for key, value in info.items()}  # every driver has its own spelling
    told = [
        str(known[key]) for key in ("size", "etag", "lastmodified", "mtime", "created") if known.get(key) is not None
    ]
    return "-".join(told) if len(told) > 1 else f"{told}-{time.time_ns()}"  # a size alone does not tell a change


def ledger_of_calls(calls: pa.Table, entries: Mapping[str, Entry]) -> pa.Table:
    """Make the ledger's rows of a calls table; what is not among ``entries`` (by call_id) has no stated, no version."""
    rows = by_recording(calls)
    columns = {name: rows[name].cast(LEDGER_SCHEMA.field(name).type) for name in _OF_CALLS}
    of_rows = [entries.get(call_id) for call_id in columns["call_id"].to_pylist()]
    columns["stated"] = pa.array([entry and entry.stated for entry in of_rows], _TEXT)
    columns["version"] = pa.array([entry and entry.version for entry in of_rows], _TEXT)
    return pa.table({name: columns[name] for name in LEDGER_SCHEMA.names}, schema=LEDGER_SCHEMA)


def read_ledger(store: Store, partitions: Sequence[str], call_ids: pa.Array) -> pa.Table:
    """Return the ledger's rows of some recordings, and in ``partition`` where each stands.

    A partition whose ledger file is missing or damaged has it made from its calls: nothing is lost with it but the
    knowledge that a recording is as it was.
    """
    there = set(store.names(LEDGER))
    found = []
    for partition in partitions:
        name = ledger_name(partition)
        rows = _read(store, name) if name in there else None
        if rows is None:
            with store.open(f"calls/{partition}/calls.parquet") as file:
                rows = ledger_of_calls(pq.read_table(file, columns=list(_OF_CALLS)), {})
        rows = rows.filter(pc.is_in(rows["call_id"], call_ids))
        found.append(rows.append_column("partition", pa.array([partition] * rows.num_rows, _TEXT)))
    schema = LEDGER_SCHEMA.append(pa.field("partition", _TEXT))
    return pa.concat_tables(found) if found else schema.empty_table()


def _read(store: Store, name: str) -> pa.Table | None:
    """Read a ledger file; None where it is damaged."""
    with store.open(name) as file:
        try:
            return pq.read_table(file, schema=LEDGER_SCHEMA)
        except (pa.ArrowException, OSError):
            return None


def ledger_name(partition: str) -> str:
    """Return the name of a partition's ledger file."""
    return f"{LEDGER}/{partition}.parquet"


def unchanged(
    recordings: Sequence[Recording],
    entries: Sequence[Entry],
    ledger: pa.Table,
    provenance: Provenance,
    again: frozenset[str],
    trust: TrustSettings,
) -> list[bool]:
    """Say which recordings are scored already: the same call_id, manifest row, bytes, model and settings.

    ``again`` are the statuses that are scored again all the same.
    """
    known = {row["call_id"]: row for row in ledger.to_pylist()}

    def same(recording: Recording, entry: Entry) -> bool:
        row = known.get(recording.call_id)
        if row is None or row["status"] in again:
            return False
        if entry.version is None and row["status"] not in FAULTS:
            return True  # it is out of sight, or gone: what was scored of it stands
        if row["stated"] != entry.stated:
            return False
        if (row["model_sha256"], row["settings_sha256"]) != (provenance.model_sha256, provenance.settings_sha256):
            return False
        if row["status"] == "unreadable" and row["source_sha256"] is None and entry.version is not None:
            return False  # it could not even be opened, and may be now
        if row["version"] == entry.version:
            return True
        return row["source_sha256"] is not None and row["source_sha256"] == _sha256(recording, trust)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(same, recordings, entries))


def _sha256(recording: Recording, trust: TrustSettings) -> str | None:
    try:
        with audio.open_source(recording, trust) as source:
            return source.sha256()
    except AudioError:
        return None
