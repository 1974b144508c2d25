"""OUT, a file or a growing dataset, here or in a store → two Arrow datasets that read no more than is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import reduce
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from batchser.errors import ConfigError
from batchser.tables import calls_schema, own_schema, segments_schema

#: What counts as negative in tables that do not say it themselves: those of before the key was there.
USUAL_NEGATIVE: Final = ("angry", "disgust", "fearful", "sad")
#: The column that a dataset's folders stand for; a text, which sorts as its days do.
DAY: Final = "call_date"
_NO_RESULTS: Final = "expected what a run had as --out: a .parquet file, or the folder or URL of a dataset"


@dataclass(frozen=True, slots=True)
class Results:
    """Both tables of an OUT. Nothing is read before it is asked for; a dataset may grow meanwhile: open it anew.

    ``labels``, ``negative_labels`` : of the model that scored it
    ``own_columns`` : the manifest's, as they stand in calls
    ``by_day`` : it is a dataset, whose tables have the column ``call_date``
    """

    out: str
    calls: ds.Dataset
    segments: ds.Dataset
    labels: tuple[str, ...]
    negative_labels: tuple[str, ...]
    own_columns: tuple[str, ...]
    by_day: bool

    def read_calls(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pd.DataFrame:
        """Return rows of calls, in their order; texts are plain texts, and ``started_at`` is UTC.

        Raises
        ------
        ConfigError : the table cannot be read
        """
        return self._read(self.calls, columns, where)

    def read_windows(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pd.DataFrame:
        """Return rows of segments, in their order.

        Raises
        ------
        ConfigError : the table cannot be read
        """
        return self._read(self.segments, columns, where)

    def windows_of(self, call_ids: Sequence[str], days: Sequence[str] = ()) -> pd.DataFrame:
        """Return all windows of some calls; ``days``, where they are known, spare the others' files."""
        where = ds.field("call_id").isin(pa.array(list(call_ids), pa.string()))
        if self.by_day and days:
            where &= ds.field(DAY).isin(sorted(set(days)))
        return self.read_windows(None, where)

    def days(self) -> list[str]:
        """Return the days of a dataset, ascending; none of a file. Reads names only."""
        if not self.by_day:
            return []
        found = {ds.get_partition_keys(f.partition_expression).get(DAY) for f in self.calls.get_fragments()}
        return sorted(day for day in found if day)

    def around(self, first: date | None, last: date | None) -> pc.Expression | None:
        """Return which files of a dataset may have calls from one day to another of whatever zone; None: all."""
        parts = []
        if self.by_day and first is not None and first > date.min:
            parts.append(ds.field(DAY) >= str(first - timedelta(days=1)))
        if self.by_day and last is not None and last < date.max:
            parts.append(ds.field(DAY) <= str(last + timedelta(days=1)))
        return reduce(pc.and_kleene, parts) if parts else None

    def negativity(self) -> pc.Expression:
        """Return the negativity of a window: the sum of its negative labels' probabilities."""
        terms = [ds.field(f"p_{label}") for label in self.negative_labels]
        total = terms[0] if terms else pc.scalar(0.0)
        for term in terms[1:]:
            total += term
        return total

    def batches(
        self,
        table: ds.Dataset,
        columns: Mapping[str, pc.Expression] | Sequence[str] | None,
        where: pc.Expression | None,
    ) -> Iterator[pa.Table]:
        """Read a table piece by piece, in its order.

        Raises
        ------
        ConfigError : the table cannot be read
        """
        try:
            for batch in table.scanner(columns=columns, filter=where, batch_readahead=4).to_batches():
                yield pa.Table.from_batches([batch])
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{self.out}: cannot be read ({error})") from error

    def _read(self, table: ds.Dataset, columns: Sequence[str] | None, where: pc.Expression | None) -> pd.DataFrame:
        try:
            rows = table.to_table(columns=None if columns is None else list(columns), filter=where)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{self.out}: cannot be read ({error})") from error
        return as_frame(rows)


def as_frame(rows: pa.Table) -> pd.DataFrame:
    """Return a table as pandas has it, names as texts: categories of many files, and of filtered rows, are a burden."""
    frame: pd.DataFrame = with_texts(rows).to_pandas()
    return frame


