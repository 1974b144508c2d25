"""Inputs become recordings in a stated order; every fault is told at once, with its line and column."""

from __future__ import annotations

import math
import os
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchser.errors import ConfigError
from batchser.manifest import UNKNOWN_SECONDS, Manifest, make_shards, read_inputs
from batchser.records import AUDIO_SUFFIXES, Recording

RESERVED = frozenset({"call_id", "path", "status", "emotion", "started_at", "channel"})
#: Hypothesis reuses tmp_path over its examples; every test that does so writes its files anew.
REUSES_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def read(*inputs: str) -> Manifest:
    return read_inputs(inputs, RESERVED)


def read_csv(text: str | bytes, name: str = "m.csv") -> Manifest:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(name)


def read_parquet(columns: dict[str, object] | pa.Table, name: str = "m.parquet") -> Manifest:
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), name)
    return read(name)


def faults_of(*inputs: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(*inputs)
    return caught.value.faults


def csv_faults(text: str | bytes, name: str = "m.csv") -> tuple[str, ...]:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return faults_of(name)


def ids(manifest: Manifest) -> list[str]:
    return [recording.call_id for recording in manifest.recordings]


def paths(manifest: Manifest) -> list[str]:
    return [recording.path for recording in manifest.recordings]


# Folders, globs, files


def test_folder_is_searched_sorted_without_hidden_files_and_headerless_audio(folder: Path) -> None:
    touch("calls/b.wav", "calls/a/2.MP3", "calls/a/1.flac", "calls/.trash/x.wav", "calls/.y.wav", "calls/notes.txt")
    touch("calls/raw.ulaw")
    manifest = read("calls")
    assert paths(manifest) == [f"{folder}/calls/{name}" for name in ("a/1.flac", "a/2.MP3", "b.wav")]
    assert ids(manifest) == ["a/1", "a/2", "b"]
    assert [recording.index for recording in manifest.recordings] == [0, 1, 2]
    assert manifest.columns.num_rows == 3
    assert manifest.columns.column_names == []


def test_a_folder_may_be_the_current_one_or_end_in_a_slash(folder: Path) -> None:
    touch("calls/a.wav")
    assert read("calls/").recordings == read("./calls").recordings == read(f"{folder}/calls").recordings
    assert ids(read(".")) == ["calls/a"]


def test_folder_without_audio_names_the_suffixes() -> None:
    touch("calls/notes.txt")
    (fault,) = faults_of("calls")
    assert fault.startswith("calls: no audio found; looked for .3g2 .3gp .3gpp ")
    assert all(suffix in fault for suffix in AUDIO_SUFFIXES)


def test_linked_folders_are_followed_once_and_loops_end(folder: Path) -> None:
    touch("store/a.wav")
    Path("calls").mkdir()
    Path("calls/today").symlink_to(folder / "store")
    Path("store/loop").symlink_to(folder / "calls")
    assert paths(read("calls")) == [f"{folder}/calls/today/a.wav"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_folder_that_cannot_be_listed_is_a_fault() -> None:
    touch("calls/a.wav", "calls/secret/b.wav")
    Path("calls/secret").chmod(0)
    try:
        assert "Permission denied" in faults_of("calls")[0]
    finally:
        Path("calls/secret").chmod(0o700)


def test_glob_is_expanded_by_us_and_its_fixed_root_is_not_in_the_ids(folder: Path) -> None:
    touch("calls/b/2.wav", "calls/a/1.wav", "calls/a/.3.wav", "calls/a/x.txt", "calls/dir.wav/4.wav")
    assert ids(read("calls/**/*.wav")) == ["a/1", "b/2", "dir.wav/4"]
    assert ids(read("calls/*/*")) == ["a/1", "b/2", "dir.wav/4"]
    assert paths(read(f"{folder}/calls/[ab]/?.wav")) == [f"{folder}/calls/a/1.wav", f"{folder}/calls/b/2.wav"]
    assert ids(read("calls/a/*.txt")) == ["x"], "a pattern that names its suffix is meant"


def test_glob_that_matches_nothing_is_a_fault() -> None:
    assert faults_of("*.wav") == ("*.wav: the pattern matches no file",)
    assert faults_of("*")[0].startswith("*: no audio found; looked for ")


def test_glob_of_manifests_reads_each() -> None:
    Path("n1.csv").write_text("path\na.wav\n")
    Path("n2.csv").write_text("path\nb.wav\n")
    assert ids(read("n*.csv")) == ["a", "b"]


def test_single_file_is_taken_whatever_its_suffix_or_brackets(folder: Path) -> None:
    touch("x/call.ulaw", "x/a[1].wav", "x/a1.wav")
    manifest = read("x/call.ulaw", "x/a[1].wav")
    assert paths(manifest) == [f"{folder}/x/call.ulaw", f"{folder}/x/a[1].wav"]
    assert ids(manifest) == ["call", "a[1]"]


def test_the_same_file_is_taken_once_but_a_manifest_row_always_counts(folder: Path) -> None:
    touch("calls/a.wav", "calls/b.wav")
    Path("link").symlink_to("calls")
    manifest = read("calls/b.wav", "calls", "calls/*.wav", "link", f"file://{folder}/calls/a.wav")
    assert ids(manifest) == ["b", "a"]
    Path("calls/m.csv").write_text("path,call_id\nb.wav,explicit\n")
    assert ids(read("calls", "calls/m.csv")) == ["a", "b", "explicit"]


def test_input_that_is_missing_or_empty_is_a_fault_and_all_are_told() -> None:
    assert faults_of("gone", "gone.csv", "nosuch://x", "") == (
        "gone: no such file or folder",
        "gone.csv: no such file or folder",
        "nosuch://x: cannot be read: Protocol not known: nosuch",
        "an INPUT is empty; expected a manifest, a folder, a glob, an audio file or a URL",
    )
    assert faults_of() == ("no INPUT; expected a manifest, a folder, a glob, an audio file or a URL",)


def test_file_name_that_is_not_utf8_is_a_fault(folder: Path) -> None:
    Path("calls").mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/calls/m\xfcller.wav")).touch()
    (fault,) = faults_of("calls")
    assert "is not UTF-8, which the tables need; rename it" in fault
    assert "m\\xfcller.wav" in fault


# URLs


def test_urls_of_files_folders_and_globs(memory: fsspec.AbstractFileSystem) -> None:
    for name in ("/b/calls/2.wav", "/b/calls/x/1.mp3", "/b/calls/.hid/3.wav", "/b/calls/n.txt"):
        memory.pipe(name, b"-")
    found = ["memory://b/calls/2.wav", "memory://b/calls/x/1.mp3"]
    assert paths(read("memory://b/calls")) == found
    assert ids(read("memory://b/calls")) == ["2", "x/1"]
    assert paths(read("memory://b/calls/")) == found
    assert paths(read("memory://b/**/*.wav")) == found[:1]
    assert paths(read("memory://b/calls/n.txt", "memory://b/calls/2.wav", "memory://b/calls")) == [
        "memory://b/calls/n.txt",
        *found,
    ]
    assert faults_of("memory://b/gone", "memory://b/*.ogg") == (
        "memory://b/gone: no such file or folder",
        "memory://b/*.ogg: the pattern matches no file",
    )


def test_manifest_at_a_url(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/b/n/m.csv", b"path\nx/a.wav\n../c.wav\n/disk/d.wav\ns3://other/e.wav\nmemory://b/n/f.wav\n")
    manifest = read("memory://b/n/m.csv")
    assert paths(manifest) == [
        "memory://b/n/x/a.wav",
        "memory://b/c.wav",
        "/disk/d.wav",
        "s3://other/e.wav",
        "memory://b/n/f.wav",
    ]
    assert ids(manifest) == ["x/a", "b/c", "disk/d", "other/e", "f"]
    assert faults_of("memory://b/n/gone.csv") == ("memory://b/n/gone.csv: no such file or folder",)


def test_file_urls_stay_urls(folder: Path) -> None:
    touch("calls/a.wav")
    Path("calls/m.csv").write_text("path,call_id\na.wav,m\n")
    manifest = read(f"file://{folder}/calls", f"file://{folder}/calls/m.csv")
    assert paths(manifest) == [f"file://{folder}/calls/a.wav"] * 2


def test_chained_urls(folder: Path) -> None:
    import zipfile

    with zipfile.ZipFile("calls.zip", "w") as archive:
        archive.writestr("day/a.wav", "-")
        archive.writestr("day/m.csv", "path\nb.wav\n")
    manifest = read(f"zip://day::file://{folder}/calls.zip", f"zip://day/m.csv::file://{folder}/calls.zip")
    assert paths(manifest) == [f"zip://day/{name}.wav::file://{folder}/calls.zip" for name in "ab"]
    assert ids(manifest) == ["a", "b"]


# Manifests: paths and ids


def test_paths_are_relative_to_the_manifest_and_links_stay(folder: Path) -> None:
    Path("real").mkdir()
    Path("link").symlink_to("real")
    text = "path\na.wav\n./b.wav\n/abs/c.wav\n~/d.wav\ns3://k/e.wav?x=1\n../f.wav\n"
    manifest = read_csv(text, "link/m.csv")
    assert paths(manifest) == [
        f"{folder}/link/a.wav",
        f"{folder}/link/b.wav",
        "/abs/c.wav",
        f"{folder}/link/~/d.wav",
        "s3://k/e.wav?x=1",
        f"{folder}/link/../f.wav",
    ]
    assert ids(manifest) == ["a", "b", "abs/c", "~/d", "k/e", "f"]


def test_a_missing_recording_is_no_fault() -> None:
    assert ids(read_csv("path\nnowhere.wav\n")) == ["nowhere"]


def test_default_ids_grow_by_suffix_then_by_folder() -> None:
    touch("x/a.wav", "x/a.mp3", "x/b.wav", "y/b.wav", "y/c.wav")
    assert ids(read("x", "y")) == ["a.mp3", "a.wav", "x/b.wav", "y/b.wav", "c"]


def test_stated_ids_win_and_a_default_gives_way() -> None:
    manifest = read_csv("path,call_id\na.wav,\nb.wav, a \nc.wav,c.wav\nd/c.wav,c\n")
    assert ids(manifest) == ["a.wav", "a", "c.wav", "c"]


def test_default_ids_that_stay_the_same_are_a_fault(folder: Path) -> None:
    assert csv_faults("path,agent\na.wav,1\nb.wav,2\na.wav,3\n") == (
        f"m.csv: line 4: the default call_id '{folder.name}/a.wav' is also that of m.csv: line 2; "
        "state one in a manifest",
    )
    touch("p/calls/a.wav", "q/calls/a.wav")
    assert faults_of("p/calls", "q/calls") == (
        f"{folder}/q/calls/a.wav: the default call_id 'calls/a.wav' is also that of {folder}/p/calls/a.wav; "
        "state one in a manifest",
    )


def test_stated_ids_that_stand_twice_are_told_with_both_places() -> None:
    Path("n.csv").write_text("call_id,path\nx,a.wav\n")
    Path("m.csv").write_text("call_id,path\nx,b.wav\ny,c.wav\ny,d.wav\n")
    assert faults_of("n.csv", "m.csv") == (
        "m.csv: line 2, column 'call_id': 'x' stands already at n.csv: line 2",
        "m.csv: line 4, column 'call_id': 'y' stands already at line 3",
    )


# Manifests: known columns


def test_known_columns() -> None:
    manifest = read_csv(
        "path,roles,started_at,encoding,rate_hz\n"
        'a.wav,"agent, customer",2025-01-31T09:30:00+01:00,,\n'
        "b.raw,mixed,2025-01-31 09:30,mulaw,\n"
        "c.raw, ,2025-01-31,pcm16,16000.0\n"
    )
    first, second, third = manifest.recordings
    assert first == Recording(
        0, "a", paths(manifest)[0], ("agent", "customer"), datetime(2025, 1, 31, 8, 30, tzinfo=UTC)
    )
    assert (second.roles, second.encoding, second.rate_hz) == (("mixed",), "mulaw", 8000)
    assert second.started_at == datetime(2025, 1, 31, 9, 30, tzinfo=UTC)
    assert second.started_at.tzinfo is UTC
    assert (third.roles, third.encoding, third.rate_hz) == (None, "pcm16", 16000)
    assert third.started_at == datetime(2025, 1, 31, tzinfo=UTC)
    assert manifest.columns.column_names == []


def test_all_faults_of_all_cells_are_told_at_once_by_line() -> None:
    assert csv_faults(
        "path,call_id,roles,started_at,encoding,rate_hz,status\n"
        'a.wav,1,"agent,boss",31/01/2025,mp3,8k,\n'
        " ,1,agent,,,0,\n"
        'c.wav,3,"agent,",9999-12-31T23:59:59-01:00,,-1,\n'
    ) == (
        "m.csv: line 1: column 'status' is a name of the calls table; rename it",
        "m.csv: line 2, column 'roles': received 'agent,boss', expected a comma list, one of agent, customer, mixed, "
        "unknown per channel",
        "m.csv: line 2, column 'started_at': received '31/01/2025', expected ISO 8601, such as "
        "2025-01-31T09:30:00+01:00",
        "m.csv: line 2, column 'encoding': received 'mp3', expected one of mulaw, alaw, pcm16",
        "m.csv: line 2, column 'rate_hz': received '8k', expected a positive integer, such as 8000",
        "m.csv: line 3, column 'path': is empty, expected the path of a recording",
        "m.csv: line 3, column 'rate_hz': received '0', expected a positive integer, such as 8000",
        "m.csv: line 4, column 'roles': received 'agent,', expected a comma list, one of agent, customer, mixed, "
        "unknown per channel",
        "m.csv: line 4, column 'started_at': received '9999-12-31T23:59:59-01:00', expected ISO 8601, such as "
        "2025-01-31T09:30:00+01:00",
        "m.csv: line 4, column 'rate_hz': received '-1', expected a positive integer, such as 8000",
        "m.csv: line 3, column 'call_id': '1' stands already at line 2",
    )


def test_the_first_fifty_faults_are_shown_and_the_others_counted() -> None:
    faults = csv_faults("path,roles\n" + "a.wav,boss\n" * 60, "m.csv")
    assert len(faults) == 51
    assert faults[49].startswith("m.csv: line 51, column 'roles'")
    assert faults[50] == "and 69 more faults"  # 10 roles, and 59 rows of the same path without an id


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("Path,agent", "m.csv: line 1: no column 'path'; found 'Path', 'agent'; is 'Path' meant? rename it"),
        ("id,File", "m.csv: line 1: no column 'path'; found 'id', 'File'; is 'File' meant? rename it"),
        ("paths,x", "m.csv: line 1: no column 'path'; found 'paths', 'x'; is 'paths' meant? rename it"),
        ("a,b", "m.csv: line 1: no column 'path'; found 'a', 'b'"),
        ("path,x,x", "m.csv: line 1: column 'x' stands 2 times; rename or drop all but one"),
        (
            ",path",
            "m.csv: line 1: column 1 has no name; name it or leave it out (pandas: to_csv(..., index=False))",
        ),
    ],
)
def test_header_faults(header: str, told: str) -> None:
    row = ",".join(f"v{i}" for i in range(header.count(",") + 1))
    assert csv_faults(f"{header}\n{row}\n") == (told,)


def test_missing_path_column_does_not_hide_the_other_faults() -> None:
    assert csv_faults("file,roles\na.wav,boss\n") == (
        "m.csv: line 1: no column 'path'; found 'file', 'roles'; is 'file' meant? rename it",
        "m.csv: line 2, column 'roles': received 'boss', expected a comma list, one of agent, customer, mixed, "
        "unknown per channel",
    )


# CSV as people write it


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_empty_file(text: str) -> None:
    assert csv_faults(text) == ("m.csv: line 1: empty; expected a header row with the column 'path'",)


def test_no_rows() -> None:
    assert csv_faults("path,agent\n\n") == ("m.csv: line 1: no rows; expected one row per recording",)


def test_ragged_rows_and_lines_of_quoted_fields() -> None:
    assert csv_faults(
        'path,note,roles\na.wav,"two\r\nlines",\n\nb.wav,x,agent,customer\nc.wav,"a\nb",boss\nd.wav\n'
    ) == (
        "m.csv: line 5: 4 cells, expected 3; put a cell that holds the delimiter in double quotes",
        "m.csv: line 6, column 'roles': received 'boss', expected a comma list, one of agent, customer, mixed, "
        "unknown per channel",
        "m.csv: line 8: 1 cells, expected 3; put a cell that holds the delimiter in double quotes",
    )


def test_quote_that_is_not_closed() -> None:
    assert csv_faults('path,note\na.wav,x\nb.wav,"never\nc.wav,y\n') == (
        "m.csv: line 3: not readable as CSV from here on (unexpected end of data); are its quotes closed?",
    )


def test_not_utf8_is_told_with_its_line() -> None:
    assert csv_faults("path,agent\na.wav,x\nb.wav,Jürgen\n".encode("latin-1")) == (
        "m.csv: line 3: not UTF-8 (byte 0xfc); save it as CSV UTF-8",
    )
    assert csv_faults("path\na.wav\n".encode("utf-16")) == (
        "m.csv: line 1: not UTF-8 (byte 0xff); save it as CSV UTF-8",
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimiters_line_ends_and_marks(delimiter: str, line_end: str, mark: str) -> None:
    lines = [delimiter.join(row) for row in (["path", '"no,te"', "n"], ["a.wav", '"x, y"', "1"], ["", "", ""])]
    manifest = read_csv(mark + line_end.join(lines))
    assert ids(manifest) == ["a"]
    assert manifest.columns.to_pylist() == [{"no,te": "x, y", "n": 1}]


def test_one_column() -> None:
    assert ids(read_csv("path\na.wav\n\nb.wav")) == ["a", "b"]
    assert csv_faults('path\na.wav\n""\n') == (
        "m.csv: line 3, column 'path': is empty, expected the path of a recording",
    )


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["007", "12"], pa.string(), ["007", "12"]),
        (["+49301234", "1"], pa.string(), ["+49301234", "1"]),
        (["NA", "None"], pa.string(), ["NA", "None"]),
        (["nan", "1"], pa.string(), ["nan", "1"]),
        (["", ""], pa.string(), [None, None]),
        (["-5", ""], pa.int64(), [-5, None]),
        (["9223372036854775808", "1"], pa.string(), ["9223372036854775808", "1"]),
        (["12345678901234567", "1.5"], pa.string(), ["12345678901234567", "1.5"]),
        (["1.50", "2"], pa.float64(), [1.5, 2.0]),
        (["1e-05", ""], pa.float64(), [1e-05, None]),
        (["12e34", "1"], pa.string(), ["12e34", "1"]),
        (["true", "FALSE"], pa.bool_(), [True, False]),
        (["2025-01-31", ""], pa.date32(), [date(2025, 1, 31), None]),
        (["2025-02-30", ""], pa.string(), ["2025-02-30", None]),
        (["2025-01-31T09:30", "2025-01-31 09:30:01.5"], pa.timestamp("us"), None),
        (["2025-01-31T09:30Z", "2025-01-31T09:30:00+01:00"], pa.timestamp("us", "UTC"), None),
        (["2025-01-31T09:30Z", "2025-01-31T09:30"], pa.string(), None),
        ([" x ", " "], pa.string(), [" x ", " "]),
    ],
)
def test_types_of_own_columns_lose_nothing(cells: list[str], kind: pa.DataType, values: list[object] | None) -> None:
    column = read_csv(f"path,own\na.wav,{cells[0]}\nb.wav,{cells[1]}\n").columns["own"]
    assert column.type == kind
    assert values is None or column.to_pylist() == values


