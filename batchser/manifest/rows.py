"""One CSV or Parquet manifest → its rows, checked: every fault is told at once, with its line and column.

The half of ``manifest`` that knows cells and types; it never looks at a recording. CSV is UTF-8 with a header row,
its delimiter the comma, semicolon or tab that the header shows. Only an empty cell is null. An own column becomes
a number, a boolean, a date or a time only where that loses nothing: ``007`` and ``+49301234`` stay text.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchser.records import ROLES
from batchser.settings import ENCODINGS

#: The columns that mean something to batchser; every other one is the manifest's own.
KNOWN_COLUMNS: Final = ("path", "call_id", "roles", "started_at", "encoding", "rate_hz")

#: Rows of a manifest unless told otherwise, and what a Parquet manifest may unpack to.
MAX_ROWS: Final = 1_000_000
_MAX_UNPACKED_BYTES: Final = 2**30
_BATCH_ROWS: Final = 4096
_HEADER_CHARACTERS: Final = 2**16  # in which a CSV's header shows its delimiter

#: What people call the ``path`` column when they do not know its name.
_PATH_SYNONYMS: Final = ("file", "filename", "file_name", "filepath", "file_path", "recording", "audio", "url", "uri")

_ZONE: Final = r"(?:Z|[+-]\d{2}:?\d{2})"
_DAY_TIME: Final = r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?"
#: The first pattern that every cell of a CSV column fits gives its type. No leading zeros or plus signs: those are
#: extensions and telephone numbers. Unsigned exponents are not numbers either (``12e34`` is an id; repr() signs them),
#: nor are whole parts that a float64 cannot hold.
_CSV_TYPES: Final = (
    (r"^-?(?:0|[1-9]\d*)$", pa.int64()),
    (r"^-?(?:(?:0|[1-9]\d{0,14})(?:\.\d*)?|\.\d+)(?:[eE][+-]\d{1,3})?$", pa.float64()),
    (r"^(?:true|false|True|False|TRUE|FALSE)$", pa.bool_()),
    (r"^\d{4}-\d{2}-\d{2}$", pa.date32()),
    (f"^{_DAY_TIME}$", pa.timestamp("us")),
    (f"^{_DAY_TIME}{_ZONE}$", pa.timestamp("us", "UTC")),
)


@dataclass(slots=True)
class ManifestRows:
    """Parallel lists, one entry a row; ``columns`` holds the own columns, ``faults`` all that is wrong.

    A row's number is the line on which it starts (CSV, the header being line 1) or its position from 1 (Parquet);
    ``unit`` says which. A row without a usable path has the path ``""``, and a fault.
    """

    source: str
    unit: str
    numbers: Sequence[int]
    columns: pa.Table
    paths: list[str] = field(default_factory=list)
    call_ids: list[str | None] = field(default_factory=list)
    roles: list[tuple[str, ...] | None] = field(default_factory=list)
    started_at: list[datetime | None] = field(default_factory=list)
    encodings: list[str | None] = field(default_factory=list)
    rates_hz: list[int | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def of_files(cls, source: str, paths: list[str]) -> ManifestRows:
        """Make rows of files found without a manifest, so that nothing is known but their paths."""
        unknown = [None] * len(paths)
        rows = cls(source, "", range(len(paths)), table_of({}, len(paths)), paths, list(unknown), list(unknown))
        rows.started_at, rows.encodings, rows.rates_hz = list(unknown), list(unknown), list(unknown)
        rows.faults = [
            f"{source}: the file name {os.fsencode(path)!r} is not UTF-8, which the tables need; rename it"
            for path in paths
            if path != path.encode(errors="replace").decode()
        ]
        return rows


@dataclass(slots=True)
class _Raw:
    """A manifest as read, before any cell is checked.

    ``faults`` are (line or row, message), number 0 for the whole file; ``head`` is the number of the header's own.
    """

    unit: str
    head: int = 0
    names: list[str] = field(default_factory=list)
    numbers: Sequence[int] = ()
    known: dict[str, list[Any]] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)
    readable: bool = False


def read_rows(
    source: str, data: bytes, *, parquet: bool, reserved: Collection[str], max_rows: int = MAX_ROWS
) -> ManifestRows:
    """Read and check one manifest.

    Parameters
    ----------
    source
        Its name, as the user wrote it; every fault begins with it.
    data
        The file's bytes.
    parquet
        Whether it is Parquet; CSV otherwise.
    reserved
        Names that an own column must not have.
    max_rows
        More are a fault, told before they are taken in.

    Returns
    -------
    ManifestRows
        The rows; not to be used where it carries faults.
    """
    raw = _read_parquet(data, max_rows) if parquet else _read_csv(data, max_rows)
    if raw.readable:
        raw.faults += [(raw.head, text) for text in _header_faults(raw, reserved)]
    cells = {name: _checked(raw, name, parse) for name, parse in _PARSERS.items()}
    rates_hz = [
        8000 if rate is None and encoding is not None else rate
        for encoding, rate in zip(cells["encoding"], cells["rate_hz"], strict=True)
    ]
    raw.faults.sort(key=lambda fault: fault[0])  # stable: a line's faults stay in the order of the columns
    return ManifestRows(
        source=source,
        unit=raw.unit,
        numbers=raw.numbers,
        columns=table_of(raw.own, len(raw.numbers)),
        paths=[path or "" for path in cells["path"]],
        call_ids=cells["call_id"],
        roles=cells["roles"],
        started_at=cells["started_at"],
        encodings=cells["encoding"],
        rates_hz=rates_hz,
        faults=[f"{source}: {f'{raw.unit} {number}' if number else ''}{text}" for number, text in raw.faults],
    )


def table_of(columns: dict[str, Any], num_rows: int) -> pa.Table:
    """Build a table of these columns, with ``num_rows`` rows even where there is no column."""
    table = pa.table({"": pa.nulls(num_rows), **columns})
    return table.select(list(columns))


def _header_faults(raw: _Raw, reserved: Collection[str]) -> Iterator[str]:
    """Say what is wrong with the columns as a whole."""
    colon = ": " if raw.unit == "line" else ""
    if "path" not in raw.names:
        near = _near_path(raw.names)
        remedy = f"; is '{near}' meant? rename it" if near else ""
        yield f"{colon}no column 'path'; found {', '.join(map(repr, raw.names)) or 'no columns'}{remedy}"
    for name in raw.own:
        if name in reserved:
            yield f"{colon}column {name!r} is a name of the calls table; rename it"
    if not len(raw.numbers) and not raw.faults:
        yield f"{colon}no rows; expected one row per recording"


def _near_path(names: list[str]) -> str | None:
    """Find the column that is probably meant as ``path``."""
    folded = {name.strip().lower(): name for name in reversed(names)}
    for wanted in ("path", *_PATH_SYNONYMS):
        if wanted in folded:
            return folded[wanted]
    close = difflib.get_close_matches("path", folded, n=1)
    return folded[close[0]] if close else None


def _checked(raw: _Raw, name: str, parse: Callable[[Any], Any]) -> list[Any]:
    """Parse each cell of a known column; what ``parse`` refuses becomes a fault and None."""
    if name not in raw.known:
        return [None] * len(raw.numbers)
    parsed = []
    for number, cell in zip(raw.numbers, raw.known[name], strict=True):
        value = None
        try:
            value = parse(cell)
        except ValueError as error:
            shown = repr(cell) if len(repr(cell)) <= 80 else repr(cell)[:77] + "..."
            received = "is empty" if cell is None or not str(cell).strip() else f"received {shown}"
            raw.faults.append((number, f", column '{name}': {received}, expected {error}"))
        parsed.append(value)
    return parsed


def _read_csv(data: bytes, max_rows: int) -> _Raw:
    """Read a CSV manifest's cells and infer the types of its own columns."""
    raw = _Raw("line")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raw.faults.append((line, f": not UTF-8 (byte 0x{data[error.start]:02x}); save it as CSV UTF-8"))
        return raw
    rows = _csv_rows(data, raw)
    raw.head, header = next(rows, (1, []))
    raw.names = [name.strip() for name in header]
    if not raw.names:
        raw.faults.append((1, ": empty; expected a header row with the column 'path'"))
        return raw
    faults = list(_name_faults(raw.names))
    raw.faults += [(raw.head, f": {text}") for text in faults]
    kept = [(line, row) for line, row in islice(rows, max_rows + 1) if _fits(line, row, raw)]
    if len(kept) > max_rows:
        raw.faults.append((0, _too_many(f"more than {max_rows} rows", max_rows)))
        raw.numbers = []
        return raw
    raw.numbers = [line for line, _ in kept]
    if faults:
        raw.numbers = []  # which cell belongs to which column is not known
        return raw
    raw.readable = True
    cells = zip(*(row for _, row in kept), strict=True) if kept else ([] for _ in raw.names)
    for name, column in zip(raw.names, cells, strict=True):
        values = [cell or None for cell in column]
        if name in KNOWN_COLUMNS:
            raw.known[name] = values
        else:
            raw.own[name] = _inferred(pa.array(values, pa.string()))
    return raw


