"""The moments worth hearing: windows that meet a condition, neighbours merged, the highest first.

Windows are read piece by piece, and only the highest moments are kept, so that millions of them fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from batchser.errors import ConfigError
from batchser.results.conditions import Column, columns_of, parse_condition
from batchser.results.opening import DAY, Results, records, with_texts
from batchser.tables import OUR_PREFIX

#: Names of calls columns that windows have, too, as a condition on moments writes them.
CALL_PREFIX: Final = "call_"
_KEYS: Final = ("call_id", "channel")
#: A moment has so many windows at most, a minute: what follows is the next moment.
_MOST_WINDOWS: Final = 20
_SCORE: Final = f"{OUR_PREFIX}score"
#: How what a condition names is called on joined rows: a manifest may have a score, too.
_NAMED: Final = f"{OUR_PREFIX}named:"
_READ: Final = ("call_id", "channel", "segment", "start_s", "end_s", "emotion", "confidence")


@dataclass(frozen=True, slots=True)
class Moment:
    """Windows of one channel that follow each other; ``peak_…``, ``score`` and ``emotion`` are the highest one's.

    ``call`` has the call's row, by column, as far as it was asked for.
    """

    call_id: str
    channel: int
    start_s: float
    end_s: float
    peak_start_s: float
    peak_end_s: float
    score: float
    emotion: str
    confidence: float
    num_windows: int
    call: Mapping[str, Any]


def moment_columns(results: Results) -> dict[str, Column]:
    """Return what a condition on moments may name: a window's columns, then its call's.

    ``negativity`` is the window's; where both tables have a column the call's is ``call_<name>``.
    """
    windows = columns_of(results.segments.schema)
    windows["negativity"] = Column(pa.float32(), results.negativity())
    calls = {
        f"{CALL_PREFIX}{name}" if name in windows else name: column
        for name, column in columns_of(results.calls.schema).items()
        if name not in (*_KEYS, DAY)
    }
    return windows | calls


def select_moments(
    results: Results,
    *,
    emotion: str | None = None,
    where: str = "",
    by: str | None = None,
    top: int = 20,
    call_columns: Sequence[str] = ("path", "role", "started_at"),
    option: str = "--",
) -> list[Moment]:
    """Return the moments of scored channels that match, the highest first, at most ``top``.

    Parameters
    ----------
    results : the tables
    emotion : windows that say so and do not abstain; ranked by this emotion's probability
    where : a condition on windows and their calls (``moment_columns``)
    by : a number among a window's columns to rank by instead; without ``emotion`` the negativity
    top : how many; neighbouring windows count as one
    call_columns : what ``Moment.call`` is to have
    option : what messages put before the names of these parameters

    Raises
    ------
    ConfigError : an unknown emotion, a condition that cannot be read, no such number; all at once
    """
    columns = moment_columns(results)
    faults, parts = [], []
    if emotion is not None and emotion not in results.labels:
        faults.append(f"{option}emotion {emotion}: the model knows {', '.join(results.labels)}")
    try:
        parts = parse_condition(where, columns, f"{option}where")
    except ConfigError as error:
        faults += error.faults
    rank = rank_of(emotion, by)
    of_windows = {*results.segments.schema.names, "negativity"}
    numbers = [name for name in sorted(of_windows) if pa.types.is_floating(columns[name].type)]
    if not faults and rank not in numbers:
        faults.append(f"{option}by {rank}: expected a number of a window: {', '.join(numbers)}")
    if faults:
        raise ConfigError(faults)
    wanted = [ds.field("emotion").is_valid(), *(part.expression for part in parts if part.names <= of_windows)]
    if emotion is not None:
        wanted += [ds.field("emotion") == emotion, ~ds.field("abstained")]
    read = {name: ds.field(name) for name in _READ} | {_SCORE: columns[rank].expression}
    joined = None
    if not all(part.names <= of_windows for part in parts):
        named = frozenset[str]().union(*(part.names for part in parts))
        read |= {f"{_NAMED}{name}": columns[name].expression for name in named & of_windows}
        joined = _Joined(results, where, named - of_windows)
        wanted += joined.on_windows
    runs, best = _Runs(), _no_moments()
    for batch in results.batches(results.segments, read, reduce(pc.and_kleene, wanted)):
        rows = with_texts(batch) if joined is None else joined.matching(with_texts(batch))
        best = _highest(best, runs.add(rows.select([*_READ, _SCORE]).to_pandas()), top)
    return _with_calls(results, _highest(best, runs.end(), top), call_columns)


def rank_of(emotion: str | None, by: str | None = None) -> str:
    """Return which number of a window moments are ranked by: their ``score``."""
    return by or (f"p_{emotion}" if emotion else "negativity")


def _no_moments() -> pd.DataFrame:
    return pd.DataFrame(columns=[*_READ, _SCORE, "peak_start_s", "peak_end_s", "num_windows"])


def _highest(best: pd.DataFrame, found: pd.DataFrame, top: int) -> pd.DataFrame:
    known = [frame for frame in (best, found) if len(frame)]
    return pd.concat(known, ignore_index=True).nlargest(top, _SCORE, keep="first") if known else best


class _Joined:
    """What a condition says of windows and of their calls at once.

    What calls alone can decide is decided first, so that only the windows of calls that match are read
    (``on_windows``); then all of it is, on windows that have their call's columns beside them.
    """

    def __init__(self, results: Results, where: str, named: Set[str]) -> None:
        columns = moment_columns(results)
        parts = [ds.field("channel").is_valid()]
        parts += [part.expression for part in parse_condition(where, columns) if part.names <= named]
        about = {name: ds.field(name) for name in (*_KEYS, *([DAY] if results.by_day else []))}
        about |= {f"{_NAMED}{name}": columns[name].expression for name in named}
        found = list(results.batches(results.calls, about, reduce(pc.and_kleene, parts)))
        calls = pa.concat_tables([with_texts(rows) for rows in found]) if found else None
        self._calls = calls.to_pandas(types_mapper=pd.ArrowDtype) if calls is not None else pd.DataFrame()
        self._where, self._columns = where, columns
        ids = calls["call_id"].unique() if calls is not None else pa.array([], pa.string())
        self.on_windows = [ds.field("call_id").isin(ids)]
        if results.by_day:
            self.on_windows.append(ds.field(DAY).isin(calls[DAY].unique() if calls is not None else ids))

    def matching(self, windows: pa.Table) -> pa.Table:
        """Return the windows that match, in their order; texts are plain."""
        if not len(self._calls) or not windows.num_rows:
            return windows.slice(0, 0)
        rows = windows.to_pandas(types_mapper=pd.ArrowDtype)
        joined = pa.Table.from_pandas(
            rows.merge(self._calls.drop(columns=[DAY], errors="ignore"), on=list(_KEYS), how="inner"),
            preserve_index=False,
        ).replace_schema_metadata(None)  # which would ask for pandas types of its own again
        named = {
            name: Column(column.type, pc.field(f"{_NAMED}{name}"))
            for name, column in self._columns.items()
            if f"{_NAMED}{name}" in joined.schema.names
        }
        whole = [part.expression for part in parse_condition(self._where, named)]
        return joined.filter(reduce(pc.and_kleene, whole))


class _Runs:
    """Windows that follow each other, put together across the pieces in which they are read."""

    def __init__(self) -> None:
        self._open: pd.DataFrame | None = None  # of the last run, which may go on

    def add(self, windows: pd.DataFrame) -> pd.DataFrame:
        """Take windows in, in their order, and return the runs that have ended, one a row."""
        rows = windows[windows[_SCORE].notna()]
        if self._open is not None:
            rows = pd.concat([self._open, rows], ignore_index=True)
        if rows.empty:
            return _no_moments()
        rows = rows.reset_index(drop=True)
        run = _runs_of(rows)
        self._open = rows[run == run.iloc[-1]]
        ended = run < run.iloc[-1]
        return _merged(rows[ended], run[ended])

    def end(self) -> pd.DataFrame:
        """Return the last run."""
        if self._open is None:
            return _no_moments()
        return _merged(self._open, pd.Series(0, index=self._open.index))


def _runs_of(windows: pd.DataFrame) -> pd.Series:
    """Number the runs of windows that follow each other on a channel, each of a minute at most."""
    follows = pd.Series(data=True, index=windows.index)
    for name, step in (("call_id", None), ("channel", 0), ("segment", 1)):
        column = windows[name]
        follows &= (column == column.shift()) if step is None else (column - column.shift() == step)
    run = (~follows).cumsum()
    part = run.groupby(run).cumcount() // _MOST_WINDOWS
    return ((~follows) | (part != part.shift())).cumsum()


def _merged(windows: pd.DataFrame, run: pd.Series) -> pd.DataFrame:
    """Make one row of each run; the score, emotion and confidence are those of its highest window."""
    groups = windows.groupby(run, sort=True)
    best = windows.loc[groups[_SCORE].idxmax()].reset_index(drop=True)
    return best.assign(
        peak_start_s=best["start_s"],
        peak_end_s=best["end_s"],
        start_s=groups["start_s"].min().to_numpy(),
        end_s=groups["end_s"].max().to_numpy(),
        num_windows=groups.size().to_numpy(),
    )


def _with_calls(results: Results, moments: pd.DataFrame, names: Sequence[str]) -> list[Moment]:
    call_ids = pa.array(moments["call_id"].unique().tolist(), pa.string())
    read = list(dict.fromkeys([*_KEYS, *names]))
    calls = results.read_calls(read, ds.field("call_id").isin(call_ids) & ds.field("channel").is_valid())
    rows = {(row["call_id"], int(row["channel"])): row for row in records(calls)}
    return [
        Moment(
            call_id=row["call_id"],
            channel=int(row["channel"]),
            start_s=row["start_s"],
            end_s=row["end_s"],
            peak_start_s=row["peak_start_s"],
            peak_end_s=row["peak_end_s"],
            score=float(row[_SCORE]),
            emotion=row["emotion"],
            confidence=float(row["confidence"]),
            num_windows=row["num_windows"],
            call=rows.get((row["call_id"], int(row["channel"])), {}),
        )
        for row in records(moments)
    ]
