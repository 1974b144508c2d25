"""The files of a dataset's days: calls, segments and ledger, written anew where a run or an erasure changes them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchser.records import FAULTS
from batchser.sink.commit import Commit
from batchser.sink.ledger import LEDGER_SCHEMA, Entry, ledger_name, ledger_of_calls, read_ledger
from batchser.sink.own import own_there, united_own, with_columns
from batchser.sink.parts import Assembly
from batchser.sink.rows import write_rows
from batchser.sink.store import Store
from batchser.tables import (
    OUR_PREFIX,
    Provenance,
    attach_own_columns,
    by_recording,
    calls_schema,
    own_schema,
    segments_schema,
    with_metadata,
)

_LOG = logging.getLogger(__name__)
#: What a run notes of each recording, before the manifest's own columns. DAY is its partition, ``call_date=…``.
INDEX, CALL_ID, STATED, VERSION, DAY = COLUMNS = tuple(
    f"{OUR_PREFIX}{name}" for name in ("index", "call_id", "stated", "version", "day")
)


def days_of(store: Store) -> list[str]:
    """List the partitions that have calls, ``call_date=…``, by date."""
    return sorted(name.split("/")[1] for name in store.names("calls") if name.endswith("/calls.parquet"))


def days_of_calls(store: Store, days: Sequence[str], call_ids: pa.Array) -> dict[str, str]:
    """Say on which day each of some calls stands, of those that stand anywhere: the calls themselves are asked."""
    found: dict[str, str] = {}
    for day in days:
        there = _call_ids_of(store, day)
        found |= dict.fromkeys(there.filter(pc.is_in(there, call_ids)).to_pylist(), day)
    return found


def _call_ids_of(store: Store, day: str) -> pa.Array:
    with store.open(f"calls/{day}/calls.parquet") as file:
        return pq.read_table(file, columns=["call_id"])["call_id"].cast(pa.string()).combine_chunks()


class Addition:
    """What parts add to a dataset: some days' files with the recordings' new rows in place of their old ones."""

    def __init__(
        self,
        store: Store,
        commit: Commit,
        assembly: Assembly,
        recordings: pa.Table,
        labels: Sequence[str],
        provenance: Provenance,
        run_id: str,
    ) -> None:
        self._store = store
        self._commit = commit
        self._labels = labels
        self._provenance = provenance
        self._run_id = run_id
        self._there = days_of(store)
        calls, index = assembly.calls()
        self._kept = _better_before(store, self._there, calls)
        if self._kept.num_rows:
            lost = pc.is_in(recordings[CALL_ID], self._kept["call_id"].combine_chunks())
            _LOG.warning("%d recordings cannot be read now; their rows of before are kept", self._kept.num_rows)
            assembly = assembly.only(~np.asarray(lost))
            recordings = recordings.filter(pc.invert(lost))
            inside = np.isin(index, assembly.index)
            calls, index = calls.filter(pa.array(inside)), index[inside]
        self._assembly = assembly
        self._day_of_recording = np.array(recordings[DAY].to_pylist(), object)  # beside assembly.index
        own = recordings.drop_columns(list(COLUMNS))
        position = np.searchsorted(assembly.index, index)
        self._calls = attach_own_columns(calls, position, own)
        self._day_of_row = self._day_of_recording[position]
        entries = zip(*(recordings[name].to_pylist() for name in (CALL_ID, STATED, VERSION)), strict=True)
        self._entries = {call_id: Entry(stated, version) for call_id, stated, version in entries}
        self._call_ids = recordings[CALL_ID].combine_chunks()
        there = own_there(store, self._there)
        self._own = united_own(there, own_schema(self._calls.schema))
        self._own_has_grown = there is not None and not self._own.equals(there)

    def place(self) -> pa.Table:
        """Place all files that change; return the ledger's rows of the recordings, those that are kept among them."""
        was_in = days_of_calls(self._store, self._there, self._call_ids)
        days = sorted({*self._day_of_recording.tolist(), *was_in.values()})
        gone = {day: pa.array([c for c, where in was_in.items() if where == day], pa.string()) for day in days}
        for day in days:
            self._place_segments(day, gone[day])
        new_rows = {day: self._calls_of(day, gone[day]) for day in days}
        for day, calls in new_rows.items():
            self._place_calls(day, calls)
        for day in self._there if self._own_has_grown else ():
            if day not in new_rows:
                self._place_calls(day, self._calls_of(day, pa.array([], pa.string())))
        return pa.concat_tables([self._kept, *(self._place_ledger(day, gone[day]) for day in days)])

    def _place_segments(self, day: str, gone: pa.Array) -> None:
        schema = self._stamped(segments_schema(self._labels))
        with self._commit.placing(f"segments/{day}/segments.parquet") as temporary:
            write_rows(self._segments_of(day, gone), schema, temporary)

    def _segments_of(self, day: str, gone: pa.Array) -> Iterator[pa.Table]:
        if day in self._there:
            yield from rows_without(self._store, f"segments/{day}/segments.parquet", gone)
        yield from self._assembly.only(self._day_of_recording == day).segments()

    def _calls_of(self, day: str, gone: pa.Array) -> pa.Table:
        """All calls rows of a day, in the dataset's own columns."""
        schema = calls_schema(self._labels, self._own)
        tables = [with_columns(self._calls.filter(pa.array(self._day_of_row == day)), schema)]
        if day in self._there:
            there = pa.concat_tables(list(rows_without(self._store, f"calls/{day}/calls.parquet", gone)))
            tables.insert(0, with_columns(there, schema))
        return pa.concat_tables(tables)

    def _place_calls(self, day: str, calls: pa.Table) -> None:
        if not calls.num_rows:
            for kind in ("calls", "segments"):
                self._commit.remove(f"{kind}/{day}/{kind}.parquet")
            return
        solid = calls.unify_dictionaries().combine_chunks()
        with self._commit.placing(f"calls/{day}/calls.parquet") as temporary:
            pq.write_table(self._stamped(solid), temporary, compression="zstd")

    def _place_ledger(self, day: str, gone: pa.Array) -> pa.Table:
        """Place a day's ledger; return its new rows."""
        added = ledger_of_calls(self._calls.filter(pa.array(self._day_of_row == day)), self._entries)
        kept = LEDGER_SCHEMA.empty_table()
        if day in self._there:
            kept = read_ledger(self._store, [day], _call_ids_of(self._store, day)).select(LEDGER_SCHEMA.names)
            kept = kept.filter(pc.invert(pc.is_in(kept["call_id"], gone)))
        rows = pa.concat_tables([kept, added])
        if rows.num_rows:
            with self._commit.placing(ledger_name(day)) as temporary:
                pq.write_table(rows, temporary, compression="zstd")
        else:
            self._commit.remove(ledger_name(day))
        return added

    def _stamped(self, target: Any) -> Any:
        return with_metadata(target, self._run_id, self._labels, self._provenance)


