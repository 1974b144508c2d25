"""Parts: what workers write, and how the driver reads them back in the order of the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from batchser.records import FAULTS, Outcome
from batchser.settings import fingerprint_of
from batchser.sink.files import SinkError
from batchser.sink.store import Store
from batchser.tables import Provenance, calls_table, row_indices, segments_table

_Indices = npt.NDArray[np.int64]

#: Rows of a row group in a segments part: what the commit holds of a part at once.
PART_GROUP_ROWS: Final = 2**16

_INDEX: Final = "_index"
_NUM_WINDOWS: Final = "_num_windows"


@dataclass(frozen=True, slots=True)
class PartSink:
    """Where a worker leaves the recordings it has done; it can be pickled and opens nothing before it writes.

    ``folder`` is the work folder's name in the store; ``prefix`` tells a run's parts from those of others.
    """

    store: Store
    folder: str
    prefix: str
    labels: tuple[str, ...]
    provenance: Provenance

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Leave some whole recordings as one part; writing the same recordings again replaces it.

        Raises
        ------
        SinkError : the part cannot be written; nothing of it is left
        ValueError : a recording stands there twice, or has no row (a fault of ours)
        """
        if not outcomes:
            return
        indices = sorted(outcome.recording.index for outcome in outcomes)
        if len(set(indices)) < len(indices) or not all(outcome.summaries for outcome in outcomes):
            raise ValueError(f"recordings {indices[0]}…{indices[-1]}: one stands there twice or has no summary")
        num_windows = {
            outcome.recording.index: sum(len(scores.kind) for scores in outcome.windows) for outcome in outcomes
        }
        rows = row_indices(outcomes)
        calls = (
            calls_table(outcomes, self.labels, self.provenance)
            .add_column(0, _NUM_WINDOWS, pa.array([num_windows[index] for index in rows.tolist()], pa.int64()))
            .add_column(0, _INDEX, pa.array(rows))
        )
        name = f"{indices[0]:09d}-{fingerprint_of(indices)[:8]}-{self.prefix}.parquet"
        with self.store.placing(f"{self.folder}/segments-{name}") as temporary:
            segments = segments_table(outcomes, self.labels)
            pq.write_table(segments, temporary, compression="zstd", row_group_size=PART_GROUP_ROWS)
        with self.store.placing(f"{self.folder}/calls-{name}") as temporary:  # the marker: last
            pq.write_table(calls, temporary, compression="zstd")


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part: its files' names, and arrays with an entry per recording in the order of the file: (n,)."""

    calls: str
    segments: str
    indices: _Indices
    num_windows: _Indices
    is_fault: npt.NDArray[np.bool_]


def read_parts(store: Store, folder: str, prefix: str = "") -> list[Part]:
    """Return the parts in a work folder that are whole, by name; those of one run, or of any."""
    names = [name for name in store.names(folder) if _is_marker(name.rpartition("/")[2], prefix)]
    found = (_read_part(store, name) for name in names)
    return [part for part in found if part is not None]


def _is_marker(name: str, prefix: str) -> bool:
    return name.startswith("calls-") and name.endswith(f"-{prefix}.parquet" if prefix else ".parquet")


def _read_part(store: Store, calls: str) -> Part | None:
    """Read a part's marker; None where it or its segments are damaged, so that its recordings are done again."""
    folder, _, name = calls.rpartition("/")
    segments = f"{folder}/{name.replace('calls-', 'segments-', 1)}"
    try:
        with store.open(calls) as file:
            rows = pq.read_table(file, columns=[_INDEX, _NUM_WINDOWS, "status"])
        with store.open(segments) as file:
            num_segments = pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        return None
    indices, first = np.unique(rows[_INDEX].to_numpy(), return_index=True)
    num_windows = rows[_NUM_WINDOWS].to_numpy()[first]
    is_fault = np.array([status in FAULTS for status in rows["status"].to_pylist()], np.bool_)[first]
    if num_windows.sum() != num_segments:
        return None
    return Part(calls, segments, indices, num_windows, is_fault)


