"""A dataset's own columns: those that manifests brought, the same in the calls of every day."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from batchser.errors import ConfigError
from batchser.sink.store import Store
from batchser.tables import own_schema


def own_there(store: Store, days: Sequence[str]) -> pa.Schema | None:
    """Return the own columns that the dataset's calls have; None where it has no calls yet."""
    if not days:
        return None
    with store.open(f"calls/{days[-1]}/calls.parquet") as file:
        return own_schema(pq.read_schema(file)).remove_metadata()


def fitted(store: Store, days: Sequence[str], own: pa.Table) -> pa.Table:
    """Give a manifest's own columns the types that they are to have in the dataset.

    A column that is empty, here or there, takes the other's type; whole numbers become numbers where none is too long
    for that.

    Raises
    ------
    ConfigError : columns of one name have types that do not go together
    """
    there = own_there(store, days)
    faults = []
    for number, name in enumerate(own.column_names):
        column = _plain(own.column(number))
        old = there.field(name).type if there is not None and name in there.names else None
        if old is not None and old != column.type:
            kind = _common(store, days, name, old, column)
            if kind is None:
                faults.append(
                    f"manifest column {name!r}: is {column.type} here and {old} in the dataset; give it that type (a "
                    "Parquet manifest states types), rename it, or choose another --out"
                )
                continue
            column = column.cast(kind)
        own = own.set_column(number, name, column)
    if faults:
        raise ConfigError(faults)
    return own


def united_own(there: pa.Schema | None, new: pa.Schema) -> pa.Schema:
    """Unite the dataset's own columns with those of a manifest that was ``fitted``, whose types count."""
    if there is None:
        return new
    types = {field.name: field.type for field in [*there, *new]}
    return pa.schema([pa.field(name, kind) for name, kind in types.items()])


def with_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give rows just these columns: those that they lack are null."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text is text, however its writer kept it."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        kind = pa.string()
    return column if kind == column.type else column.cast(kind)


def _common(
    store: Store, days: Sequence[str], name: str, old: pa.DataType, column: pa.ChunkedArray
) -> pa.DataType | None:
    """Return a type that the values of both can have, if there is one."""
    if column.null_count == len(column):
        return old
    stored = []
    for day in days:
        with store.open(f"calls/{day}/calls.parquet") as file:
            stored.append(pq.read_table(file, columns=[name])[name])
    if all(values.null_count == len(values) for values in stored):
        return column.type
    kinds = (old, column.type)
    if not all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        return None
    kind = pa.int64() if all(pa.types.is_integer(kind) for kind in kinds) else pa.float64()
    try:
        for values in (*stored, column):
            values.cast(kind)  # raises where digits would be lost
    except pa.ArrowInvalid:
        return None
    return kind