# Parquet


def test_parquet_known_columns_in_their_types() -> None:
    manifest = read_parquet(
        {
            "path": pa.array(["a.wav", "b.wav"]).dictionary_encode(),
            "call_id": pa.array([7, None]),
            "roles": pa.array([["agent", "customer"], []]),
            "started_at": pa.array([datetime(2025, 1, 31, 9), None], pa.timestamp("ns")),
            "rate_hz": pa.array([16000.0, None]),
            "encoding": pa.nulls(2),
        }
    )
    assert manifest.recordings[0].call_id == "7"
    assert manifest.recordings[0].roles == ("agent", "customer")
    assert manifest.recordings[0].started_at == datetime(2025, 1, 31, 9, tzinfo=UTC)
    assert manifest.recordings[0].rate_hz == 16000
    assert manifest.recordings[1] == Recording(1, "b", paths(manifest)[1])


def test_parquet_zoned_times_are_utc() -> None:
    zoned = pa.array([datetime(2025, 1, 31, 8, tzinfo=UTC)], pa.timestamp("ms", "Europe/Berlin"))
    manifest = read_parquet({"path": ["a.wav"], "started_at": zoned})
    assert manifest.recordings[0].started_at == datetime(2025, 1, 31, 8, tzinfo=UTC)


def test_parquet_own_columns_keep_their_types_and_the_index_goes() -> None:
    frame = pd.DataFrame(
        {"path": ["a.wav", "b.wav"], "n": pd.array([1, None], "Int8"), "team": ["x", None]}, index=[3, 9]
    )
    frame["team"] = frame["team"].astype("category")
    frame.to_parquet("m.parquet")
    columns = read("m.parquet").columns
    assert columns.column_names == ["n", "team"]
    assert columns.schema.field("n").type == pa.int8()
    assert pa.types.is_dictionary(columns.schema.field("team").type)
    assert columns["team"].to_pylist() == ["x", None]
    assert columns.schema.metadata is None


