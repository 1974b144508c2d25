"""A growing dataset: what is there is skipped, what changed is replaced, no row is lost or doubled by any death."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dask.dataframe as dask_frame
import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import call, write
from rows import assert_same_tables

from batchser import dispatch, runner
from batchser.bundle import Bundle
from batchser.dispatch import Task
from batchser.errors import ConfigError
from batchser.records import Recording
from batchser.runner import Job, Report
from batchser.settings import LimitSettings, RunSettings, TrustSettings
from batchser.sink import SinkError, vacuum
from batchser.sink.store import LocalStore


class Silent:
    """A Progress that nobody hears."""

    def say(self, line: str) -> None: ...
    def start(self, total_s: float, recordings: int) -> None: ...
    def begin(self, run_id: str) -> None: ...
    def advance(self, seconds: float, recordings: int, stages: Mapping[str, float]) -> None: ...


class Centre:
    """A call centre: recordings in a folder, a manifest of some of them, and a dataset that takes them in."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder = folder
        self.bundle = bundle
        self.rows: dict[str, dict[str, str]] = {}
        self.drawn = 0
        (folder / "audio").mkdir()

    def record(self, call_id: str, started_at: str = "2026-11-01T09:00:00Z", **own: str) -> None:
        """Record a call, or record it anew."""
        self.drawn += 1
        path = f"audio/{call_id}.wav"
        write(self.folder / path, call(self.drawn, seconds=1.3))
        self.rows[call_id] = {"path": path, "call_id": call_id, "started_at": started_at, **own}

    def job(self, out: str = "night", calls: Sequence[str] | None = None, **changes: object) -> Job:
        """The job of some calls, or of all."""
        chosen = [self.rows[call_id] for call_id in (self.rows if calls is None else calls)]
        manifest = self.folder / "manifest.csv"
        pd.DataFrame(chosen).to_csv(manifest, index=False)
        job = Job((str(manifest),), str(self.folder / out), model=str(self.bundle.folder), workers=0)
        return dataclasses.replace(job, **changes)

    def run(self, out: str = "night", calls: Sequence[str] | None = None, **changes: object) -> Report:
        return runner.run(self.job(out, calls, **changes), Silent())

    def calls(self, out: str = "night") -> pd.DataFrame:
        return pq.read_table(self.folder / out / "calls").to_pandas().set_index("call_id")

    def assert_as_from_scratch(self, out: str = "night") -> None:
        """The dataset is what one run over all recordings makes, and is whole."""
        self.assert_as_from_scratch_of(list(self.rows), out)

    def assert_as_from_scratch_of(self, calls: Sequence[str], out: str = "night") -> None:
        """The same for some recordings alone."""
        self.run("scratch", calls)
        for kind in ("calls", "segments"):
            assert_same_tables(self.folder / out / kind, self.folder / "scratch" / kind, in_any_order=True)
        assert not list((self.folder / out / "_batchser/work").glob("*"))
        ledger = pq.read_table(self.folder / out / "_batchser/ledger").to_pandas()
        assert sorted(ledger["call_id"]) == sorted(calls)


@pytest.fixture
def centre(tmp_path: Path, tiny_bundle: Bundle) -> Centre:
    made = Centre(tmp_path, tiny_bundle)
    for number in range(4):
        made.record(f"c{number}", f"2026-11-0{1 + number % 2}T0{number}:00:00Z", queue=f"q{number}")
    return made


# ---------------------------------------------------------------------------------------------------- growing


