"""The files of a dataset's days: calls, segments and ledger, written anew where a run or an erasure changes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchser.errors import ConfigError
from batchser.sink.commit import Commit
from batchser.sink.ledger import LEDGER_SCHEMA, Entry, ledger_name, ledger_of_calls, read_ledger
from batchser.sink.parts import Assembly
from batchser.sink.rows import write_rows
from batchser.sink.store import Store
from batchser.tables import (
    Provenance,
    attach_own_columns,
    calls_schema,
    own_schema,
    segments_schema,
    with_metadata,
)

#: What a run notes of each recording, before the manifest's own columns. DAY is its partition, ``call_date=…``.
INDEX, CALL_ID, STATED, VERSION, DAY = COLUMNS = tuple(
    f"batchser:{name}" for name in ("index", "call_id", "stated", "version", "day")
)


def days_of(store: Store) -> list[str]:
    """List the partitions that have calls, ``call_date=…``, by date."""
    return sorted(name.split("/")[1] for name in store.names("calls") if name.endswith("/calls.parquet"))


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
        self._assembly = assembly
        self._labels = labels
        self._provenance = provenance
        self._run_id = run_id
        self._day_of_recording = np.array(recordings[DAY].to_pylist())  # beside assembly.index
        own = recordings.drop_columns(list(COLUMNS))
        calls, index = assembly.calls()
        position = np.searchsorted(assembly.index, index)
        self._calls = attach_own_columns(calls, position, own)
        self._day_of_row = self._day_of_recording[position]
        entries = zip(*(recordings[name].to_pylist() for name in (CALL_ID, STATED, VERSION)), strict=True)
        self._entries = {call_id: Entry(stated, version) for call_id, stated, version in entries}
        self._call_ids = recordings[CALL_ID].combine_chunks()
        self._there = days_of(store)
        there = own_there(store, self._there)
        self._own = united_own(there, own_schema(self._calls.schema))
        self._own_has_grown = there is not None and not self._own.equals(there)

    def place(self) -> pa.Table:
        """Place all files that change; return the ledger's rows of the recordings."""
        before = read_ledger(self._store, self._there, self._call_ids)
        was_in = dict(zip(before["call_id"].to_pylist(), before["partition"].to_pylist(), strict=True))
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
        return pa.concat_tables([self._place_ledger(day, gone[day]) for day in days])

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
            everyone = self._everyone(day)
            kept = read_ledger(self._store, [day], everyone).select(LEDGER_SCHEMA.names)
            kept = kept.filter(pc.invert(pc.is_in(kept["call_id"], gone)))
        rows = pa.concat_tables([kept, added])
        if rows.num_rows:
            with self._commit.placing(ledger_name(day)) as temporary:
                pq.write_table(rows, temporary, compression="zstd")
        else:
            self._commit.remove(ledger_name(day))
        return added

    def _everyone(self, day: str) -> pa.Array:
        with self._store.open(f"calls/{day}/calls.parquet") as file:
            return pq.read_table(file, columns=["call_id"])["call_id"].cast(pa.string()).combine_chunks()

    def _stamped(self, target: Any) -> Any:
        return with_metadata(target, self._run_id, self._labels, self._provenance)


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


def own_there(store: Store, days: Sequence[str]) -> pa.Schema | None:
    """Return the own columns that the dataset's calls have; None where it has none yet."""
    if not days:
        return None
    with store.open(f"calls/{days[-1]}/calls.parquet") as file:
        return own_schema(pq.read_schema(file)).remove_metadata()


def united_own(there: pa.Schema | None, new: pa.Schema) -> pa.Schema:
    """Unite the dataset's own columns with a manifest's.

    Raises
    ------
    ConfigError : columns of one name have types that do not go together
    """
    if there is None:
        return new
    fields = {field.name: field for field in there}
    faults = []
    for field in new:
        old = fields.get(field.name)
        kind = field.type if old is None else _common(old.type, field.type)
        if kind is None and old is not None:
            faults.append(
                f"manifest column {field.name!r}: is {field.type} here and {old.type} in the dataset; give it that "
                "type (a Parquet manifest states types), rename it, or choose another --out"
            )
        fields[field.name] = pa.field(field.name, kind if kind is not None else field.type)
    if faults:
        raise ConfigError(faults)
    return pa.schema(list(fields.values()))


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return a type that holds values of both without loss that matters, if there is one."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    numbers = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other)]
    if all(numbers):
        both_whole = pa.types.is_integer(one) and pa.types.is_integer(other)
        return pa.int64() if both_whole else pa.float64()
    return None


def with_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give rows just these columns: those that they lack are null."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
