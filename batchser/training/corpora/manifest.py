"""A manifest of one's own labelled calls, CSV or Parquet, and the corpora's ``index.csv`` with folds and votes.

Manifest columns: ``path``, ``emotion``, ``speaker``; ``start_s``, ``end_s`` (empty: the recording's beginning, end),
``channel`` (from 0; empty: all, mixed), ``corpus``, ``fold``, ``sex`` (female, male), ``age``; ``encoding`` and
``rate_hz`` of headerless audio. Others are left alone.
A relative path is relative to the manifest's folder. Structural faults are told all at once, with their lines.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from batchser.errors import ConfigError
from batchser.settings import ENCODINGS
from batchser.training.corpora.clips import Clip, Fault
from batchser.training.corpora.labels import BOREDOM, LABELS, WORDS

MANIFEST_SUFFIXES: Final = (".csv", ".parquet")

_REQUIRED: Final = ("path", "emotion", "speaker")
_SEXES: Final[Mapping[str, str]] = {"female": "female", "f": "female", "male": "male", "m": "male"}


def is_manifest(name: str) -> bool:
    """Say whether a corpus of a recipe is a manifest's path rather than a corpus's name."""
    return name.lower().endswith(MANIFEST_SUFFIXES)


def read_manifest(path: Path) -> tuple[list[Clip], list[Fault]]:
    """Read the clips of a manifest; those whose recording is not there are faults.

    ``emotion`` of a clip is one of LABELS, or ``boredom``.

    Raises
    ------
    ConfigError : no such file, no such columns, or cells that cannot be read; all lines at once
    """
    if not path.is_file():
        raise ConfigError(f"corpora: {path}: no such file; a manifest's path is absolute or relative to --data")
    unit = "row" if path.suffix.lower() == ".parquet" else "line"
    clips: list[Clip] = []
    wrong: list[str] = []
    for number, row in _parquet_rows(path) if unit == "row" else _csv_rows(path):
        if isinstance(row, str):
            wrong.append(f"{path}: {unit} {number}: {row}")
            continue
        cells = _Cells(row)
        clips.append(_clip_of(cells, path))
        wrong += [f"{path}: {unit} {number}, column '{column}': {text}" for column, text in cells.faults]
    if wrong:
        raise ConfigError(wrong)
    missing = {clip.path for clip in clips if not clip.path.is_file()}
    faults = [Fault(c.corpus, c.place, "missing", f"{path.name} lists it") for c in clips if c.path in missing]
    return [clip for clip in clips if clip.path not in missing], faults


@dataclass(slots=True)
class _Cells:
    """A row's cells, read one by one; what a reader refuses becomes a fault and None."""

    row: Mapping[str, str]
    faults: list[tuple[str, str]] = field(default_factory=list)

    def read(self, column: str, parse: Callable[[str], Any]) -> Any:
        text = self.row.get(column, "")
        if not text:
            if column in _REQUIRED:
                self.faults.append((column, "is empty"))
            return None
        try:
            return parse(text)
        except ValueError as error:
            self.faults.append((column, f"received {text!r}, expected {error}"))
            return None


def _clip_of(cells: _Cells, manifest: Path) -> Clip:
    place = cells.read("path", str)
    start_s, end_s = cells.read("start_s", _seconds), cells.read("end_s", _seconds)
    if end_s is not None and end_s <= (start_s or 0.0):
        cells.faults.append(("end_s", f"received {end_s:g}, expected more than start_s ({start_s or 0.0:g})"))
    return Clip(
        corpus=cells.read("corpus", str) or manifest.stem,
        path=manifest.parent / (place or ""),
        speaker=cells.read("speaker", str) or "",
        emotion=cells.read("emotion", _emotion) or "",
        fold=cells.read("fold", _whole),
        start_s=start_s or 0.0,
        end_s=end_s,
        channel=cells.read("channel", _whole),
        sex=cells.read("sex", _sex),
        age=cells.read("age", _whole),
        encoding=cells.read("encoding", _encoding),
        rate_hz=cells.read("rate_hz", _whole),
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError("seconds from 0 on, such as 12.5")
    return value


def _whole(text: str) -> int:
    digits = re.fullmatch(r"([0-9]{1,6})(?:\.0+)?", text)  # pandas writes 1.0 beside empty cells
    if not digits:
        raise ValueError("a whole number from 0 on")
    return int(digits[1])


def _emotion(text: str) -> str:
    word = text.lower().replace(" ", "_")
    if word not in WORDS:
        raise ValueError(f"one of {', '.join(LABELS)}, {BOREDOM}")
    return WORDS[word]


def _encoding(text: str) -> str:
    if text not in ENCODINGS:
        raise ValueError(f"one of {', '.join(ENCODINGS)}")
    return text


def _sex(text: str) -> str:
    if text.lower() not in _SEXES:
        raise ValueError("female or male")
    return _SEXES[text.lower()]


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield the line on which a row starts and its cells, or what is wrong with it; empty rows are passed over."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8; save it as CSV UTF-8") from None
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_columns(path, names)
        line = reader.line_num + 1
        for row in reader:
            cells = [cell.strip() for cell in row]
            if len(cells) > len(names):
                told = (
                    f"{len(cells)} cells, expected {len(names)}; put a cell that holds the delimiter in double quotes"
                )
                yield line, told
            elif any(cells):
                yield line, dict(zip(names, cells, strict=False))  # a short row's last cells are empty
            line = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: not readable as CSV ({error})") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not readable as Parquet ({error})") from error
    _check_columns(path, table.column_names)
    for number, row in enumerate(table.to_pylist(), 1):
        yield number, {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> str:
    nothing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if nothing else str(value).strip()


def _check_columns(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise ConfigError(
            f"{path}: no column {', '.join(missing)}; expected {', '.join(_REQUIRED)} and, for parts of recordings, "
            "start_s, end_s"
        )


@dataclass(frozen=True, slots=True)
class Index:
    """What ``index.csv`` adds to the corpora beside it: by path, folds and listeners' votes; ``listed`` by corpus."""

    folds: Mapping[Path, int | None] = field(default_factory=dict)
    votes: Mapping[Path, Mapping[str, int]] = field(default_factory=dict)
    listed: Mapping[str, Sequence[Path]] = field(default_factory=dict)


def read_index(data: Path) -> Index:
    """Read ``index.csv`` of the corpora's folder (columns corpus, path; fold, votes_<label>); empty where none is.

    Raises
    ------
    ConfigError : no such columns, or folds and votes that are no whole numbers; all lines at once
    """
    path = data / "index.csv"
    if not path.is_file():
        return Index()
    folds: dict[Path, int | None] = {}
    votes: dict[Path, dict[str, int]] = {}
    listed: dict[str, list[Path]] = {}
    wrong = []
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        missing = [name for name in ("corpus", "path") if name not in (reader.fieldnames or ())]
        if missing:
            raise ConfigError(f"{path}: no column {', '.join(missing)}; expected corpus, path and, where known, fold")
        for row in reader:
            cells = _Cells({name: (cell or "").strip() for name, cell in row.items() if isinstance(name, str)})
            place = data / cells.row["path"]
            folds[place] = cells.read("fold", _whole)
            counts = {w: cells.read(f"votes_{w}", _whole) for w in LABELS}
            votes[place] = {word: count for word, count in counts.items() if count}
            listed.setdefault(cells.row["corpus"], []).append(place)
            wrong += [f"{path}: line {reader.line_num}, column '{c}': {text}" for c, text in cells.faults]
    if wrong:
        raise ConfigError(wrong)
    return Index(folds, votes, listed)