def test_parquet_faults_name_rows() -> None:
    table = {"path": ["a.wav", None], "roles": [["agent"], ["boss", None]], "started_at": [1.5, 2.5], "emotion": [1, 2]}
    pq.write_table(pa.table(table), "m.parquet")
    assert faults_of("m.parquet") == (
        "m.parquet: column 'started_at' has the type double: expected timestamps, dates or text",
        "m.parquet: column 'emotion' is a name of the calls table; rename it",
        "m.parquet: row 2, column 'path': is empty, expected the path of a recording",
        "m.parquet: row 2, column 'roles': received ['boss', None], expected a comma list, one of agent, customer, "
        "mixed, unknown per channel",
    )
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), "m.parquet")
    assert faults_of("m.parquet") == ("m.parquet: no rows; expected one row per recording",)
    pq.write_table(pa.table({"File": ["a.wav"]}), "m.parquet")
    assert faults_of("m.parquet") == ("m.parquet: no column 'path'; found 'File'; is 'File' meant? rename it",)
    Path("m.parquet").write_bytes(b"path\na.wav\n")
    assert faults_of("m.parquet")[0].startswith("m.parquet: not readable as Parquet (")


# Several manifests


def test_own_columns_are_united_by_name() -> None:
    touch("calls/z.wav")
    Path("m.csv").write_text("path,n,team\na.wav,1,x\n")
    Path("n.csv").write_text("path,n,empty\nb.wav,2.5,\n")
    frame = pd.DataFrame({"path": ["c.wav"], "team": pd.Categorical(["y"])})
    frame.to_parquet("o.parquet")
    manifest = read("m.csv", "calls", "n.csv", "o.parquet")
    assert ids(manifest) == ["a", "z", "b", "c"]
    assert manifest.columns.to_pydict() == {
        "n": [1.0, None, 2.5, None],
        "team": ["x", None, None, "y"],
        "empty": [None] * 4,
    }
    assert [str(kind) for kind in manifest.columns.schema.types] == ["double", "string", "string"]