def test_a_night_adds_its_calls_by_date(centre: Centre) -> None:
    assert centre.run(calls=["c0", "c1"]).recordings_reused == 0
    report = centre.run(calls=["c2", "c3"])
    assert (report.recordings, report.recordings_reused, report.exit_code) == (2, 0, 0)
    names = sorted(path.relative_to(centre.folder / "night").as_posix() for path in centre.folder.rglob("*.parquet"))
    days = ("2026-11-01", "2026-11-02")
    assert names == sorted(
        name
        for day in days
        for name in (
            f"calls/call_date={day}/calls.parquet",
            f"segments/call_date={day}/segments.parquet",
            f"_batchser/ledger/call_date={day}.parquet",
        )
    )
    assert centre.calls()["call_date"].astype(str).to_dict() == {f"c{k}": days[k % 2] for k in range(4)}
    markers = [json.loads(path.read_text()) for path in sorted((centre.folder / "night/_batchser/runs").iterdir())]
    assert [marker["recordings"] for marker in markers] == [2, 2]
    assert markers[1]["run_id"] == report.run_id
    centre.assert_as_from_scratch()


def test_what_is_there_is_skipped(centre: Centre) -> None:
    centre.run(calls=["c0", "c1"])
    before = {path: path.stat().st_mtime_ns for path in (centre.folder / "night/calls").rglob("*.parquet")}
    report = centre.run()
    assert (report.recordings, report.recordings_reused) == (4, 2)
    assert report.by_status == {"ok": 4}
    assert report.audio_s == pytest.approx(4 * 6.5)
    again = centre.run()
    assert (again.recordings_reused, again.run_id, again.by_status) == (4, report.run_id, report.by_status)
    assert again.scored_windows == report.scored_windows
    assert set(before) < set((centre.folder / "night/calls").rglob("*.parquet")) or len(before) == 2
    centre.assert_as_from_scratch()


def test_a_touched_recording_is_the_same_recording(centre: Centre) -> None:
    centre.run()
    os.utime(centre.folder / "audio/c1.wav", (1, 1))
    assert centre.run().recordings_reused == 4


def changed(centre: Centre, what: str) -> None:
    row = centre.rows["c1"]
    match what:
        case "bytes":
            centre.record("c1", row["started_at"], queue=row["queue"])
        case "queue":
            row["queue"] = "other"
        case "date":
            row["started_at"] = "2026-12-24T23:30:00-02:00"
        case "path":
            moved = centre.folder / "audio/moved.wav"
            (centre.folder / row["path"]).rename(moved)
            row["path"] = "audio/moved.wav"


@pytest.mark.parametrize("what", ["bytes", "queue", "date", "path"])
def test_what_changed_replaces_its_rows(centre: Centre, what: str) -> None:
    centre.run()
    changed(centre, what)
    report = centre.run()
    assert report.recordings_reused == 3
    assert report.exit_code == 0
    if what == "date":
        assert str(centre.calls().loc["c1", "call_date"]) == "2026-12-25"
    centre.assert_as_from_scratch()