@dataclass(frozen=True, slots=True)
class Assembly:
    """Which part gives each recording its rows; all int64 (n,), an entry per recording, ascending by ``index``."""

    store: Store
    parts: Sequence[Part]
    index: _Indices
    part: _Indices
    first_row: _Indices
    num_rows: _Indices

    def only(self, chosen: npt.NDArray[np.bool_]) -> Assembly:
        """Return the assembly of some of its recordings: bool (n,)."""
        arrays = (self.index, self.part, self.first_row, self.num_rows)
        return Assembly(self.store, self.parts, *(array[chosen] for array in arrays))

    def calls(self) -> tuple[pa.Table, _Indices]:
        """Return all calls rows in manifest order, and the recording of each; there must be one recording at least."""
        tables, indices = [], []
        for number, part in enumerate(self.parts):
            with self.store.open(part.calls) as file:
                rows = pq.read_table(file)
            index = rows[_INDEX].to_numpy()
            chosen = np.isin(index, self.index)
            chosen[chosen] = self.part[np.searchsorted(self.index, index[chosen])] == number
            tables.append(rows.filter(pa.array(chosen)).drop_columns([_INDEX, _NUM_WINDOWS]))
            indices.append(index[chosen])
        joined = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        index = np.concatenate(indices)
        order = np.argsort(index, kind="stable")  # a recording's channels stay in order
        return joined.take(pa.array(order)), index[order]

    def segments(self) -> Iterator[pa.Table]:
        """Give all segments rows in manifest order, a row group of a part at most at a time."""
        if not len(self.index):
            return
        end_row = self.first_row + self.num_rows
        breaks = (np.diff(self.part) != 0) | (self.first_row[1:] != end_row[:-1])
        starts = np.flatnonzero(np.concatenate([[True], breaks]))
        ends = np.append(starts[1:], len(self.part)) - 1
        # Shards are runs of the manifest, so a stretch is a whole part; if they were not, this is slower, not wrong.
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            name = self.parts[self.part[start]].segments
            yield from _rows(self.store, name, int(self.first_row[start]), int(end_row[end]))


def assemble(store: Store, parts: Sequence[Part]) -> Assembly:
    """Choose for each recording that is in some part the one that counts."""
    index = np.concatenate([part.indices for part in parts] or [np.empty(0, np.int64)])
    number = np.repeat(np.arange(len(parts)), np.array([len(part.indices) for part in parts], np.int64))
    first_row = np.concatenate([np.cumsum(part.num_windows) - part.num_windows for part in parts] or [index])
    num_rows = np.concatenate([part.num_windows for part in parts] or [index])
    is_fault = np.concatenate([part.is_fault for part in parts] or [index])
    order = np.lexsort((number, is_fault, index))
    known, first = np.unique(index[order], return_index=True)
    chosen = order[first]
    return Assembly(store, parts, known, number[chosen], first_row[chosen], num_rows[chosen])


def check_whole(assembly: Assembly, expected: npt.NDArray[np.int64]) -> None:
    """See that the parts hold just these recordings, ascending.

    Raises
    ------
    SinkError : a recording is in no part, or a part has one that the run does not know
    """
    if not np.array_equal(assembly.index, expected):
        missing = np.setdiff1d(expected, assembly.index)
        strange = np.setdiff1d(assembly.index, expected)
        raise SinkError(
            f"the parts do not make up the run: of {len(expected)} recordings {len(missing)} are in no part "
            f"(first {missing[:3].tolist()}), {len(strange)} are unknown (first {strange[:3].tolist()})"
        )


def _rows(store: Store, name: str, start: int, end: int) -> Iterator[pa.Table]:
    """Give rows start…end−1 of a Parquet file, one row group at a time."""
    if start == end:
        return
    with store.open(name) as opened, pq.ParquetFile(opened) as file:
        position = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            first, last = max(start - position, 0), min(end - position, num_rows)
            if first < last:
                yield file.read_row_group(group).slice(first, last - first)
            position += num_rows
