"""Are two tables of results the same, row by row?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: How far a score may lie from another run's.
TOLERANCE = 1e-5


def assert_same_tables(first: Path | str, second: Path | str, *, in_any_order: bool = False) -> None:
    """All columns but the time of scoring are the same, scores within TOLERANCE; files or folders of partitions."""
    left, right = (pq.read_table(path) for path in (first, second))
    if in_any_order:
        left, right = (_sorted(table) for table in (left, right))
    assert left.column_names == right.column_names
    assert left.num_rows == right.num_rows
    for field in left.schema:
        if field.name == "scored_at":
            continue
        if field.type == pa.float32():
            a, b = (np.asarray(table[field.name].to_pandas(), np.float64) for table in (left, right))
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE, err_msg=field.name)
        else:
            assert left[field.name].to_pylist() == right[field.name].to_pylist(), field.name


def _sorted(table: pa.Table) -> pa.Table:
    plain = table.set_column(0, "call_id", table["call_id"].cast(pa.string()))
    keys = [name for name in ("call_id", "channel", "segment") if name in table.column_names]
    return plain.take(pa.compute.sort_indices(plain, sort_keys=[(name, "ascending") for name in keys]))