def test_what_was_scored_stands_when_its_source_is_gone_or_out_of_reach(
    centre: Centre, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    centre.run()
    before = centre.calls()
    (centre.folder / "audio/c1.wav").rename(centre.folder / "audio/away.wav")
    changed(centre, "queue")
    assert centre.run().recordings_reused == 4  # it cannot be seen
    limits = LimitSettings(trust=TrustSettings(root=str(centre.folder / "nowhere")))
    assert centre.run(settings=RunSettings(limits=limits)).recordings_reused == 4
    pd.testing.assert_frame_equal(centre.calls(), before)

    monkeypatch.setattr("batchser.sink.ledger._version", lambda *_: "it is there")  # and cannot be read all the same
    centre.record("new", queue="q")
    (centre.folder / "audio/new.wav").unlink()
    report = centre.run(fresh=True)
    assert report.by_status == {"unreadable": 1, "ok": 4}
    assert "1 recordings cannot be read now; their rows of before are kept" in caplog.text
    assert centre.calls().loc["c1", "status"] == "ok"
    assert centre.calls().loc["new", "status"] == "unreadable"
    assert len(centre.calls()) == 5


def test_a_day_whose_calls_all_moved_away_goes(centre: Centre) -> None:
    centre.run()
    for call_id in ("c1", "c3"):
        centre.rows[call_id]["started_at"] = "2026-11-01T10:00:00Z"
    centre.run()
    assert [path.name for path in (centre.folder / "night/calls").iterdir()] == ["call_date=2026-11-01"]
    centre.assert_as_from_scratch()


def test_other_settings_and_fresh_replace(centre: Centre) -> None:
    first = centre.run()
    assert centre.run(settings=RunSettings(min_duration_s=1.0)).recordings_reused == 0
    assert centre.run().recordings_reused == 0
    assert centre.run(fresh=True).recordings_reused == 0
    assert centre.run().by_status == first.by_status
    centre.assert_as_from_scratch()


def test_the_missing_and_the_broken_are_not_tried_every_night(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    (centre.folder / "audio/c0.wav").unlink()
    real = dispatch.score_recordings

    def failing(recordings: Sequence[Recording], *more: object) -> Iterator[object]:
        for outcome in real(recordings, *more):
            if outcome.recording.call_id == "c2":
                row = dataclasses.replace(outcome.summaries[0], status="failed", error="unexpected")
                outcome = dataclasses.replace(outcome, summaries=(row,), windows=())
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "score_recordings", failing)
        report = centre.run()
    assert report.by_status == {"unreadable": 1, "failed": 1, "ok": 2}
    assert runner.faults_of(report, most=1) == [("c0", "unreadable", centre.calls().loc["c0", "error"])]
    report = centre.run()
    assert (report.recordings_reused, report.exit_code) == (4, 1)
    assert runner.faults_of(report, most=5) == []  # told when they were found
    report = centre.run(retry_failed=True)
    assert (report.recordings_reused, report.by_status) == (3, {"unreadable": 1, "ok": 3})
    centre.assert_as_from_scratch()


def test_calls_without_a_time_stand_under_the_day_of_scoring(centre: Centre) -> None:
    centre.rows["c0"]["started_at"] = ""
    centre.run()
    assert abs(date.fromisoformat(str(centre.calls().loc["c0", "call_date"])) - datetime.now(UTC).date()) <= timedelta(
        1
    )


# ---------------------------------------------------------------------------------------------------- own columns


def test_a_new_own_column_comes_to_all_days(centre: Centre) -> None:
    centre.run(calls=["c0", "c1"])
    for call_id in ("c2", "c3"):
        centre.rows[call_id]["rank"] = "7"
        centre.rows[call_id]["started_at"] = "2026-11-05T00:00:00Z"
    centre.run(calls=["c2", "c3"])
    calls = centre.calls()  # read by the schema of the first file
    assert calls["rank"].dropna().to_dict() == {"c2": 7, "c3": 7}
    assert calls["queue"].tolist() == ["q0", "q1", "q2", "q3"]
    centre.assert_as_from_scratch()


def test_whole_numbers_become_numbers_and_nothing_else_changes_its_type(centre: Centre) -> None:
    for number, call_id in enumerate(centre.rows):
        centre.rows[call_id]["rank"] = str(number) if number != 3 else "2.5"
    centre.run(calls=["c0", "c1"])
    centre.run(calls=["c3"])
    assert centre.calls()["rank"].to_dict() == {"c0": 0.0, "c1": 1.0, "c3": 2.5}
    assert centre.run(calls=["c0", "c1", "c3"]).recordings_reused == 3  # now numbers, all of them, and still the same
    centre.rows["c2"]["rank"] = "high"
    with pytest.raises(ConfigError, match="manifest column 'rank': is string here and double in the dataset"):
        centre.run(calls=["c2"])
    assert len(centre.calls()) == 3


def test_digits_are_not_lost_to_a_number_that_is_too_short_for_them(centre: Centre) -> None:
    centre.rows["c0"]["rank"] = str(2**53 + 1)
    centre.rows["c1"]["rank"] = "2.5"
    centre.run(calls=["c0"])
    with pytest.raises(ConfigError, match="manifest column 'rank': is double here and int64 in the dataset"):
        centre.run(calls=["c1"])
    assert centre.run(calls=["c0", "c2"]).recordings_reused == 1


@pytest.mark.parametrize("name", ["call_date", "batchser:day", "batchser:index"])
def test_columns_that_are_ours_are_refused(centre: Centre, name: str) -> None:
    centre.rows["c0"][name] = "../../../evil"
    with pytest.raises(ConfigError, match=f"column '{name}'"):
        centre.run(calls=["c0"])
    assert not (centre.folder / "night/calls").exists()


def test_text_is_text_however_it_was_written(centre: Centre) -> None:
    centre.run(calls=["c0"])
    manifest = centre.folder / "m.parquet"
    row = centre.rows["c1"]
    columns = {name: pa.array([value]) for name, value in row.items()}
    columns["path"] = pa.array([str(centre.folder / row["path"])])
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table(columns | {"queue": columns["queue"].cast(kind)}), manifest)
        runner.run(dataclasses.replace(centre.job(), inputs=(str(manifest),)), Silent())
    assert centre.calls()["queue"].to_dict() == {"c0": "q0", "c1": "q1"}