def test_types_that_do_not_go_together_are_a_fault() -> None:
    Path("m.csv").write_text("path,n\na.wav,1\n")
    Path("n.csv").write_text("path,n\nb.wav,x\n")
    assert faults_of("m.csv", "n.csv") == (
        "column 'n' has types that do not go together: int64 in m.csv, string in n.csv; make them the same",
    )


def test_faults_of_all_inputs_are_told_together() -> None:
    Path("m.csv").write_text("file\na.wav\n")
    Path("n.csv").write_text("path\n")
    assert len(faults_of("m.csv", "gone", "n.csv")) == 3


# Properties

NAMES = st.text("ab./", min_size=1, max_size=6).filter(lambda name: name.strip("./"))


@REUSES_FOLDER
@given(rows=st.lists(st.tuples(NAMES, st.sampled_from([None, "a", "b", "a/b", "ab.a"])), min_size=1, max_size=12))
def test_call_ids_are_unique_or_told_and_order_is_kept(rows: list[tuple[str, str | None]]) -> None:
    pq.write_table(pa.table({"path": [row[0] for row in rows], "call_id": [row[1] for row in rows]}), "m.parquet")
    try:
        manifest = read("m.parquet")
    except ConfigError as error:
        # Refused only for a reason: an id stated twice, or a file that stands twice.
        assert all("stands already" in fault or "is also that of" in fault for fault in error.faults)  # noqa: PT017
        return
    assert len(set(ids(manifest))) == len(rows)
    assert [recording.index for recording in manifest.recordings] == list(range(len(rows)))
    for recording, (path, call_id) in zip(manifest.recordings, rows, strict=True):
        assert call_id in (None, recording.call_id)
        assert Path(os.path.normpath(recording.path)) == Path(os.path.normpath(Path.cwd() / path))


