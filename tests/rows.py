"""Are two tables of results the same, row by row?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: How far a score may lie from another run's.
TOLERANCE = 1e-5
#: When a row was scored, and by which run, is its own affair.
_OWN = frozenset({"scored_at"})


def assert_same_tables(first: Path | str, second: Path | str) -> None:
    """All columns but the time of scoring are the same, scores within TOLERANCE."""
    left, right = pq.read_table(first), pq.read_table(second)
    assert left.column_names == right.column_names
    assert left.num_rows == right.num_rows
    for field in left.schema:
        if field.name in _OWN:
            continue
        if field.type == pa.float32():
            a, b = (np.asarray(table[field.name].to_pandas(), np.float64) for table in (left, right))
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE, err_msg=field.name)
        else:
            assert left[field.name].to_pylist() == right[field.name].to_pylist(), field.name