def test_a_column_may_be_empty_for_a_night(centre: Centre) -> None:
    for number, call_id in enumerate(centre.rows):
        centre.rows[call_id]["rank"] = str(number)
    centre.run(calls=["c0"])
    centre.rows["c1"]["rank"] = ""
    centre.run(calls=["c1"])
    assert centre.calls()["rank"].dropna().to_dict() == {"c0": 0}
    centre.assert_as_from_scratch_of(["c0", "c1"])


def test_a_column_that_was_empty_takes_the_type_that_it_gets(centre: Centre) -> None:
    centre.rows["c0"]["note"] = ""
    centre.run(calls=["c0"])
    for call_id in ("c1", "c2", "c3"):
        centre.rows[call_id]["note"] = f"of {call_id}"
    centre.run(calls=["c1", "c2", "c3"])
    assert centre.calls()["note"].dropna().to_dict() == {"c1": "of c1", "c2": "of c2", "c3": "of c3"}
    centre.assert_as_from_scratch()


# ---------------------------------------------------------------------------------------------------- deaths


class Died(BaseException):
    """Stands for a kill: nothing catches it."""


def dying_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the process die at the n-th change that it makes to the store, before it is made."""
    left = steps

    def counted(real: object) -> object:
        def step(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Died
            return real(*arguments)  # type: ignore[operator]

        return step

    for name in ("placing", "move", "remove"):
        monkeypatch.setattr(LocalStore, name, counted(getattr(LocalStore, name)))


def test_one_that_dies_while_it_clears_up_after_another_does_no_harm(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre.run(calls=["c0"])
    with monkeypatch.context() as patch:
        patch.setattr(runner, "score_shard", lambda *_: (_ for _ in ()).throw(Died))
        with pytest.raises(Died):
            centre.run()
    for steps in range(5):
        with monkeypatch.context() as patch:
            dying_after(patch, steps)
            with contextlib.suppress(Died):
                vacuum(centre.folder / "night", call_ids=["nobody"])
    centre.run()
    centre.assert_as_from_scratch()


@pytest.mark.parametrize("steps", range(0, 42, 3))
def test_whenever_a_run_dies_the_next_one_makes_it_good(
    centre: Centre, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Every third of the changes that a run makes to the store is its last in one case."""
    monkeypatch.setattr(runner, "_MIN_SHARD_S", 1.0)  # a shard a recording
    monkeypatch.setattr(runner, "_MAX_SHARD_S", 1.0)
    centre.run(calls=["c0", "c1"])
    changed(centre, "date")
    changed(centre, "bytes")
    with monkeypatch.context() as patch:
        dying_after(patch, steps)
        try:
            centre.run(calls=["c1", "c2", "c3"])
            died = False
        except Died:
            died = True
    assert died or steps >= 36
    centre.run(calls=["c3"])  # not even the same command
    centre.run()
    centre.assert_as_from_scratch()