OWN = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"])),
    pa.bool_(): st.booleans(),
    pa.timestamp("us", "UTC"): st.datetimes(timezones=st.just(UTC)),
    pa.list_(pa.int32()): st.lists(st.integers(0, 9), max_size=3),
}


@REUSES_FOLDER
@given(data=st.data(), kind=st.sampled_from(list(OWN)))
def test_parquet_columns_round_trip(data: st.DataObject, kind: pa.DataType) -> None:
    values = data.draw(st.lists(st.none() | OWN[kind], min_size=1, max_size=8))
    own = pa.array(values, kind)
    manifest = read_parquet({"path": [f"{i}.wav" for i in range(len(values))], "own": own})
    expected = pa.string() if pa.types.is_null(own.type) else kind
    assert manifest.columns["own"].type == expected
    assert manifest.columns["own"].combine_chunks().equals(own)


@REUSES_FOLDER
@given(
    values=st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=8)
)
def test_csv_text_is_kept_or_typed_without_loss(values: list[str | None]) -> None:
    import csv

    with Path("m.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerows([("path", "own"), *((f"{i}.wav", value or "") for i, value in enumerate(values))])
    column = read("m.csv").columns["own"]
    if column.type == pa.string():
        assert column.to_pylist() == values
    elif column.type == pa.int64():
        assert [None if v is None else int(v) for v in values] == column.to_pylist()


@REUSES_FOLDER
@given(values=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8).filter(any))
def test_csv_integers_stay_integers(values: list[int | None]) -> None:
    rows = "".join(f"{i}.wav,{'' if value is None else value}\n" for i, value in enumerate(values))
    column = read_csv("path,own\n" + rows).columns["own"]
    assert column.type == pa.int64()
    assert column.to_pylist() == values