def _csv_rows(data: bytes, raw: _Raw) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line on which it starts; rows without any content are passed over."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    first_line = re.sub(r'"[^"]*"?', "", text.read(_HEADER_CHARACTERS).lstrip("\r\n").partition("\n")[0])
    text.seek(0)
    delimiter = "," if "," in first_line else max(";\t", key=first_line.count)
    if not first_line.count(delimiter):
        delimiter = ","
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raw.faults.append((line, f": not readable as CSV from here on ({error}); are its quotes closed?"))
            return
        # Spreadsheets leave ",,," below the data. A lone quoted "" is a path that somebody left empty.
        if any(cell.strip() for cell in row) or row == [""]:
            yield line, row


def _fits(line: int, row: list[str], raw: _Raw) -> bool:
    """Say whether a row has as many cells as the header; a fault where not."""
    if len(row) != len(raw.names):
        told = f": {len(row)} cells, expected {len(raw.names)}; put a cell that holds the delimiter in double quotes"
        raw.faults.append((line, told))
    return len(row) == len(raw.names)


def _name_faults(names: list[str]) -> Iterator[str]:
    """Say which columns have no name, or one that another column has too."""
    for position, name in enumerate(names, 1):
        if not name:
            yield f"column {position} has no name; name it or leave it out (pandas: to_csv(..., index=False))"
    for name, count in Counter(names).items():
        if name and count > 1:
            yield f"column {name!r} stands {count} times; rename or drop all but one"


def _inferred(text: pa.Array) -> pa.Array:
    """Give a column of CSV text the narrowest type that loses nothing."""
    if text.null_count == len(text):
        return pa.nulls(len(text))
    trimmed = pc.utf8_trim_whitespace(text)
    for pattern, kind in _CSV_TYPES:
        if pc.all(pc.match_substring_regex(trimmed, pattern)).as_py():
            try:
                return trimmed.cast(kind)
            except pa.ArrowInvalid:  # too large a number, or no such day: it stays text
                continue
    return text


def _read_parquet(data: bytes, max_rows: int) -> _Raw:
    """Read a Parquet manifest; own columns keep their types, pandas' nameless index goes."""
    raw = _Raw("row")
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        batches, num_rows, num_bytes = [], 0, 0
        for batch in file.iter_batches(_BATCH_ROWS):  # what its footer says of sizes need not be true
            batches.append(batch)
            num_rows, num_bytes = num_rows + batch.num_rows, num_bytes + batch.nbytes
            if num_rows > max_rows or num_bytes > _MAX_UNPACKED_BYTES:
                raw.faults.append((0, _too_many(f"{num_rows} rows of {num_bytes} bytes or more", max_rows)))
                return raw
        table = pa.Table.from_batches(batches, file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raw.faults.append((0, f"not readable as Parquet ({error})"))
        return raw
    indices = [name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)]
    raw.names = [name for name in table.column_names if name not in indices]
    faults = list(_name_faults(raw.names))
    raw.faults += [(0, text) for text in faults]
    if faults:
        return raw
    raw.readable = True
    raw.numbers = range(1, table.num_rows + 1)
    for name in raw.names:
        if name not in KNOWN_COLUMNS:
            raw.own[name] = table[name]
            continue
        try:
            raw.known[name] = _plain_values(name, table[name])
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raw.faults.append((0, f"column '{name}' has the type {table[name].type}: {error}"))
    return raw


def _too_many(received: str, max_rows: int) -> str:
    return f"has {received}, expected at most {max_rows} rows; divide it, or raise --max-rows"


def _plain_values(name: str, column: pa.ChunkedArray) -> list[Any]:
    """Turn a known Parquet column into Python values; ValueError where its type cannot mean this column."""
    kinds = pa.types
    if kinds.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    accepted = kinds.is_null(kind) or _is_text(kind)
    if name == "started_at" and (kinds.is_timestamp(kind) or kinds.is_date(kind)):
        # Arrow stores zoned times as UTC; what has no zone is UTC by the manifest's rule.
        column, accepted = column.cast(pa.timestamp("us"), safe=False), True
    elif name == "roles" and (kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)):
        accepted = _is_text(kind.value_type) or kinds.is_null(kind.value_type)
    elif name in ("call_id", "rate_hz"):
        accepted |= kinds.is_integer(kind) or (name == "rate_hz" and kinds.is_floating(kind))
    if not accepted:
        raise ValueError(f"expected {_PARQUET_TYPES[name]}")
    values: list[Any] = column.to_pylist()
    return values