def test_what_a_dead_run_has_done_is_not_done_again(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_MIN_SHARD_S", 1.0)
    monkeypatch.setattr(runner, "_MAX_SHARD_S", 1.0)
    done = []

    def killed_at_the_third(task: Task, recordings: Sequence[Recording]) -> Mapping[str, float]:
        if len(done) == 2:
            raise KeyboardInterrupt
        seconds = dispatch.score_shard(task, recordings)
        done.append(recordings)
        return seconds

    with monkeypatch.context() as patch:
        patch.setattr(runner, "score_shard", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            centre.run()
    assert not (centre.folder / "night/calls").exists()
    report = centre.run()
    assert (report.recordings, report.recordings_reused) == (4, 2)
    centre.assert_as_from_scratch()


def test_a_full_disk_at_the_commit_leaves_what_was_there(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    centre.run(calls=["c0"])
    before = centre.calls()
    real = LocalStore.placing

    def full(self: LocalStore, name: str) -> object:
        if "staged" in name:
            raise SinkError("No space left on device")
        return real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "placing", full)
        with pytest.raises(SinkError, match="No space left"):
            centre.run()
    pd.testing.assert_frame_equal(centre.calls(), before)
    report = centre.run()
    assert report.recordings_reused == 4  # all that was scored is kept
    centre.assert_as_from_scratch()


def test_a_lost_ledger_costs_work_and_no_row(centre: Centre) -> None:
    centre.run()
    for path in (centre.folder / "night/_batchser/ledger").iterdir():
        path.unlink()
    assert centre.run(calls=["c0"]).recordings_reused == 0
    assert centre.run().recordings_reused == 1
    centre.assert_as_from_scratch()


def test_a_clock_that_jumps_back_changes_nothing(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 12, 24, 2, tzinfo=UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            nonlocal now
            now -= timedelta(hours=7)
            return now

    monkeypatch.setattr("batchser.sink.dataset.datetime", Clock)
    for number in range(1, 5):
        assert centre.run(calls=[f"c{k}" for k in range(number)]).recordings_reused == number - 1
    assert len(list((centre.folder / "night/_batchser/runs").iterdir())) == 4
    centre.assert_as_from_scratch()


@pytest.mark.parametrize("damage", ["emptied", "torn"])
def test_a_damaged_ledger_doubles_no_row(centre: Centre, damage: str) -> None:
    centre.run()
    for path in (centre.folder / "night/_batchser/ledger").iterdir():
        if damage == "torn":
            path.write_bytes(path.read_bytes()[:50])
        else:
            pq.write_table(pq.ParquetFile(path).read().slice(0, 0), path)
    assert centre.run().recordings_reused == 0
    assert vacuum(centre.folder / "night", call_ids=["c1"]).calls == ("c1",)
    del centre.rows["c1"]
    centre.assert_as_from_scratch()


def test_work_that_makes_no_sense_does_not_stand_in_the_way(
    centre: Centre, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("batchser.sink.dataset.DatasetRun.commit", lambda self: (_ for _ in ()).throw(Died))
        with pytest.raises(Died):
            centre.run()
    recordings = centre.folder / "night/_batchser/work/recordings.parquet"
    pq.write_table(pq.ParquetFile(recordings).read().slice(0, 1), recordings)
    assert centre.run().recordings_reused == 0
    assert "what a run that died has left makes no sense" in caplog.text
    centre.assert_as_from_scratch()


def test_a_damaged_dataset_json_is_told(centre: Centre) -> None:
    centre.run(calls=["c0"])
    (centre.folder / "night/_batchser/dataset.json").write_text("{")
    with pytest.raises(ConfigError, match=r"dataset.json: makes no sense; restore it"):
        centre.run()


def test_out_may_be_a_file_url(centre: Centre) -> None:
    job = dataclasses.replace(centre.job(), out=(centre.folder / "night").as_uri())
    runner.run(job, Silent())
    centre.assert_as_from_scratch()


def test_two_runs_at_once(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(task: Task, recordings: Sequence[Recording]) -> Mapping[str, float]:
        with pytest.raises(ConfigError, match="another run is at work"):
            centre.run()
        with pytest.raises(ConfigError, match="another run is at work"):
            vacuum(centre.folder / "night", call_ids=["c0"])
        return dispatch.score_shard(task, recordings)

    monkeypatch.setattr(runner, "score_shard", meanwhile)
    centre.run()
    monkeypatch.undo()
    centre.assert_as_from_scratch()


# ---------------------------------------------------------------------------------------------------- refused


def test_places_that_cannot_be(centre: Centre) -> None:
    (centre.folder / "file").write_text("x")
    (centre.folder / "full").mkdir()
    (centre.folder / "full/precious.txt").write_text("x")
    for out, words in (
        ("file", "is a file; give a folder"),
        ("full", "holds files and is no dataset of batchser"),
        ("no/where", "there is no folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            centre.run(out)
    with pytest.raises(ConfigError, match=r"--segments elsewhere\.parquet: a dataset has its own place"):
        centre.run(segments="elsewhere.parquet")
    with pytest.raises(ConfigError, match="--retry-failed: is for datasets"):
        centre.run("r.parquet", retry_failed=True)


def test_a_dataset_of_other_labels_is_refused(centre: Centre) -> None:
    centre.run(calls=["c0"])
    state = centre.folder / "night/_batchser/dataset.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"labels": ["calm"]}))
    with pytest.raises(ConfigError, match=r"is a dataset of schema 1 with the labels calm; this run has schema 1 with"):
        centre.run()


def test_a_run_that_would_score_nothing_leaves_nothing(centre: Centre) -> None:
    with pytest.raises(ConfigError, match="nothing would be scored"):
        centre.run(settings=RunSettings(roles=("customer",)))
    assert not (centre.folder / "night/calls").exists()
    assert centre.run().recordings_reused == 0


# ---------------------------------------------------------------------------------------------------- vacuum


def names_in(path: Path) -> set[str]:
    """All call_ids that a file holds, in its rows or left over in a dictionary."""
    names: set[str] = set()
    for chunk in pq.read_table(path)["call_id"].chunks:
        names |= set((chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk).to_pylist())
    return names


def test_vacuum_forgets_days_and_calls_everywhere(centre: Centre) -> None:
    centre.record("old", "2020-01-01T00:00:00Z", queue="q")
    centre.run()
    night = centre.folder / "night"
    plan = vacuum(night, before=date(2026, 1, 1), call_ids=["c1", "c2", "nobody"], dry_run=True)
    assert len(centre.calls()) == 5
    done = vacuum(night, before=date(2026, 1, 1), call_ids=["c1", "c2", "nobody"])
    assert done == plan
    assert (done.days, done.calls, done.unknown) == (("call_date=2020-01-01",), ("c1", "c2"), ("nobody",))
    for path in night.rglob("*.parquet"):
        assert not {"old", "c1", "c2"} & names_in(path), path
    for call_id in ("old", "c1", "c2"):
        del centre.rows[call_id]
    centre.assert_as_from_scratch()
    assert centre.run().recordings_reused == 2


def test_vacuum_of_a_whole_day_call_by_call(centre: Centre) -> None:
    centre.run()
    vacuum(centre.folder / "night", call_ids=["c1", "c3"])
    assert [path.name for path in (centre.folder / "night/calls").iterdir()] == ["call_date=2026-11-01"]


def test_vacuum_reaches_what_a_dead_run_has_left(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("batchser.sink.dataset.DatasetRun.commit", lambda self: (_ for _ in ()).throw(Died))
        with pytest.raises(Died):
            centre.run()
    assert vacuum(centre.folder / "night", call_ids=["c1"]).calls == ("c1",)
    assert sorted(centre.calls().index) == ["c0", "c2", "c3"]


def test_vacuum_of_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no dataset of batchser"):
        vacuum(tmp_path / "nowhere", call_ids=["c"])


# ---------------------------------------------------------------------------------------------------- thirty nights


@pytest.mark.parametrize("nights", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_nights_of_late_changed_renamed_and_erased_calls_end_as_one_run_from_scratch(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, nights: int
) -> None:
    monkeypatch.setattr(runner, "_MIN_SHARD_S", 10.0)
    monkeypatch.setattr(runner, "_MAX_SHARD_S", 10.0)
    chance = random.Random(20261123)
    centre = Centre(tmp_path, tiny_bundle)
    first = datetime(2026, 10, 1, 8, tzinfo=UTC)
    deaths = 0
    for night in range(nights):
        today = set()
        for number in range(6):
            day = max(0, night - (chance.randrange(5) if number == 0 else 0))  # one of them is late
            call_id = f"n{night}-{number}"
            own = {"queue": chance.choice("abc"), **({"rank": str(number)} if night > 2 else {})}
            centre.record(call_id, str(first + timedelta(days=day, minutes=number)), **own)
            today.add(call_id)
        older = sorted(set(centre.rows) - today)
        for call_id in chance.sample(older, min(2, len(older))):
            what = chance.choice(["bytes", "queue", "date", "path"])
            row = centre.rows[call_id]
            if what == "bytes":
                write(tmp_path / row["path"], call(1000 + night, seconds=1.2))
            elif what == "queue":
                row["queue"] = "moved"
            elif what == "date":
                row["started_at"] = str(first + timedelta(days=chance.randrange(night + 1)))
            else:
                name = f"audio/{call_id}-renamed-{night}.wav"
                (tmp_path / row["path"]).rename(tmp_path / name)
                row["path"] = name
            today.add(call_id)
        chosen = sorted(centre.rows if chance.random() < 0.3 else today)
        if chance.random() < 0.4:  # this night dies; another comes to its end, with these calls or without
            deaths += 1
            with monkeypatch.context() as patch:
                dying_after(patch, chance.randrange(3, 40))
                with contextlib.suppress(Died):
                    centre.run(calls=chosen)
        centre.run(calls=chosen)
        if night % 4 == 3:
            (erased,) = chance.sample(sorted(centre.rows), 1)
            assert vacuum(tmp_path / "night", call_ids=[erased]).calls == (erased,)
            del centre.rows[erased]
    assert deaths
    centre.assert_as_from_scratch()
    assert sorted(centre.calls().index) == sorted(centre.rows)


# ---------------------------------------------------------------------------------------------------- readers


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # of Dask's, with pandas 3
def test_pandas_polars_duckdb_and_dask_read_it_directly(centre: Centre) -> None:
    centre.run()
    calls = str(centre.folder / "night/calls")
    expected = {"c0": "2026-11-01", "c1": "2026-11-02", "c2": "2026-11-01", "c3": "2026-11-02"}
    by_pandas = pd.read_parquet(calls).set_index("call_id")["call_date"].astype(str).to_dict()
    by_dask = dask_frame.read_parquet(calls).compute().set_index("call_id")["call_date"].astype(str).to_dict()
    found = polars.scan_parquet(calls, hive_partitioning=True).select("call_id", "call_date").collect()
    by_polars = {call_id: str(day) for call_id, day in found.rows()}
    query = f"select call_id, call_date from read_parquet('{calls}/**/*.parquet', hive_partitioning = true)"
    by_duckdb = {call_id: str(day) for call_id, day in duckdb.sql(query).fetchall()}
    assert by_pandas == by_dask == by_polars == by_duckdb == expected
    segments = str(centre.folder / "night/segments")
    joined = f"""select count(*), count(distinct c.call_id) from read_parquet('{segments}/**/*.parquet') s
        join read_parquet('{calls}/**/*.parquet') c on s.call_id = c.call_id and s.channel = c.channel"""
    assert duckdb.sql(joined).fetchall() == [(12, 4)]


def test_stated_types_are_kept(centre: Centre) -> None:
    centre.run()
    schema = pq.read_schema(centre.folder / "night/calls/call_date=2026-11-01/calls.parquet")
    assert schema.field("queue").type == pa.string()
    assert {b"batchser.schema_version", b"batchser.run_id", b"batchser.labels"} <= set(schema.metadata)