LENGTHS = st.none() | st.integers(0, 4000).map(float) | st.just(math.nan)


@given(lengths=st.lists(LENGTHS, max_size=50), target_s=st.integers(1, 2000), most=st.integers(1, 9))
def test_shards_partition_the_recordings_in_order(lengths: list[float | None], target_s: int, most: int) -> None:
    recordings = [Recording(i, str(i), f"/{i}.wav") for i in range(len(lengths))]
    shards = make_shards(recordings, lengths, target_s, most)
    assert [recording for shard in shards for recording in shard.recordings] == recordings
    assert [shard.number for shard in shards] == list(range(len(shards)))
    known = [UNKNOWN_SECONDS if length is None or math.isnan(length) else length for length in lengths]
    sums = [sum(known[recording.index] for recording in shard.recordings) for shard in shards]
    for shard, seconds in zip(shards, sums, strict=True):
        assert 1 <= len(shard.recordings) <= most
        assert seconds <= target_s or len(shard.recordings) == 1
    for i in range(len(shards) - 1):  # full: the next recording would not have fitted
        following = known[shards[i + 1].recordings[0].index]
        assert sums[i] + following > target_s or len(shards[i].recordings) == most


def test_shards_of_nothing_and_wrong_settings() -> None:
    assert make_shards([], [], 60.0) == []
    assert len(make_shards([Recording(0, "a", "/a.wav")], [9.0], math.inf)) == 1
    with pytest.raises(ConfigError, match="shards of 0 s and 500 recordings; expected both to be positive"):
        make_shards([], [], 0)
    with pytest.raises(ValueError, match="shorter"):
        make_shards([Recording(0, "a", "/a.wav")], [], 60.0)


