"""What listeners say windows really are → a manifest that ``batchser train`` and ``evaluate`` take as it is.

One row a window: of what was said of it the last word holds. The file is CSV or Parquet, by its name, and is written
anew beside its place each time, so that a training may read it meanwhile; what others have changed in it is read first.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from batchser.errors import ConfigError
from batchser.pages.sheets import spreadsheet_safe
from batchser.sink.files import placing

#: The manifest's columns first (training/corpora/manifest.py), then what tells where a label comes from.
COLUMNS: Final = (
    "path", "emotion", "speaker", "start_s", "end_s", "channel", "encoding", "rate_hz", "call_id", "listener", "note",
    "labelled_at", "model_emotion", "model_confidence", "model",
)  # fmt: skip
_WINDOW: Final = ("path", "start_s", "end_s", "channel")
_MOST_CHARACTERS: Final = 500


@dataclass(slots=True)
class Labels:
    """The labels in one file. Several threads may add to it, and several dashboards by turns."""

    path: Path
    _lock: threading.Lock

    def rows(self) -> list[dict[str, str]]:
        """Return all labels, in the order in which their windows were first named.

        Raises
        ------
        ConfigError : the file cannot be read any more
        """
        return _read(self.path) if self.path.exists() else []

    def of(self, path: str, channel: int) -> dict[float, str]:
        """Return what the windows of a channel of a recording are said to be, by their start in seconds."""
        rows = [row for row in self.rows() if row["path"] == path and row["channel"] == str(channel)]
        return {float(row["start_s"]): row["emotion"] for row in rows}

    def add(self, added: Sequence[Mapping[str, str]]) -> int:
        """Add labels, or replace those of the same windows; they are on disk when this returns. Returns how many are.

        Raises
        ------
        ConfigError : the file cannot be read any more
        SinkError : the file cannot be written; the labels are not kept
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock, self._alone():
            rows = {_window(row): row for row in self.rows()}
            for row in added:
                said = {name: row.get(name, "") for name in COLUMNS} | {"labelled_at": now}
                said |= {name: said[name][:_MOST_CHARACTERS] for name in ("listener", "note")}
                rows[_window(said)] = said
            _write(self.path, list(rows.values()))
        return len(rows)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other dashboard write in between: the lock dies with its holder."""
        with self.path.with_name(f".{self.path.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def open_labels(path: Path) -> Labels:
    """Open a file of labels, which need not exist yet.

    Raises
    ------
    ConfigError : it is no file of labels, or has no folder
    """
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError(f"--labels {path}: expected a name that ends in .csv or .parquet")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--labels {path}: there is no folder {path.absolute().parent}; make it first")
    labels = Labels(path.absolute(), threading.Lock())
    labels.rows()
    return labels


def _window(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in _WINDOW)


def _read(path: Path) -> list[dict[str, str]]:
    try:
        if path.suffix.lower() == ".parquet":
            rows = pq.read_table(path).to_pylist()
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(f"--labels {path}: cannot be read ({error})") from error
    missing = [name for name in COLUMNS if rows and name not in rows[0]]
    if missing:
        raise ConfigError(
            f"--labels {path}: has no column {', '.join(missing)}; expected a file that a dashboard wrote"
        )
    return [{name: "" if row[name] is None else str(row[name]) for name in COLUMNS} for row in rows]


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with placing(path) as temporary:
        if path.suffix.lower() == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows), pa.schema([(n, pa.string()) for n in COLUMNS])), temporary)
            return
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            # A path is the one cell that must stay as it is; it begins with / or a protocol.
            writer.writerows([row[n] if n == "path" else spreadsheet_safe(row[n]) for n in COLUMNS] for row in rows)
