"""The runner: whichever way a job is run, broken off or taken up again, the same rows come out, each once."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import LABELS, RATE_HZ, call, scheduler_address, silence, speechlike, write
from rows import TOLERANCE, assert_same_tables

from batchser import cluster as cluster_module
from batchser import dispatch, runner, summary
from batchser.bundle import Bundle
from batchser.cluster import ClusterError
from batchser.dispatch import Dispatcher, RunError, Task, score_shard
from batchser.errors import ConfigError
from batchser.records import FAULTS, KINDS, STATUSES, Recording
from batchser.runner import Job, Report
from batchser.settings import RunSettings
from batchser.sink import SinkError

#: call_id → what its rows must say. Between the faults lie good recordings of a minute each: several shards.
EXPECTED = {
    "mono": "ok",
    "random": "unreadable",
    "empty": "unreadable",
    "stereo": "ok",
    "text": "unreadable",
    "one-sample": "too_short",
    "same-twice": "ok",
    "many-channels": "unreadable",
    "one-hertz": "unreadable",
    "not-a-number": "unreadable",
    "half": "ok",
    "missing": "unreadable",
    "roles-mismatch": "unreadable",
    "agent-alone": "not_scored",
    "unknown-stereo": "not_scored",
    "hush": "no_speech",
    "folder": "unreadable",
    "mulaw": "ok",
}
ROLES = {
    "stereo": "agent,customer",
    "roles-mismatch": "agent,customer",
    "agent-alone": "agent",
    "mulaw": "customer",
}

Seconds = Mapping[str, float]


class Told:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.total_s = self.done_s = 0.0
        self.recordings = self.total = 0
        self.stages: Counter[str] = Counter()

    def say(self, line: str) -> None:
        self.lines.append(line)

    def start(self, total_s: float, recordings: int) -> None:
        self.total_s, self.total = total_s, recordings

    def begin(self, run_id: str) -> None:
        self.run_id = run_id

    def advance(self, seconds: float, recordings: int, stages: Mapping[str, float]) -> None:
        self.stages.update(stages)
        self.done_s += seconds
        self.recordings += recordings


def write_recordings(folder: Path) -> None:
    """Write one recording of each kind in EXPECTED, but the missing one."""
    minute = call(1, seconds=12.0)  # 60 s
    write(folder / "mono.wav", minute)
    write(folder / "stereo.wav", minute, call(2, seconds=12.0))
    write(folder / "same-twice.wav", minute[: 20 * RATE_HZ], minute[: 20 * RATE_HZ])
    write(folder / "mulaw.wav", call(3, seconds=12.0), subtype="ULAW")
    write(folder / "roles-mismatch.wav", minute[:RATE_HZ])
    write(folder / "agent-alone.wav", minute[: 5 * RATE_HZ])
    write(folder / "unknown-stereo.wav", speechlike(4, 8), speechlike(4, 9))
    write(folder / "hush.wav", silence(7))
    write(folder / "one-sample.wav", minute[:1])
    write(folder / "many-channels.wav", *[minute[:80]] * 64)
    write(folder / "one-hertz.wav", minute[:80], rate_hz=1)
    write(folder / "not-a-number.wav", np.where(np.arange(800) % 100, 0.1, np.nan), subtype="FLOAT")
    write(folder / "half.wav", minute)
    half = (folder / "half.wav").read_bytes()
    (folder / "half.wav").write_bytes(half[: len(half) // 2])
    (folder / "random.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("This is no recording.\n" * 50, encoding="utf-8")
    (folder / "folder.wav").mkdir()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of everything in EXPECTED with columns of its own."""
    folder = tmp_path_factory.mktemp("recordings")
    write_recordings(folder)
    lines = ["path,roles,started_at,queue,handle_time_s,vip"]
    for number, name in enumerate(EXPECTED):
        roles = f'"{ROLES[name]}"' if name in ROLES else ""
        lines.append(f"{name}.wav,{roles},2026-03-0{1 + number % 9}T10:00:00+01:00,q{number % 3},{number},{number > 4}")
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def job(manifest: Path, tiny_bundle: Bundle) -> Job:
    """The job in this process; tests replace what they need."""
    return Job((str(manifest),), "", model=str(tiny_bundle.folder), workers=0)


