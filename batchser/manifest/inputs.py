"""Folders, globs, CSV/Parquet manifests and URLs → Recordings in a stated order.

Nothing here opens a recording: one that is missing becomes a row of the results later. What is wrong with the inputs
themselves is told all at once, in one ConfigError.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import fsspec
import pyarrow as pa

from batchser.errors import ConfigError
from batchser.manifest.files import (
    absolute,
    find_files,
    identity,
    inside,
    is_pattern,
    is_url,
    split_url,
    suffix_of,
)
from batchser.manifest.rows import MAX_ROWS, ManifestRows, read_rows, table_of
from batchser.records import Recording

MANIFEST_SUFFIXES: Final = frozenset({".csv", ".parquet", ".pq"})

#: A manifest of more bytes is none: a million rows have some hundred million.
_MAX_BYTES: Final = 2**29

#: Faults shown; the others are counted.
MAX_FAULTS_SHOWN: Final = 50


@dataclass(frozen=True)
class Manifest:
    """All recordings of a run.

    ``recordings[i].index == i``; row i of ``columns`` has the own columns that the manifests gave recording i, with
    their types and null where its manifest has no such column. Without any own column the table has none, but
    ``num_rows`` still counts the recordings.
    """

    recordings: tuple[Recording, ...]
    columns: pa.Table


def read_inputs(inputs: Sequence[str], reserved: Collection[str], max_rows: int = MAX_ROWS) -> Manifest:
    """Read every INPUT, in order, into one manifest.

    Parameters
    ----------
    inputs
        CSV or Parquet manifests, folders, glob patterns, audio files and fsspec URLs of any of these. A file that
        several folders, globs or file names reach is taken once; a manifest's row always counts.
    reserved
        The names of the calls table's columns, which a manifest's own columns must not have.
    max_rows
        A manifest of more is refused before it is taken in.

    Returns
    -------
    Manifest
        The recordings, in the order of the inputs, of a manifest's rows and of sorted paths.

    Raises
    ------
    ConfigError
        With all faults of all inputs at once; past MAX_FAULTS_SHOWN the others are counted.
    """
    faults: list[str] = [] if inputs else ["no INPUT; expected a manifest, a folder, a glob, an audio file or a URL"]
    batches: list[_Batch] = []
    seen: set[str] = set()
    for given in inputs:
        try:
            batches += _read_input(given, reserved, seen, max_rows)
        except ConfigError as error:
            faults += error.faults
    faults += chain.from_iterable(batch.rows.faults for batch in batches)
    call_ids, id_faults = _call_ids(batches)
    columns, column_faults = _united([(batch.rows.source, batch.rows.columns) for batch in batches])
    faults += id_faults + column_faults
    if faults:
        more = len(faults) - MAX_FAULTS_SHOWN
        raise ConfigError(faults[:MAX_FAULTS_SHOWN] + ([f"and {more} more faults"] if more > 0 else []))
    rows = chain.from_iterable(
        zip(b.rows.paths, b.rows.roles, b.rows.started_at, b.rows.encodings, b.rows.rates_hz, strict=True)
        for b in batches
    )
    recordings = (Recording(i, call_id, *row) for i, (call_id, row) in enumerate(zip(call_ids, rows, strict=True)))
    return Manifest(tuple(recordings), columns)


@dataclass(slots=True)
class _Batch:
    """What one INPUT gave: its rows, each path relative to the input, and the name of the input's folder."""

    rows: ManifestRows
    relatives: list[str]
    folder: str = ""

    def where(self, position: int) -> str:
        """Say where a row stands, for a message."""
        rows = self.rows
        return f"{rows.source}: {rows.unit} {rows.numbers[position]}" if rows.unit else rows.paths[position]


def _read_input(given: str, reserved: Collection[str], seen: set[str], max_rows: int) -> list[_Batch]:
    """Read one INPUT; ``seen`` has the files already taken."""
    if not given.strip():
        raise ConfigError("an INPUT is empty; expected a manifest, a folder, a glob, an audio file or a URL")
    suffix = suffix_of(split_url(given)[1])
    is_manifest = suffix in MANIFEST_SUFFIXES and (is_url(given) or not Path(given).is_dir())
    try:
        if is_manifest and not is_pattern(given):
            return [_manifest_batch(given, suffix, reserved, max_rows)]
        files = find_files(given)
        if is_manifest:
            return [_manifest_batch(path, suffix, reserved, max_rows) for path in files.found]
    except FileNotFoundError:
        raise ConfigError(f"{given}: no such file or folder") from None
    except (OSError, ImportError, ValueError) as error:  # not permitted, no driver for the URL, no such protocol
        raise ConfigError(f"{given}: cannot be read: {error}") from error
    fresh: dict[str, str] = {}
    real_folders: dict[str, str] = {}
    for path, relative in files.found.items():
        key = identity(path, real_folders)
        if key not in seen:
            fresh[path] = relative
        seen.add(key)
    rows = ManifestRows.of_files(given, list(fresh))
    return [_Batch(rows, list(fresh.values()), _name_of(files.root))]


