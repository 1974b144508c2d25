"""Forgetting: days past their retention, and single calls wherever they stand in a dataset."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchser.errors import ConfigError
from batchser.sink.commit import WORK, Commit
from batchser.sink.dataset import checked_place, hold
from batchser.sink.days import days_of, days_of_calls, rows_without
from batchser.sink.ledger import LEDGER, ledger_name
from batchser.sink.rows import write_rows
from batchser.sink.store import Store


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """What was forgotten, or would be: whole days by name, single calls, and calls that stand nowhere."""

    days: tuple[str, ...]
    calls: tuple[str, ...]
    unknown: tuple[str, ...]


def vacuum(
    out: str | Path, *, before: date | None = None, call_ids: Collection[str] = (), dry_run: bool = False
) -> Vacuumed:
    """Remove all days before a date, and single calls with their windows, from a dataset on this machine or elsewhere.

    What a run that died has left is committed first, so that nothing of a call stays behind in a part.

    Raises
    ------
    ConfigError : there is no dataset, or a run is at work on it
    SinkError : the store refuses; the same command goes on
    """
    store = checked_place(out)
    if not store.names("_batchser"):
        raise ConfigError(f"{out}: is no dataset of batchser; expected a folder or URL that a run had as --out")
    lock = hold(store)
    try:
        days = days_of(store)
        old = tuple(day for day in days if before is not None and day < f"call_date={before}")
        kept = [day for day in days if day not in old]
        found = days_of_calls(store, kept, pa.array(sorted(call_ids), pa.string()))
        calls = tuple(sorted(found))
        if not dry_run and (old or calls):
            commit = Commit(store)
            for day in old:
                _remove_day(commit, day)
            store.make(WORK)
            for day in sorted(set(found.values())):
                _erase(store, commit, day, pa.array(calls, pa.string()))
            commit.publish(lock.check)
    finally:
        lock.release()
    return Vacuumed(old, calls, tuple(sorted(set(call_ids) - set(calls))))


def _remove_day(commit: Commit, day: str) -> None:
    """Let a day go, the calls first: windows without a call mislead nobody."""
    for name in (f"calls/{day}/calls.parquet", f"segments/{day}/segments.parquet", ledger_name(day)):
        commit.remove(name)


def _erase(store: Store, commit: Commit, day: str, gone: pa.Array) -> None:
    """Write a day's files anew without some calls."""
    files = [f"calls/{day}/calls.parquet", f"segments/{day}/segments.parquet"]
    with store.open(files[0]) as opened:
        calls = pq.read_table(opened, columns=["call_id"])["call_id"].cast(pa.string())
    if pc.all(pc.is_in(calls, gone)).as_py():
        _remove_day(commit, day)
        return
    files += [name for name in [ledger_name(day)] if name in store.names(LEDGER)]
    for name in files:
        with store.open(name) as opened:
            schema = pq.read_schema(opened)
        with commit.placing(name) as temporary:
            write_rows(rows_without(store, name, gone), schema, temporary)