@pytest.fixture(scope="module")
def undisturbed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of the job, done in this process."""
    return runner.run(at(job, tmp_path_factory.mktemp("undisturbed")), Told())


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Dask cluster of two processes, as somebody else might run it."""
    import dask
    from distributed import LocalCluster

    with (
        # Workers that die are started again, as somebody else's are: see batchser.cluster.
        dask.config.set(
            {"distributed.scheduler.allowed-failures": 0, "distributed.deploy.lost-worker-timeout": "1 day"}
        ),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as started,
    ):
        yield started.scheduler_address


def at(job: Job, folder: Path, **changes: object) -> Job:
    """The job with its output in a folder."""
    return dataclasses.replace(job, out=str(folder / "r.parquet"), **changes)


def calls_of(report: Report) -> pd.DataFrame:
    return pq.read_table(report.out).to_pandas()


def segments_of(report: Report) -> pd.DataFrame:
    return pq.read_table(report.segments).to_pandas()


def assert_same_rows(one: Report, other: Report) -> None:
    """Both tables are the same, row by row: all but the time of scoring, scores within TOLERANCE."""
    assert_same_tables(one.out, other.out)
    assert_same_tables(one.segments, other.segments)


# ---------------------------------------------------------------------------------------------------- accounting


def test_every_recording_has_its_row_and_status(undisturbed: Report) -> None:
    calls = calls_of(undisturbed)
    assert list(dict.fromkeys(calls["call_id"])) == list(EXPECTED)  # in the order of the manifest
    assert dict(zip(calls["call_id"], calls["status"], strict=True)) == EXPECTED
    counts = {status: list(EXPECTED.values()).count(status) for status in STATUSES}
    assert undisturbed.by_status == {status: count for status, count in counts.items() if count}
    assert undisturbed.recordings == len(EXPECTED)
    assert undisturbed.exit_code == 1
    assert undisturbed.recordings_reused == 0


def test_a_fault_says_what_was_found(undisturbed: Report) -> None:
    calls = calls_of(undisturbed).set_index("call_id")
    said = {
        "random": "no known audio header",
        "empty": "0 bytes",
        "text": "starts with text",
        "many-channels": "64 channels, expected 1 to 8",
        "one-hertz": "1 Hz, expected 4000",
        "not-a-number": "8 of the file's 800 samples are not finite",
        "missing": "no such file",
        "roles-mismatch": "2 roles (agent,customer) but the recording has 1 channel",
        "folder": "not a regular file",
    }
    for call_id, words in said.items():
        assert words in calls.loc[call_id, "error"], call_id
    assert set(said) == {call_id for call_id, status in EXPECTED.items() if status in FAULTS}
    assert calls.loc[list(said), "channel"].isna().all()
    assert calls.drop(list(said))["error"].isna().all()
    assert list(calls.index[calls["truncated"]]) == ["half"]


def test_windows_tile_every_second_of_every_channel(undisturbed: Report) -> None:
    calls, segments = calls_of(undisturbed), segments_of(undisturbed)
    duration_s = calls.groupby("call_id", observed=True)["duration_s"].first().dropna()
    assert set(segments["call_id"]) == set(duration_s.index)
    expected_channels = {"stereo": 2, "unknown-stereo": 2}
    for call_id, windows in segments.groupby("call_id", observed=True):
        assert windows["channel"].nunique() == expected_channels.get(call_id, 1)
        for _, of_channel in windows.groupby("channel"):
            start_s, end_s = of_channel["start_s"].to_numpy(), of_channel["end_s"].to_numpy()
            assert start_s[0] == 0
            assert (start_s[1:] == end_s[:-1]).all()
            assert end_s[-1] == duration_s[call_id]
            assert (np.diff(start_s) == 3).all()
            assert of_channel["segment"].tolist() == list(range(len(of_channel)))
    assert undisturbed.audio_s == pytest.approx(duration_s.sum(), abs=1e-3)
    assert duration_s["half"] == pytest.approx(30, abs=0.01)


