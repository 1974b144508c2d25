"""Rows → Parquet files, in memory bounded by a row group."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

#: Rows of a row group in a file of results: what a reader can skip, and what the commit holds in memory.
GROUP_ROWS: Final = 2**19


def write_rows(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Stream tables into one file, in row groups of GROUP_ROWS."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        num_waiting = 0
        for table in tables:
            waiting.append(table)
            num_waiting += table.num_rows
            while num_waiting >= GROUP_ROWS:
                joined = pa.concat_tables(waiting)
                writer.write_table(_solid(joined.slice(0, GROUP_ROWS), schema), row_group_size=GROUP_ROWS)
                waiting, num_waiting = [joined.slice(GROUP_ROWS)], num_waiting - GROUP_ROWS
        if num_waiting:
            writer.write_table(_solid(pa.concat_tables(waiting), schema), row_group_size=GROUP_ROWS)


def _solid(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table one chunk and one dictionary per column."""
    return table.unify_dictionaries().combine_chunks().cast(schema)