def test_a_hundred_thousand_rows() -> None:
    count = 100_000
    lines = (f'day/{i}.wav,"agent,customer",2025-01-31T09:30:00Z,{i % 9},{i:06d}\n' for i in range(count))
    manifest = read_csv("path,roles,started_at,queue,ext\n" + "".join(lines))
    assert len(manifest.recordings) == manifest.columns.num_rows == count
    assert manifest.recordings[-1].call_id == "day/99999"
    assert [str(kind) for kind in manifest.columns.schema.types] == ["int64", "string"]
    shards = make_shards(manifest.recordings, [240.0] * count, 3600.0)
    assert {len(shard.recordings) for shard in shards[:-1]} == {15}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest_of_too_many_rows_is_refused_before_it_is_taken_in(tmp_path: Path, suffix: str) -> None:
    table = pa.table({"path": [f"{k}.wav" for k in range(11)]})
    path = tmp_path / f"m{suffix}"
    (pq.write_table if suffix == ".parquet" else pacsv.write_csv)(table, path)
    assert len(read_inputs([str(path)], RESERVED, 11).recordings) == 11
    with pytest.raises(ConfigError, match=r"has (more than 10|11) rows.*, expected at most 10 rows; divide it"):
        read_inputs([str(path)], RESERVED, 10)


def test_a_manifest_of_ten_million_rows_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"path\n" + b"a.wav\n" * 10_000_000)
    tracemalloc.start()
    with pytest.raises(ConfigError, match="has more than 1000 rows"):
        read_inputs([str(path)], RESERVED, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * path.stat().st_size


def test_a_parquet_manifest_that_unpacks_to_more_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchser.manifest.rows._MAX_UNPACKED_BYTES", 10_000)
    pq.write_table(pa.table({"path": ["a" * 20_000 + ".wav"]}), tmp_path / "m.parquet", compression="zstd")
    with pytest.raises(ConfigError, match=r"has 1 rows of \d+ bytes or more, expected at most"):
        read_inputs([str(tmp_path / "m.parquet")], RESERVED)


def test_a_file_that_is_too_long_for_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchser.manifest.inputs._MAX_BYTES", 10)
    (tmp_path / "m.csv").write_text("path\na-long-name.wav")
    with pytest.raises(ConfigError, match="has 20 bytes, expected a manifest of at most 10"):
        read_inputs([str(tmp_path / "m.csv")], RESERVED)