def test_seconds_by_kind_sum_to_the_length(undisturbed: Report) -> None:
    calls = calls_of(undisturbed).dropna(subset=["channel"])
    assert len(calls) == sum(status in ("ok", "too_short", "no_speech") for status in EXPECTED.values())
    by_kind_s = calls[[f"{kind}_s" for kind in KINDS]].sum(axis=1)
    np.testing.assert_allclose(by_kind_s, calls["duration_s"], rtol=0, atol=1e-9)
    scored = segments_of(undisturbed)["emotion"].notna()
    assert calls["num_scored"].sum() == scored.sum() == undisturbed.scored_windows > 20


def test_agents_are_scored_only_when_asked(undisturbed: Report, job: Job, tmp_path: Path) -> None:
    segments = segments_of(undisturbed)
    assert "agent" in set(segments["role"])
    assert segments.loc[segments["role"].isin(["agent", "unknown"]), "emotion"].isna().all()
    assert not calls_of(undisturbed)["role"].isin(["agent", "unknown"]).any()
    asked = calls_of(runner.run(at(job, tmp_path, settings=RunSettings(roles=("all",))), Told()))
    channels = asked.loc[asked["call_id"] == "stereo", ["channel", "role"]].to_numpy().tolist()
    assert channels == [[0, "agent"], [1, "customer"]]
    assert asked.loc[asked["role"] == "agent", "emotion"].notna().all()


def test_parties_on_two_channels_are_told_apart(undisturbed: Report) -> None:
    calls = calls_of(undisturbed).set_index("call_id")
    stereo = calls.loc["stereo"]
    assert stereo["role"] == "customer"
    assert 0 < stereo["talk_share"] < 1
    assert 0 < stereo["overtalk_s"] <= stereo["voiced_s"]
    assert calls.loc["mono", "role"] == calls.loc["same-twice", "role"] == "mixed"
    assert calls.loc["mono", "talk_share"] == 1
    assert np.isnan(calls.loc["mono", "overtalk_s"])


def test_channel_roles_are_for_rows_without_roles(job: Job, undisturbed: Report, tmp_path: Path) -> None:
    settings = RunSettings(channel_roles=("customer", "agent"))
    calls = calls_of(runner.run(at(job, tmp_path, settings=settings), Told()))
    changed = calls.set_index("call_id")["status"]
    assert changed["unknown-stereo"] == "ok"
    assert changed.drop("unknown-stereo").to_dict() == {k: v for k, v in EXPECTED.items() if k != "unknown-stereo"}
    assert calls.loc[calls["call_id"] == "stereo", "channel"].tolist() == [1]  # its own roles count
    assert set(calls["settings_sha256"]) != set(calls_of(undisturbed)["settings_sha256"])


def test_own_columns_travel_with_their_types(undisturbed: Report) -> None:
    table = pq.read_table(undisturbed.out)
    assert table.schema.field("queue").type == pa.string()
    assert table.schema.field("handle_time_s").type == pa.int64()
    assert table.schema.field("vip").type == pa.bool_()
    assert table["handle_time_s"].to_pylist() == [list(EXPECTED).index(name) for name in table["call_id"].to_pylist()]
    assert str(table["started_at"][0].as_py()) == "2026-03-01 09:00:00+00:00"
    assert table.column_names.index("queue") == table.column_names.index("abstained_share") + 1


def test_progress_is_told_of_all_seconds_and_recordings(job: Job, tmp_path: Path) -> None:
    told = Told()
    report = runner.run(at(job, tmp_path), told)
    assert told.recordings == told.total == len(EXPECTED)
    assert told.done_s == pytest.approx(told.total_s)
    assert told.total_s == pytest.approx(report.audio_s, rel=0.01)
    assert "reading 18 headers" in told.lines
    assert told.run_id == report.run_id
    assert set(told.stages) == {"decode", "features", "scoring", "summary", "tables"}
    assert 0 < sum(told.stages.values()) <= report.seconds


def test_the_first_faults_are_read_back(undisturbed: Report) -> None:
    faults = runner.faults_of(undisturbed, most=3)
    assert [fault[:2] for fault in faults] == [(name, "unreadable") for name in ("random", "empty", "text")]
    assert all(sentence for *_, sentence in faults)


# -------------------------------------------------------------------------------------------- other ways, same rows


