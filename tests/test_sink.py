"""Parts, resume and commit: no row lost, none doubled, nothing half-written, nobody's file overwritten unasked."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import pickle
import signal
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchser import tables
from batchser.errors import ConfigError
from batchser.records import SILENCE, SPEECH, CallSummary, Outcome, Recording, WindowScores
from batchser.sink import Finished, PartSink, Run, SinkError, inputs_fingerprint, open_run, parts, rows, run
from batchser.sink.store import LocalStore
from batchser.tables import Provenance

LABELS = ("angry", "neutral")
PROVENANCE = Provenance("telephone", "a" * 64, "b" * 64, "0.1.0", {"roles": ["customer"]})
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
OWN = pa.table({"team": pa.array(["n", None, "s", "n", "s", "n"]), "rank": pa.array(range(6), pa.int16())})


def recordings_of(count: int = 6) -> list[Recording]:
    return [Recording(index, f"call-{index}", f"/nowhere/{index}.wav") for index in range(count)]


def outcome_of(recording: Recording) -> Outcome:
    """Give recording i 2·i windows (the first has none and is a fault), and two scored channels where i is 4."""
    num_windows = 2 * recording.index
    if not num_windows:
        return Outcome(recording, (CallSummary(status="unreadable", error="no such file"),), scored_at=NOON)
    rng = np.random.default_rng(recording.index)
    windows = tuple(
        WindowScores(
            channel=channel,
            role="customer" if channel else "agent",
            start_s=3.0 * np.arange(num_windows),
            end_s=3.0 * np.arange(num_windows) + 3,
            kind=rng.choice(np.array([SPEECH, SILENCE], np.int8), num_windows),
            voiced_s=rng.uniform(0, 3, num_windows),
            overtalk_s=np.zeros(num_windows),
            level_dbfs=rng.uniform(-60, 0, num_windows).astype(np.float32),
            probabilities=rng.dirichlet([1, 1], num_windows).astype(np.float32),
            threshold=0.6,
        )
        for channel in (0, 1)
    )
    summary = CallSummary(channel=1, role="customer", duration_s=3.0 * num_windows, num_scored=num_windows)
    both = (dataclasses.replace(summary, channel=0, role="agent"), summary)
    return Outcome(recording, both if recording.index == 4 else (summary,), windows, scored_at=NOON)


OUTCOMES = [outcome_of(recording) for recording in recordings_of()]


def work_of(opened: Run) -> Path:
    return Path(opened.parts.store.where(opened.parts.folder))


def begin(out: Path, **changes: object) -> Run | Finished:
    options: dict[str, object] = {"recordings": recordings_of(), "labels": LABELS, "provenance": PROVENANCE}
    return open_run(out, **(options | changes))


def finish(out: Path, shards: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3, 4, 5)), **changes: object) -> str:
    with begin(out, **changes) as opened:
        for shard in shards:
            opened.parts.write([OUTCOMES[index] for index in shard])
        opened.commit()
        return opened.run_id


def check_result(out: Path, outcomes: list[Outcome] = OUTCOMES, own: pa.Table | None = None) -> None:
    """The files hold what the tables would hold if they were built at once, and nothing else lies about."""
    calls = tables.calls_table(outcomes, LABELS, PROVENANCE)
    if own is not None:
        calls = tables.attach_own_columns(calls, tables.row_indices(outcomes), own)
    segments = out.with_name("r.segments.parquet")
    for path, expected in ((out, calls), (segments, tables.segments_table(outcomes, LABELS))):
        written = pq.read_table(path)
        assert written.schema.equals(expected.schema)
        assert written.to_pylist() == expected.to_pylist()  # as values: a dictionary's order means nothing
    assert {path.name for path in out.parent.iterdir()} == {out.name, segments.name}
    ids = [pq.read_schema(path).metadata[b"batchser.run_id"] for path in (out, segments)]
    assert ids[0] == ids[1]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "r.parquet"


# ------------------------------------------------------------------------------------------------- commit


def test_commit_equals_tables_built_at_once(out: Path):
    with begin(out, own=OWN) as opened:
        assert isinstance(opened, Run)
        assert opened.finished_indices().tolist() == []
        opened.parts.write(OUTCOMES[:4])
        opened.parts.write([])
        opened.parts.write(OUTCOMES[4:])
        assert opened.finished_indices().tolist() == [0, 1, 2, 3, 4, 5]
        assert not out.exists()
        counts = opened.commit()
    assert counts == tables.Tally(6, {"unreadable": 1, "ok": 5}, 6.0 * 15, 2 * 15 + 8)
    check_result(out, own=OWN)
    metadata = pq.read_schema(out).metadata
    assert metadata[b"batchser.schema_version"] == b"1"
    assert json.loads(metadata[b"batchser.model"])["name"] == "telephone"
    assert set(json.loads(metadata[b"batchser.fingerprint"])) == {"inputs", "model", "settings", "schema", "version"}
    frame = pd.read_parquet(out)
    assert frame["team"].tolist()[2] == "s"
    assert frame["rank"].dtype == np.int16


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.permutations(range(4)), st.integers(1, 9))
def test_any_sharding_in_any_order_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, shard_of: list[int], order: list[int], group_rows: int
):
    """Even shards that interleave, row groups smaller than a recording, and parts that come in any order."""
    out = tmp_path_factory.mktemp("sharding") / "r.parquet"
    shards = tuple(tuple(i for i in range(6) if shard_of[i] == number) for number in order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_GROUP_ROWS", group_rows)
        patch.setattr(rows, "GROUP_ROWS", 2 * group_rows)
        finish(out, shards)
    check_result(out)


def test_row_groups_are_bounded(out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "GROUP_ROWS", 7)
    finish(out)
    metadata = pq.read_metadata(out.with_name("r.segments.parquet"))
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sizes == [7] * 8 + [4]  # 60 rows


def test_faults_alone_still_give_both_tables(out: Path):
    with begin(out, recordings=recordings_of(1)) as opened:
        opened.parts.write(OUTCOMES[:1])
        opened.commit()
    check_result(out, OUTCOMES[:1])


def test_segments_elsewhere(tmp_path: Path, out: Path):
    (tmp_path / "far").mkdir()
    finish(out, segments=tmp_path / "far" / "windows.parquet")
    assert pq.read_metadata(tmp_path / "far" / "windows.parquet").num_rows == 60
    assert not out.with_name("r.segments.parquet").exists()


def test_relative_paths_are_fixed_at_once(out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(out.parent)
    with begin(Path("r.parquet")) as opened:
        assert work_of(opened).is_absolute()


def test_a_missing_recording_stops_the_commit(out: Path):
    with begin(out) as opened:
        opened.parts.write([OUTCOMES[index] for index in (0, 1, 4)])
        with pytest.raises(SinkError, match=r"of 6 recordings 3 are in no part \(first \[2, 3, 5\]\)"):
            opened.commit()
        opened.parts.write([OUTCOMES[index] for index in (2, 3, 5)])
        opened.commit()
    check_result(out)


def test_a_recording_in_two_parts_counts_once(out: Path):
    """A worker given up for dead finishes after all: its results go before the row that says it crashed."""
    crashed = dataclasses.replace(OUTCOMES[3], summaries=(CallSummary(status="crashed", error="killed"),), windows=())
    with begin(out) as opened:
        opened.parts.write(OUTCOMES[:3])
        opened.parts.write([crashed])
        opened.parts.write(OUTCOMES[2:])
        opened.parts.write(OUTCOMES[2:])  # the same shard again
        assert opened.finished_indices().tolist() == [0, 1, 2, 3, 4, 5]
        opened.commit()
    check_result(out)


def test_callers_faults_raise(out: Path):
    with begin(out) as opened:
        with pytest.raises(ValueError, match="twice"):
            opened.parts.write([OUTCOMES[1], OUTCOMES[1]])
        with pytest.raises(ValueError, match="no summary"):
            opened.parts.write([dataclasses.replace(OUTCOMES[1], summaries=())])


# ------------------------------------------------------------------------------------------------- resume


def test_resume_after_a_crash(out: Path):
    with begin(out) as first:
        first.parts.write(OUTCOMES[:2])
    with begin(out) as second:
        assert second.run_id == first.run_id
        assert second.finished_indices().tolist() == [0, 1]
        second.parts.write(OUTCOMES[4:])
    with begin(out) as third:
        assert third.finished_indices().tolist() == [0, 1, 4, 5]
        third.parts.write(OUTCOMES[2:4])
        third.commit()
    check_result(out)


def _write_and_die(pickled: bytes) -> None:
    """Write one part, leave half of another, and be killed with the lock held."""
    out, sink_bytes = pickle.loads(pickled)
    with begin(out) as opened:
        pickle.loads(sink_bytes).write(OUTCOMES[:2])
        (work_of(opened) / ".calls-x.parquet.12.tmp").write_bytes(b"PAR1half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_resume_after_sigkill(out: Path):
    with begin(out) as opened:
        pickled = pickle.dumps((out, pickle.dumps(opened.parts)))
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(pickled,))
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    with begin(out) as opened:
        assert opened.finished_indices().tolist() == [0, 1]
        assert not list(work_of(opened).glob(".*"))
        opened.parts.write(OUTCOMES[2:])
        opened.commit()
    check_result(out)


@pytest.mark.parametrize("damage", ["calls cut", "segments cut", "segments gone", "segments of others", "calls alone"])
def test_damaged_parts_are_done_again(out: Path, damage: str):
    with begin(out) as opened:
        opened.parts.write(OUTCOMES[:3])
        opened.parts.write(OUTCOMES[3:])
        calls, _ = sorted(work_of(opened).glob("calls-*"))
        segments, other = sorted(work_of(opened).glob("segments-*"))
        if damage == "calls cut":
            calls.write_bytes(calls.read_bytes()[:-20])
        elif damage == "segments cut":
            segments.write_bytes(segments.read_bytes()[:100])
        elif damage == "segments gone":
            segments.unlink()
        elif damage == "segments of others":
            segments.write_bytes(other.read_bytes())
        else:
            calls.unlink()  # the marker was not yet there when the power went
        assert opened.finished_indices().tolist() == [3, 4, 5]
        opened.parts.write(OUTCOMES[:2])
        opened.parts.write(OUTCOMES[2:3])
        opened.commit()
    check_result(out)


def test_killed_between_the_two_moves(out: Path, monkeypatch: pytest.MonkeyPatch):
    with begin(out) as opened:
        opened.parts.write(OUTCOMES)
        with monkeypatch.context() as patch:
            patch.setattr(pq, "write_table", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                opened.commit()
    assert out.with_name("r.segments.parquet").exists()
    assert not out.exists()
    with begin(out) as opened:
        assert opened.finished_indices().tolist() == [0, 1, 2, 3, 4, 5]
        opened.commit()
    check_result(out)


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_killed_after_the_commit_before_the_clearing(out: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(run.shutil, "rmtree", lambda *_, **__: None)
        run_id = finish(out)
    assert out.with_name("r.parquet.work").exists()
    finished = begin(out)
    assert isinstance(finished, Finished)
    assert finished.run_id == run_id
    check_result(out)


def test_stale_temporaries_beside_the_output_go(out: Path):
    stale = [out.with_name(".r.parquet.0f.tmp"), out.with_name(".r.segments.parquet.0f.tmp")]
    for path in stale:
        path.write_bytes(b"PAR1")
    others = out.with_name(".other.parquet.0f.tmp")
    others.write_bytes(b"PAR1")
    with begin(out):
        assert not any(path.exists() for path in stale)
    assert others.exists()


# ------------------------------------------------------------------------------------------------- finished, others


def test_a_finished_output_is_left_alone(out: Path):
    run_id = finish(out, own=OWN)
    before = out.stat()
    finished = begin(out, own=OWN)
    assert isinstance(finished, Finished)
    assert (finished.run_id, finished.tally.recordings) == (run_id, 6)
    assert finished.tally.by_status == {"unreadable": 1, "ok": 5}
    assert out.stat() == before
    check_result(out, own=OWN)


def test_a_new_version_leaves_a_finished_output_but_does_not_mix(out: Path):
    newer = dataclasses.replace(PROVENANCE, batchser_version="0.2.0")
    finish(out)
    assert isinstance(begin(out, provenance=newer), Finished)
    other = out.with_name("o.parquet")
    with begin(other) as opened:
        opened.parts.write(OUTCOMES[:1])
    with pytest.raises(ConfigError, match="another batchser version"):
        begin(other, provenance=newer)


CHANGES = {
    "another model": {"provenance": dataclasses.replace(PROVENANCE, model_sha256="c" * 64)},
    "other settings": {"provenance": dataclasses.replace(PROVENANCE, settings_sha256="c" * 64)},
    "other inputs": {"recordings": [*recordings_of(5), Recording(5, "call-5", "/nowhere/5.mp3")]},
    "another table schema": {"labels": ("neutral", "angry")},
}


@pytest.mark.parametrize("what", CHANGES)
def test_finished_by_others_is_refused(out: Path, what: str):
    finish(out)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=f"is the result of {what}; choose another --out, or replace it with --fresh"):
        begin(out, **CHANGES[what])
    assert out.read_bytes() == before
    assert not out.with_name("r.parquet.work").exists()


@pytest.mark.parametrize("what", CHANGES)
def test_work_of_others_is_refused_and_kept(out: Path, what: str):
    with begin(out) as opened:
        opened.parts.write(OUTCOMES[:2])
    with pytest.raises(ConfigError, match=f"an interrupted run of {what}; .* drop its work with --fresh"):
        begin(out, **CHANGES[what])
    with begin(out) as opened:
        assert opened.finished_indices().tolist() == [0, 1]


def test_all_differences_are_told_at_once(out: Path):
    finish(out)
    provenance = dataclasses.replace(PROVENANCE, model_sha256="c" * 64, settings_sha256="c" * 64)
    with pytest.raises(ConfigError, match="another model and other settings"):
        begin(out, provenance=provenance)


def test_foreign_files_are_refused(out: Path):
    segments = out.with_name("r.segments.parquet")
    pq.write_table(pa.table({"theirs": [1]}), out)
    with pytest.raises(ConfigError, match="exists and is no result of batchser"):
        begin(out)
    out.rename(segments)
    with pytest.raises(ConfigError, match=r"belongs to no result r\.parquet"):
        begin(out)
    out.write_text("not even Parquet")
    with pytest.raises(ConfigError, match="exists and is no result of batchser"):
        begin(out)


def test_a_result_without_its_segments_is_told(out: Path):
    finish(out)
    out.with_name("r.segments.parquet").unlink()
    with pytest.raises(ConfigError, match=r"segments .* are missing or of another run"):
        begin(out)


def test_a_file_that_came_up_meanwhile_is_not_overwritten(out: Path):
    begin(out).close()
    pq.write_table(pa.table({"theirs": [1]}), out)
    with pytest.raises(ConfigError, match="exists and is no result of batchser"):
        begin(out)


def test_parts_without_a_readable_run_json(out: Path):
    with begin(out) as opened:
        opened.parts.write(OUTCOMES[:2])
        (work_of(opened) / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"no readable run\.json; start anew with --fresh"):
        begin(out)
    begin(out, fresh=True).close()


def test_killed_before_the_first_word(out: Path):
    out.with_name("r.parquet.work").mkdir()
    finish(out)
    check_result(out)


# ------------------------------------------------------------------------------------------------- fresh


def test_fresh_replaces_only_at_the_commit(out: Path):
    old = finish(out)
    provenance = CHANGES["another model"]["provenance"]
    with begin(out, provenance=provenance, fresh=True) as opened:
        assert opened.run_id != old
        opened.parts.write(OUTCOMES)
        assert pq.read_schema(out).metadata[b"batchser.run_id"].decode() == old
    with begin(out, provenance=provenance) as opened:  # its crash: --fresh need not be repeated
        assert len(opened.finished_indices()) == 6
        opened.commit()
    assert pq.read_table(out)["model_sha256"].to_pylist() == ["c" * 64] * 7
    with pytest.raises(ConfigError, match="is the result of another model"):
        begin(out)


def test_fresh_scores_a_finished_output_again(out: Path):
    old = finish(out)
    assert finish(out, fresh=True) != old
    check_result(out)


def test_fresh_drops_the_work_of_others(out: Path):
    with begin(out, **CHANGES["other settings"]) as opened:
        opened.parts.write(OUTCOMES)
        (work_of(opened) / ".x.tmp").write_bytes(b"")
    with begin(out, fresh=True) as opened:
        assert opened.finished_indices().tolist() == []
        assert sorted(path.name for path in work_of(opened).iterdir()) == ["lock", "run.json"]


# ------------------------------------------------------------------------------------------------- two at once


@pytest.mark.parametrize("fresh", [False, True])
def test_two_runs_at_once(out: Path, fresh: bool):
    with begin(out):
        with pytest.raises(ConfigError, match="another run is at work on this output"):
            begin(out, fresh=fresh)
        begin(out.with_name("other.parquet")).close()
    begin(out).close()


def test_a_late_worker_finds_no_folder(out: Path):
    with begin(out) as opened:
        opened.parts.write(OUTCOMES)
        opened.commit()
        with pytest.raises(SinkError, match="cannot be written"):
            opened.parts.write(OUTCOMES[:1])
    check_result(out)


# ------------------------------------------------------------------------------------------------- disk


def _disk_full(*args: object, **_: object) -> None:
    Path(str(args[1])).write_bytes(b"PAR1")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_disk_full_while_writing_a_part(out: Path, monkeypatch: pytest.MonkeyPatch):
    with begin(out) as opened:
        opened.parts.write(OUTCOMES[:2])
        with monkeypatch.context() as patch:
            patch.setattr(pq, "write_table", _disk_full)
            with pytest.raises(SinkError, match=r"No space left on device.*repeat the same command"):
                opened.parts.write(OUTCOMES[2:])
        assert not list(work_of(opened).glob(".*"))
        assert opened.finished_indices().tolist() == [0, 1]


def test_disk_full_at_the_commit_keeps_the_old_result(out: Path, monkeypatch: pytest.MonkeyPatch):
    old = finish(out)
    with begin(out, fresh=True) as opened:
        opened.parts.write(OUTCOMES)
        with monkeypatch.context() as patch:
            patch.setattr(pq, "write_table", _disk_full)
            with pytest.raises(SinkError, match=r"r\.parquet: cannot be written \(No space left on device\)"):
                opened.commit()
        assert pq.read_schema(out).metadata[b"batchser.run_id"].decode() == old
    with begin(out) as opened:
        opened.commit()
    check_result(out)


def test_sync_that_fails_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with begin(out) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(SinkError, match="Input/output error"):
                opened.parts.write(OUTCOMES)
        assert sorted(path.name for path in work_of(opened).iterdir()) == ["lock", "run.json"]


# ------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("out_name", "segments_name", "message"),
    [
        ("results", None, r"expected a file name that ends in \.parquet; for instance .*results\.parquet"),
        ("results.csv", None, r"ends in \.parquet"),
        ("no/r.parquet", None, "there is no folder"),
        ("r.parquet", "r.parquet", "is the same file as --out"),
        ("r.parquet", "no/s.parquet", "there is no folder"),
        ("r.parquet", "s.csv", r"--segments .*ends in \.parquet"),
        ("folder.parquet", None, "is a folder"),
        ("r.parquet", "folder.parquet", "is a folder"),
    ],
)
def test_paths_that_cannot_be(tmp_path: Path, out_name: str, segments_name: str | None, message: str):
    (tmp_path / "folder.parquet").mkdir()
    segments = tmp_path / segments_name if segments_name else None
    with pytest.raises(ConfigError, match=message):
        begin(tmp_path / out_name, segments=segments)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.parquet"]


def test_urls_are_refused():
    with pytest.raises(ConfigError, match="expected a local path"):
        begin("s3://bucket/r.parquet")


def test_folders_that_cannot_be_written(out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SinkError, match="cannot be written to; mend that, or choose another folder"):
        begin(out)
    with pytest.raises(ConfigError, match="is the same file as --out"):  # which no mending of folders would help
        begin(out, segments=out)


def test_own_columns_are_checked_before_anything_starts(out: Path):
    with pytest.raises(ConfigError, match="manifest column 'mean_angry'"):
        begin(out, own=pa.table({"mean_angry": [0] * 6}))
    assert list(out.parent.iterdir()) == []


def test_nothing_to_score(out: Path):
    with pytest.raises(ConfigError, match="no recording"):
        begin(out, recordings=[])


# ------------------------------------------------------------------------------------------------- fingerprint


def test_inputs_fingerprint_covers_what_it_should(tmp_path: Path):
    file = tmp_path / "a.wav"
    file.write_bytes(b"RIFF")
    base = Recording(0, "a", str(file))
    own = pa.table({"team": ["n"]})
    seen = {
        inputs_fingerprint([base]),
        *(
            inputs_fingerprint([dataclasses.replace(base, **change)])
            for change in (
                {"call_id": "b"},
                {"path": "s3://bucket/a.wav"},
                {"roles": ("customer",)},
                {"started_at": NOON},
                {"encoding": "mulaw"},
                {"rate_hz": 8000},
            )
        ),
        inputs_fingerprint([base], own),
        inputs_fingerprint([base], pa.table({"team": ["s"]})),
        inputs_fingerprint([base], pa.table({"crew": ["n"]})),
        inputs_fingerprint([base], pa.table({"team": pa.array(["n"], pa.large_string())})),
    }
    assert len(seen) == 11
    assert inputs_fingerprint([base], own.slice(0, 0)) not in seen
    assert inputs_fingerprint([base], pa.concat_tables([own.slice(0, 0), own])) in seen  # chunks are no content
    os.utime(file, ns=(1, 1))
    assert inputs_fingerprint([base]) not in seen
    file.unlink()
    assert inputs_fingerprint([base]) not in seen


def test_a_part_sink_is_small_and_travels():
    sink = PartSink(LocalStore(Path("/w")), "work", "0" * 12, LABELS, PROVENANCE)
    assert pickle.loads(pickle.dumps(sink)) == sink
    assert len(pickle.dumps(sink)) < 1000