def _better_before(store: Store, days: Sequence[str], calls: pa.Table) -> pa.Table:
    """Return the ledger's rows of recordings that could be read before and by these new calls cannot now.

    A store that does not answer, a disk that is not mounted or a source that was deleted must not cost what was scored.
    """
    rows = by_recording(calls)
    lost = pc.and_(pc.equal(rows["status"], "unreadable"), pc.is_null(rows["source_sha256"]))
    call_ids = rows["call_id"].cast(pa.string()).filter(lost).combine_chunks()
    before = read_ledger(store, days, call_ids)
    good = pc.invert(pc.is_in(before["status"], pa.array(sorted(FAULTS))))
    return before.filter(good).select(LEDGER_SCHEMA.names)


# ------------------------------------------------------------------------------------------------- files of a day


def rows_without(store: Store, name: str, gone: pa.Array) -> Iterator[pa.Table]:
    """Give the rows of a file of calls or segments without those of some calls, a row group at a time."""
    with store.open(name) as opened, pq.ParquetFile(opened) as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            yield _without(rows, gone) if len(gone) else rows


def _without(rows: pa.Table, gone: pa.Array) -> pa.Table:
    """Leave out some calls, and their names in dictionaries, too."""
    kept = rows.filter(pc.invert(pc.is_in(rows["call_id"].cast(pa.string()), gone)))
    for number, field in enumerate(kept.schema):
        if pa.types.is_dictionary(field.type):
            kept = kept.set_column(number, field, pc.dictionary_encode(kept.column(number).cast(field.type.value_type)))
    return kept