def test_a_cluster_by_address_gives_the_same_rows(job: Job, cluster: str, undisturbed: Report, tmp_path: Path) -> None:
    told = Told()
    report = runner.run(at(job, tmp_path, scheduler=cluster, workers=None), told)
    assert_same_rows(undisturbed, report)
    assert told.recordings == len(EXPECTED)
    assert report.by_status == undisturbed.by_status


def test_own_worker_processes_give_the_same_rows_and_a_clean_log(job: Job, undisturbed: Report, tmp_path: Path) -> None:
    started = run_command(job, tmp_path, "--workers", "2")
    output, errors = started.communicate(timeout=240)
    assert started.returncode == 1, errors
    report = dataclasses.replace(
        undisturbed, out=str(tmp_path / "r.parquet"), segments=str(tmp_path / "r.segments.parquet")
    )
    assert_same_rows(undisturbed, report)
    assert "starting 2 worker processes" in errors
    assert f"calls     {report.out}" in output
    for word in ("Traceback", "distributed", "WARNING", "ERROR", "tensorflow", "Exception", "cuda"):
        assert word not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.parquet", "r.segments.parquet"]


def test_shards_of_one_recording_give_the_same_rows(
    job: Job, undisturbed: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_MIN_SHARD_S", 1e-3)
    monkeypatch.setattr(runner, "_MAX_SHARD_S", 1e-3)
    assert_same_rows(undisturbed, runner.run(at(job, tmp_path), Told()))


def test_no_scheduler_at_the_address(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchser.cluster._CONNECT_S", 1.0)
    with pytest.raises(ConfigError, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        runner.run(at(job, tmp_path, scheduler="tcp://127.0.0.1:9", workers=None), Told())
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- interrupted


def breaking_after(shards: int, error: BaseException) -> Callable[[Task, Sequence[Recording]], Seconds]:
    """A ``score_shard`` that raises once so many shards are done."""
    done = 0

    def broken(task: Task, recordings: Sequence[Recording], limits_s: Sequence[float] | None = None) -> Seconds:
        nonlocal done
        if done == shards:
            raise error
        seconds = score_shard(task, recordings)
        done += 1
        return seconds

    return broken


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_an_interrupted_run_is_taken_up_again(
    job: Job, undisturbed: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    here = at(job, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "score_shard", breaking_after(shards, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            runner.run(here, Told())
    assert not Path(here.out).exists()
    told = Told()
    report = runner.run(here, told)
    assert (report.recordings_reused > 0) is (shards > 0)
    assert told.recordings == len(EXPECTED) - report.recordings_reused
    assert_same_rows(undisturbed, report)
    assert report.by_status == undisturbed.by_status
    assert report.audio_s == undisturbed.audio_s
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.parquet", "r.segments.parquet"]


def test_a_full_disk_breaks_the_run_off_and_it_resumes(
    job: Job, undisturbed: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = at(job, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "score_shard", breaking_after(2, SinkError("no space left on device")))
        with pytest.raises(SinkError, match="no space left"):
            runner.run(here, Told())
    report = runner.run(here, Told())
    assert report.recordings_reused > 0
    assert_same_rows(undisturbed, report)


def test_the_same_command_on_a_finished_output_does_nothing(job: Job, tmp_path: Path) -> None:
    here = at(job, tmp_path)
    first = runner.run(here, Told())
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    told = Told()
    again = runner.run(here, told)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert again.recordings_reused == again.recordings == first.recordings
    assert (again.run_id, again.by_status, again.exit_code) == (first.run_id, first.by_status, 1)
    assert again.x_realtime == 0
    assert "is finished" in told.lines[-1]

    other = dataclasses.replace(here, settings=RunSettings(min_duration_s=1.0))
    with pytest.raises(ConfigError, match="is the result of other settings; choose another --out"):
        runner.run(other, Told())
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    fresh = runner.run(dataclasses.replace(other, fresh=True), Told())
    assert fresh.run_id != first.run_id
    assert fresh.recordings_reused == 0


def test_unfinished_work_of_other_settings_is_not_mixed(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = at(job, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "score_shard", breaking_after(1, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            runner.run(here, Told())
    other = dataclasses.replace(here, settings=RunSettings(roles=("customer",)))
    with pytest.raises(ConfigError, match="interrupted run of other settings"):
        runner.run(other, Told())
    fresh = runner.run(dataclasses.replace(other, fresh=True), Told())
    assert fresh.recordings_reused == 0
    assert set(calls_of(fresh)["role"].dropna()) == {"customer"}


def run_command(job: Job, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start the job as a user does, in a session of its own, as a terminal would."""
    command = ["run", *job.inputs, "--out", str(folder / "r.parquet"), "--model", job.model, *more]
    # Tests that a shell runs in the background are born deaf to Ctrl-C; the command must not inherit that.
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [Path(sys.executable).with_name("batchser"), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, kept)


@pytest.fixture(scope="module")
def long_job(job: Job, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job of forty shards, so that there is a middle to stop it in."""
    folder = tmp_path_factory.mktemp("long")
    lines = [f"{manifest.parent / 'mono.wav'},c{number}" for number in range(40)]
    (folder / "manifest.csv").write_text("\n".join(["path,call_id", *lines, ""]), encoding="utf-8")
    return dataclasses.replace(job, inputs=(str(folder / "manifest.csv"),))


@pytest.mark.parametrize(
    ("workers", "number", "whole_group"),
    [("0", signal.SIGTERM, False), ("2", signal.SIGINT, True)],
    ids=["term", "ctrl-c"],
)
def test_a_signal_interrupts_and_the_same_command_resumes(
    long_job: Job, tmp_path: Path, workers: str, number: signal.Signals, whole_group: bool
) -> None:
    started = run_command(long_job, tmp_path, "--workers", workers)
    work = tmp_path / "r.parquet.work"
    until = time.monotonic() + 240
    while not list(work.glob("calls-*.parquet")):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    (os.killpg if whole_group else os.kill)(started.pid, number)
    output, errors = started.communicate(timeout=240)
    assert started.returncode == 130, errors
    assert (
        errors.splitlines()[-1] == "interrupted; a run keeps what is done: the same command, without --fresh, resumes"
    )
    assert "Traceback" not in errors
    assert not output
    assert not Path(tmp_path / "r.parquet").exists()

    report = runner.run(at(long_job, tmp_path), Told())
    assert report.exit_code == 0
    assert report.recordings == 40
    assert 0 < report.recordings_reused < 40
    calls = calls_of(report)
    assert calls["call_id"].tolist() == [f"c{number}" for number in range(40)]
    assert np.ptp(calls["negativity"]) <= TOLERANCE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.parquet", "r.segments.parquet"]


# ---------------------------------------------------------------------------------------------------- dead workers


def test_a_death_in_loading_the_model_is_forgiven_once_but_not_every_time(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    def die_once(marker: Path) -> None:
        if not marker.exists():
            marker.touch()
            os._exit(1)

    with Client(cluster) as client:
        monkeypatch.setattr(dispatch, "warm_up", die_once)  # travels to the workers by value
        Dispatcher(client, tmp_path / "died", {}, list)._check_workers()
        assert (tmp_path / "died").exists()
        monkeypatch.setattr(dispatch, "warm_up", lambda task: os._exit(1))
        with pytest.raises(RunError, match="died while it loaded the model, with no recording to blame"):
            Dispatcher(client, None, {}, list)._check_workers()


def test_a_recording_that_kills_its_process_costs_its_own_row(
    job: Job,
    cluster: str,
    undisturbed: Report,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    killers = {"empty", "mono"}  # one amid others in its shard, one alone in it

    def score_or_die(task: Task, recordings: Sequence[Recording], limits_s: Sequence[float] | None = None) -> Seconds:
        if any(recording.call_id in killers for recording in recordings):
            os._exit(1)
        return score_shard(task, recordings)

    monkeypatch.setattr(dispatch, "score_shard", score_or_die)  # travels to the workers by value
    told = Told()
    report = runner.run(at(job, tmp_path, scheduler=cluster, workers=None), told)
    assert report.exit_code == 1
    assert report.by_status["crashed"] == len(killers)
    assert told.recordings == len(EXPECTED)
    calls, expected = calls_of(report), calls_of(undisturbed)
    crashed = calls[calls["status"] == "crashed"]
    assert set(crashed["call_id"]) == killers
    assert crashed["error"].str.contains("the process that read this recording died").all()
    assert crashed["channel"].isna().all()
    columns = ["call_id", "channel", "status", "emotion", "num_segments", "queue", "source_sha256"]
    innocent, was = (table[~table["call_id"].isin(killers)][columns].astype(object) for table in (calls, expected))
    pd.testing.assert_frame_equal(innocent.reset_index(drop=True), was.reset_index(drop=True))
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert sorted(logged) == [f"{name}: ended its process; its row has status 'crashed'" for name in sorted(killers)]


def test_a_recording_that_never_ends_costs_its_own_row(
    job: Job, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_or_hang(task: Task, recordings: Sequence[Recording], limits_s: Sequence[float] | None = None) -> Seconds:
        for recording in dispatch._timed(recordings, limits_s or ()):
            while recording.call_id == "one-sample":
                pass  # as a decoder's loop: it gives no one a chance to ask it to stop
        dispatch.processes.clear_alarm()  # the others have all the time that a busy machine may need
        return score_shard(task, recordings, [240.0] * len(recordings))

    monkeypatch.setattr(dispatch, "score_shard", score_or_hang)  # travels to the workers by value
    report = runner.run(at(job, tmp_path, scheduler=cluster, workers=None, time_limit_s=1.0), Told())
    calls = calls_of(report).set_index("call_id")
    assert calls["status"].to_dict() == EXPECTED | {"one-sample": "crashed"}
    assert "died, or was ended after 1 s (--time-limit), twice" in calls.loc["one-sample", "error"]


@pytest.mark.parametrize("deaths", [2, 3])
def test_worker_processes_that_die_at_their_start_are_started_again(
    monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    started = []

    def local_cluster(**_: object) -> str:
        started.append(1)
        if len(started) <= deaths:
            raise RuntimeError("Nanny failed to start.")
        return "a cluster"

    monkeypatch.setattr("distributed.LocalCluster", local_cluster)
    monkeypatch.setattr(cluster_module.time, "sleep", lambda _: None)
    if deaths == 2:
        assert cluster_module._own_cluster(2) == "a cluster"
    else:
        with pytest.raises(ClusterError, match=r"cannot be started here \(Nanny failed to start\.\); what is"):
            cluster_module._own_cluster(2)
    assert len(started) == 3


def test_a_worker_that_dies_while_it_is_prepared_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        told = 0

        def register_plugin(self, plugin: object, name: str) -> None:
            self.told += 1
            if self.told < 3:
                raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(cluster_module.time, "sleep", lambda _: None)
    client = Client()
    cluster_module._prepare_workers(client)
    assert client.told == 3


def test_a_cluster_without_workers_breaks_the_run_off(
    job: Job, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(task: Task, recordings: Sequence[Recording], limits_s: Sequence[float] | None = None) -> Seconds:
        time.sleep(2)
        return {}

    monkeypatch.setattr(dispatch, "score_shard", slow)
    monkeypatch.setattr(dispatch, "_LOOK_S", 0.1)
    monkeypatch.setattr(dispatch, "_NO_WORKER_S", 0.3)
    monkeypatch.setattr(Dispatcher, "_num_workers", lambda self: 0)
    with pytest.raises(RunError, match=r"the cluster has had no worker for .* the same command resumes"):
        runner.run(at(job, tmp_path, scheduler=cluster, workers=None), Told())


def test_an_error_in_the_middle_of_one_recording_costs_its_own_row(
    job: Job, undisturbed: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    summarise = summary.summarise

    def fails_for_hush(*arguments: object, duration_s: float, **more: object) -> object:
        if duration_s == 7.0:
            raise ZeroDivisionError("nobody thought of this")
        return summarise(*arguments, duration_s=duration_s, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(summary, "summarise", fails_for_hush)
    report = runner.run(at(job, tmp_path), Told())
    calls = calls_of(report).set_index("call_id")
    assert calls["status"].to_dict() == EXPECTED | {"hush": "failed"}
    assert "unexpected ZeroDivisionError: nobody thought of this" in calls.loc["hush", "error"]
    assert "hush" not in set(segments_of(report)["call_id"])
    (record,) = caplog.records
    assert record.getMessage() == "hush: an unexpected error; its row has status 'failed'"
    assert record.exc_info is not None


def test_an_error_of_the_worker_itself_is_not_blamed_on_recordings(
    job: Job, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(task: Task, recordings: Sequence[Recording], limits_s: Sequence[float] | None = None) -> Seconds:
        raise ModuleNotFoundError("No module named 'batchser'")

    monkeypatch.setattr(dispatch, "score_shard", broken)
    with pytest.raises(RunError, match="ModuleNotFoundError: No module named 'batchser'"):
        runner.run(at(job, tmp_path, scheduler=cluster, workers=None), Told())
    assert not Path(tmp_path / "r.parquet").exists()


def test_a_scheduler_that_goes_away_breaks_the_run_off(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, worker = (
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{name}", *options, "--no-dashboard"],
            stderr=subprocess.DEVNULL,
        )
        for name, options in (
            ("scheduler", ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(tmp_path / "address.json")]),
            ("worker", ["--scheduler-file", str(tmp_path / "address.json"), "--no-nanny"]),
        )
    )

    def slow(task: Task, recordings: Sequence[Recording], limits_s: Sequence[float] | None = None) -> Seconds:
        time.sleep(0.5)
        return {}

    class Killing(Told):
        def advance(self, seconds: float, recordings: int, stages: Mapping[str, float]) -> None:
            scheduler.kill()

    monkeypatch.setattr(dispatch, "score_shard", slow)
    try:
        address = scheduler_address(tmp_path / "address.json")
        with pytest.raises(RunError, match="the Dask scheduler is gone"):
            runner.run(at(job, tmp_path, scheduler=address, workers=None), Killing())
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()


def test_a_full_disk_under_a_worker_breaks_the_run_off(
    job: Job, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(task: Task, recordings: Sequence[Recording], limits_s: Sequence[float] | None = None) -> Seconds:
        raise SinkError("part: cannot be written (No space left on device)")

    monkeypatch.setattr(dispatch, "score_shard", full)
    with pytest.raises(SinkError, match="No space left on device"):
        runner.run(at(job, tmp_path, scheduler=cluster, workers=None), Told())


# ---------------------------------------------------------------------------------------------------- refused


def test_faults_of_model_inputs_and_output_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,roles\na.wav,boss\n", encoding="utf-8")
    wrong = Job((str(tmp_path / "m.csv"), str(tmp_path / "nowhere")), str(tmp_path / "no/r"), model="no-such-model")
    with pytest.raises(ConfigError) as caught:
        runner.run(wrong, Told())
    said = " | ".join(caught.value.faults)
    for words in ("model 'no-such-model'", "line 2", "boss", "nowhere: no such file", "there is no folder"):
        assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


def test_a_run_that_would_score_nothing_stops_and_its_remedy_works(tiny_bundle: Bundle, tmp_path: Path) -> None:
    recordings = tmp_path / "in"
    recordings.mkdir()
    write(recordings / "a.wav", speechlike(4, 1), speechlike(4, 2))
    (recordings / "broken.wav").touch()
    wrong = Job((str(recordings),), str(tmp_path / "r.parquet"), model=str(tiny_bundle.folder), workers=0)
    with pytest.raises(ConfigError, match="--channel-roles agent,customer"):
        runner.run(wrong, Told())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    mended = dataclasses.replace(wrong, settings=RunSettings(channel_roles=("agent", "customer")))
    report = runner.run(mended, Told())
    assert report.by_status == {"unreadable": 1, "ok": 1}


def test_only_broken_recordings_are_a_result_too(tiny_bundle: Bundle, tmp_path: Path) -> None:
    recordings = tmp_path / "in"
    recordings.mkdir()
    (recordings / "broken.wav").touch()
    report = runner.run(
        Job((str(recordings),), str(tmp_path / "r.parquet"), model=str(tiny_bundle.folder), workers=0), Told()
    )
    assert report.by_status == {"unreadable": 1}
    assert report.exit_code == 1
    assert segments_of(report).empty
    assert [name for name in segments_of(report) if name.startswith("p_")] == [f"p_{label}" for label in LABELS]


def test_workers_and_a_scheduler_are_not_given_together(job: Job, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--workers and --scheduler: give one of them"):
        runner.run(at(job, tmp_path, scheduler="tcp://127.0.0.1:9", workers=2), Told())