def _manifest_batch(given: str, suffix: str, reserved: Collection[str], max_rows: int) -> _Batch:
    """Read a manifest and make its paths absolute."""
    opening, here, closing = split_url(given if is_url(given) else absolute(given))
    folder = opening + posixpath.dirname(here)
    with fsspec.open(given, "rb") if opening else Path(given).open("rb") as file:
        num_bytes = file.seek(0, 2)
        if num_bytes > _MAX_BYTES:
            raise ConfigError(f"{given}: has {num_bytes} bytes, expected a manifest of at most {_MAX_BYTES}; divide it")
        file.seek(0)
        data = file.read()
    rows = read_rows(given, data, parquet=suffix != ".csv", reserved=reserved, max_rows=max_rows)
    beginning = inside(folder, "")
    relatives = []
    for position, written in enumerate(rows.paths):
        if not written:
            relatives.append("")
            continue
        if is_url(written):
            path = written
        elif written.startswith("/") or not opening:
            path = absolute(written, folder)
        else:
            path = opening + posixpath.normpath(posixpath.join(posixpath.dirname(here), written)) + closing
        rows.paths[position] = path
        below = path.startswith(beginning) and path.endswith(closing)
        bare = path[len(beginning) :].removesuffix(closing) if below else split_url(path)[1]
        relatives.append(re.sub(r"^(?:\.\.?/|/)+", "", posixpath.normpath(bare)) or path)
    return _Batch(rows, relatives, _name_of(folder))


def _name_of(folder: str) -> str:
    return posixpath.basename(posixpath.normpath(folder))


def _call_ids(batches: Sequence[_Batch]) -> tuple[list[str], list[str]]:
    """Give every recording its call_id: the stated one, else the shortest default that no other has.

    Returns
    -------
    tuple of list
        The call_ids, and the faults: an id stated twice, and defaults that stay the same.
    """
    ids: list[str] = []
    defaults: dict[int, tuple[str, ...]] = {}  # index → the longer names left, the next one first
    stated_at: dict[str, tuple[_Batch, int]] = {}
    faults = []
    for batch in batches:
        for position, (stated, relative) in enumerate(zip(batch.rows.call_ids, batch.relatives, strict=True)):
            if stated in stated_at:
                other, at = stated_at[stated]
                there = f"{other.rows.unit} {other.rows.numbers[at]}" if other is batch else other.where(at)
                faults.append(f"{batch.where(position)}, column 'call_id': {stated!r} stands already at {there}")
            elif stated is not None:
                stated_at[stated] = batch, position
            elif relative:
                defaults[len(ids)] = (relative, posixpath.join(batch.folder, relative))
            ids.append(posixpath.splitext(relative)[0] if stated is None else stated)
    while True:  # a longer name may meet another one, so until nothing changes: three rounds as a rule
        count = Counter(ids)
        clashing = [index for index in defaults if count[ids[index]] > 1]
        lengthened = [index for index in clashing if defaults[index]]
        if not lengthened:
            return ids, [*faults, *_default_faults(ids, clashing, batches)]
        for index in lengthened:
            ids[index], defaults[index] = defaults[index][0], defaults[index][1:]


def _default_faults(ids: list[str], clashing: list[int], batches: Sequence[_Batch]) -> Iterator[str]:
    """Say which default call_ids are the same although nothing is left to lengthen them by."""
    places = [(batch, position) for batch in batches for position in range(len(batch.relatives))] if clashing else []
    owners: dict[str, int] = {}
    for index in (*sorted(set(range(len(places))).difference(clashing)), *clashing):
        owner = owners.setdefault(ids[index], index)
        if owner != index:
            (batch, position), (other, at) = places[index], places[owner]
            told = f"the default call_id {ids[index]!r} is also that of {other.where(at)}; state one in a manifest"
            yield f"{batch.where(position)}: {told}"


def _united(tables: Sequence[tuple[str, pa.Table]]) -> tuple[pa.Table, list[str]]:
    """Put the own columns of all inputs below each other, by name; integers may widen, nothing else changes.

    Returns
    -------
    tuple of pyarrow.Table and list of str
        One row a recording, and a fault for each column whose types do not go together.
    """
    faults = []
    united: dict[str, Any] = {}
    for name in dict.fromkeys(chain.from_iterable(table.column_names for _, table in tables)):
        having = [(source, table[name].type) for source, table in tables if name in table.column_names]
        try:
            kind = _common_type([kind for _, kind in having])
            chunks = [
                table[name].cast(kind).chunks if name in table.column_names else [pa.nulls(table.num_rows, kind)]
                for _, table in tables
            ]
            united[name] = pa.chunked_array(list(chain.from_iterable(chunks)), kind)
        except pa.ArrowException:
            told = ", ".join(f"{kind} in {source}" for source, kind in having)
            faults.append(f"column {name!r} has types that do not go together: {told}; make them the same")
    return table_of(united, sum(table.num_rows for _, table in tables)), faults


def _common_type(kinds: list[pa.DataType]) -> pa.DataType:
    """Find the type that holds all of these; text where no row has a value."""
    if len(set(kinds)) > 1:  # a category among texts is a text
        kinds = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in kinds]
    schemas = [pa.schema([("", kind)]) for kind in kinds]
    kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    return pa.string() if pa.types.is_null(kind) else kind