def with_texts(rows: pa.Table) -> pa.Table:
    """Return a table whose names are texts, which can be joined."""
    fields = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in rows.schema]
    return rows.cast(pa.schema(fields))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame by column; every null is None."""
    return [
        {str(name): None if is_null(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def is_null(value: Any) -> bool:
    """Say whether a value of a frame stands for none; a list does not, whatever is in it."""
    return value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value)


def open_results(out: str | Path, segments: str | Path | None = None) -> Results:
    """Open what a run left at OUT.

    Parameters
    ----------
    out : the calls table's file, or the folder or URL of a dataset
    segments : where the windows are, if a file's are not beside it

    Raises
    ------
    ConfigError : there are no results of batchser, or of a version whose tables are others
    """
    where = str(out).rstrip("/")
    try:
        if where.endswith(".segments.parquet"):
            calls_file = where.removesuffix(".segments.parquet") + ".parquet"
            raise ConfigError(f"{out}: holds windows; give the table of calls, {calls_file}")
        if where.endswith(".parquet"):
            beside = Path(where).with_name(Path(where).stem + ".segments.parquet")
            calls = _file(where)
            windows = _file(str(segments or beside))
            return _results(where, calls, windows, by_day=False)
        if segments is not None:
            raise ConfigError(f"--segments {segments}: is for an OUT that is a file; a dataset has its own")
        return _open_dataset(where)
    except (OSError, pa.ArrowException, ImportError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(f"{out}: no results can be read there ({reason}); {_NO_RESULTS}") from error


def _file(where: str) -> ds.Dataset:
    if not Path(where).is_file():
        raise ConfigError(f"{where}: there is no such file; {_NO_RESULTS}")
    return ds.dataset(where, format="parquet")


def _open_dataset(where: str) -> Results:
    import fsspec

    # Listings must be fresh: nights come while a dashboard is open.
    filesystem, root = fsspec.core.url_to_fs(where, use_listings_cache=False)
    root = root.rstrip("/")
    if not filesystem.exists(root):
        raise ConfigError(f"{where}: there is no such folder; {_NO_RESULTS}")
    state = f"{root}/_batchser/dataset.json"
    if not filesystem.exists(state):
        raise ConfigError(f"{where}: is no dataset of batchser; {_NO_RESULTS}")
    opened = [_by_day(filesystem, f"{root}/{kind}") for kind in ("calls", "segments")]
    if opened[0] is None or opened[1] is None:  # made, and nothing came into it, or all was forgotten
        labels = json.loads(filesystem.cat_file(state)).get("labels", [])
        day, metadata = pa.field(DAY, pa.string()), {"batchser.labels": json.dumps(labels)}
        schemas = [
            schema.append(day).with_metadata(metadata) for schema in (calls_schema(labels), segments_schema(labels))
        ]
        opened = [ds.dataset(schema.empty_table()) for schema in schemas]
    return _results(where, *opened, by_day=True)


def _by_day(filesystem: Any, folder: str) -> ds.Dataset | None:
    if not filesystem.exists(folder) or not filesystem.glob(f"{folder}/*/*.parquet"):
        return None
    by = ds.partitioning(pa.schema([(DAY, pa.string())]), flavor="hive")
    return ds.dataset(folder, filesystem=filesystem, format="parquet", partitioning=by)


def _results(out: str, calls: ds.Dataset, segments: ds.Dataset, *, by_day: bool) -> Results:
    schema, metadata = calls.schema, calls.schema.metadata or {}
    stated = metadata.get(b"batchser.labels")  # not by the columns' names: a manifest may have a mean_wait
    labels = tuple(json.loads(stated)) if stated else ()
    missing = [name for name in calls_schema(labels).names if name not in schema.names]
    missing += [name for name in segments_schema(labels).names if name not in segments.schema.names]
    if not labels or missing:
        what = f"column {missing[0]!r}" if missing else "labels in its metadata"
        raise ConfigError(f"{out}: is no result of batchser (it has no {what}); {_NO_RESULTS}")
    negative = json.loads(metadata.get(b"batchser.negative_labels", b"null")) or USUAL_NEGATIVE
    return Results(
        out=out,
        calls=calls,
        segments=segments,
        labels=labels,
        negative_labels=tuple(label for label in labels if label in negative),
        own_columns=tuple(own_schema(schema).names),
        by_day=by_day,
    )