_PARQUET_TYPES: Final = {
    "path": "text",
    "call_id": "text or integers",
    "roles": "text or lists of text",
    "started_at": "timestamps, dates or text",
    "encoding": "text",
    "rate_hz": "integers",
}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parse_path(cell: str | None) -> str:
    path = (cell or "").strip()
    if not path or "\0" in path:
        raise ValueError("the path of a recording")
    return path


def _parse_call_id(cell: str | int | None) -> str | None:
    return None if cell is None else str(cell).strip() or None


def _parse_roles(cell: str | list[str | None] | None) -> tuple[str, ...] | None:
    if not cell or (isinstance(cell, str) and not cell.strip()):
        return None
    given = cell.split(",") if isinstance(cell, str) else cell
    roles = tuple((role or "").strip().lower() for role in given)
    if not set(roles) <= set(ROLES):
        raise ValueError(f"a comma list, one of {', '.join(ROLES)} per channel")
    return roles


def _parse_started_at(cell: str | datetime | None) -> datetime | None:
    if cell is None or isinstance(cell, datetime):
        return cell and cell.replace(tzinfo=UTC)
    if not cell.strip():
        return None
    try:
        stated = datetime.fromisoformat(cell.strip())
        return stated.replace(tzinfo=UTC) if stated.tzinfo is None else stated.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("ISO 8601, such as 2025-01-31T09:30:00+01:00") from None


def _parse_encoding(cell: str | None) -> str | None:
    encoding = (cell or "").strip() or None
    if encoding not in (None, *ENCODINGS):
        raise ValueError(f"one of {', '.join(ENCODINGS)}")
    return encoding


def _parse_rate_hz(cell: str | float | None) -> int | None:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or not str(cell).strip():
        return None
    # pandas writes integers beside empty cells as 8000.0
    digits = re.fullmatch(r"([0-9]{1,9})(?:\.0+)?", str(cell).strip())
    if not digits or not int(digits[1]):
        raise ValueError("a positive integer, such as 8000")
    return int(digits[1])


_PARSERS: Final[dict[str, Callable[[Any], Any]]] = {
    "path": _parse_path,
    "call_id": _parse_call_id,
    "roles": _parse_roles,
    "started_at": _parse_started_at,
    "encoding": _parse_encoding,
    "rate_hz": _parse_rate_hz,
}
