"""Preflight: what headers tell, and when a run has nothing to do."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from conftest import RATE_HZ, call, recording, silence, speechlike, write

from batchser import preflight
from batchser.audio import probe
from batchser.bundle import Bundle
from batchser.errors import ConfigError
from batchser.preflight import (
    Header,
    Survey,
    calibrate,
    read_headers,
    refuse_if_nothing_is_scored,
    run_s,
    sample,
    survey,
)
from batchser.records import AudioInfo, Recording
from batchser.scoring import Model
from batchser.settings import LimitSettings, RunSettings


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stereo") / "two.wav", speechlike(4, 1), speechlike(4, 2))


def headers_of(*recordings: Recording) -> list[Header]:
    return read_headers(recordings, LimitSettings(), 0)


def test_headers_come_in_order_with_their_faults(tmp_path: Path, stereo: Path) -> None:
    (tmp_path / "text.wav").write_text("This is no recording, though it is named like one.\n", encoding="utf-8")
    paths = [tmp_path / "missing.wav", stereo, tmp_path / "text.wav", *[stereo] * 20]
    recordings = [recording(path, index) for index, path in enumerate(paths)]
    headers = read_headers(recordings, LimitSettings(), 1)
    assert [header.recording for header in headers] == recordings
    assert [header.fault is None for header in headers] == [False, True, False, *[True] * 20]
    assert "no such file" in (headers[0].fault or "")
    assert [header.duration_s for header in headers[:3]] == [0.0, 4.0, 0.0]
    assert headers[1].info is not None
    assert headers[1].info.num_channels == 2


def test_limits_are_those_of_the_run(stereo: Path) -> None:
    (header,) = read_headers([recording(stereo)], LimitSettings(max_duration_s=3.0), 0)
    assert "4 s or more, expected at most 3 s" in (header.fault or "")


@pytest.mark.parametrize(
    ("roles", "settings"),
    [
        (None, RunSettings()),
        (("agent", "unknown"), RunSettings()),
        (("agent", "customer"), RunSettings(roles=("mixed",))),
        (("customer",), RunSettings()),  # one role for two channels: unreadable, it scores nothing
        (None, RunSettings(channel_roles=("customer", "agent", "unknown"))),
    ],
)
def test_a_run_that_scores_no_channel_is_refused(
    stereo: Path, roles: tuple[str, ...] | None, settings: RunSettings
) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_if_nothing_is_scored(headers_of(recording(stereo, roles=roles)), settings)
    assert "of 1 readable recordings (1 with 2 channels) no channel has one of the roles" in str(caught.value)
    assert ",".join(settings.roles) in str(caught.value)
    assert "--channel-roles agent,customer" in str(caught.value)


@pytest.mark.parametrize(
    ("roles", "settings"),
    [
        (("agent", "customer"), RunSettings()),
        (None, RunSettings(roles=("all",))),
        (None, RunSettings(channel_roles=("customer", "agent"))),
    ],
)
def test_one_scored_channel_is_enough(stereo: Path, roles: tuple[str, ...] | None, settings: RunSettings) -> None:
    others = [recording(stereo, index, ["agent", "agent"]) for index in range(3)]
    refuse_if_nothing_is_scored(headers_of(*others, recording(stereo, 3, roles)), settings)


def test_the_same_signal_twice_is_mixed_and_scored(tmp_path: Path) -> None:
    voice = speechlike(4)
    twice = recording(write(tmp_path / "twice.wav", voice, voice))
    refuse_if_nothing_is_scored(headers_of(twice), RunSettings())
    with pytest.raises(ConfigError, match="nothing would be scored"):
        refuse_if_nothing_is_scored(headers_of(twice), RunSettings(roles=("customer",)))


def test_nothing_readable_is_no_reason_to_refuse(tmp_path: Path) -> None:
    refuse_if_nothing_is_scored(headers_of(recording(tmp_path / "missing.wav")), RunSettings())


def test_speed_is_measured_on_what_is_readable(tiny_model: Model, tmp_path: Path) -> None:
    missing = recording(tmp_path / "missing.wav")
    assert calibrate(sample(headers_of(missing)), tiny_model, RunSettings()) is None
    call_of_15_s = recording(write(tmp_path / "call.wav", call()), 1)
    speed = calibrate(sample(headers_of(missing, call_of_15_s)), tiny_model, RunSettings())
    assert speed is not None
    assert speed > 1


def test_speed_is_measured_where_every_recording_is_long(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_CALIBRATION_S", 5.0)
    longer = recording(write(tmp_path / "longer.wav", silence(60)), 0)
    long = recording(write(tmp_path / "long.wav", call()), 1)
    scored: list[str] = []
    score = preflight.score_recordings

    def watched(recordings, *rest):  # type: ignore[no-untyped-def]
        scored.extend(item.call_id for item in recordings)
        return score(recordings, *rest)

    monkeypatch.setattr(preflight, "score_recordings", watched)
    assert calibrate(sample(headers_of(longer, long)), tiny_model, RunSettings()) is not None
    assert set(scored) == {"long"}


def test_a_survey_counts_what_is_there(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def slowly(*what) -> list[Header]:  # type: ignore[no-untyped-def]
        time.sleep(0.7)
        return read_headers(*what)

    def a_minute(*what) -> float:  # type: ignore[no-untyped-def]
        asked.append(what)
        return 60.0

    monkeypatch.setattr(preflight, "read_headers", slowly)
    monkeypatch.setattr(preflight, "run_s", a_minute)
    whole = write(tmp_path / "a.wav", speechlike(6, 1))
    write(tmp_path / "b.flac", speechlike(12, 2), speechlike(12, 3))
    (tmp_path / "c.wav").write_bytes(whole.read_bytes()[: 44 + 2 * 3 * RATE_HZ])
    (tmp_path / "d.wav").touch()
    found = survey([str(tmp_path)], str(tiny_bundle.folder), (), RunSettings(), workers=3)
    assert found.recordings == 4
    assert found.hours == pytest.approx(21 / 3600, abs=1e-4)
    assert found.formats == {"wav pcm_16, 8000 Hz": 2, "flac pcm_16, 8000 Hz": 1}
    assert found.channels == {"1": 2, "2": 1}
    assert found.truncated == 1
    assert [call_id for call_id, _ in found.faults] == ["d"]
    assert found.warning is None
    assert found.workers == 3
    assert found.x_realtime is not None
    ((total_s, longest_s, speed, processes),) = asked
    assert (total_s, longest_s, processes) == (pytest.approx(21), pytest.approx(12), 3)
    assert speed == pytest.approx(found.x_realtime, abs=0.1)
    assert found.run_minutes is not None
    assert found.run_minutes > 1.0  # with what the headers took
    assert {path.name for path in tmp_path.iterdir()} == {"a.wav", "b.flac", "c.wav", "d.wav"}


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are forked: a spawned one would not see what a test patches. Such a one weighs what all tests do."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(preflight.multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(preflight, "memory_limit_bytes", lambda processes: 2**40)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.usefixtures("forking")
def test_a_survey_outlives_a_recording_that_kills_its_process(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.wav", speechlike(3))
    monkeypatch.setattr(preflight, "load_model", lambda *_: None)
    monkeypatch.setattr(preflight, "score_recordings", lambda *_: os._exit(1))
    found = survey([str(tmp_path / "a.wav")], str(tiny_bundle.folder), (), RunSettings(), workers=2)
    assert (found.recordings, found.x_realtime, found.run_minutes) == (1, None, None)
    assert "how long a run will take is not known: the process" in (found.warning or "")
    assert "how long a run will take is not known" in found.page()


def test_what_is_interrupted_does_not_wait_for_its_processes() -> None:
    """They do not hear Ctrl-C."""
    begun = []

    def interrupted() -> None:
        with preflight._pool(1) as pool:
            assert pool.submit(abs, -1).result() == 1
            begun.append(pool.submit(time.sleep, 30))
            while not begun[0].running():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert isinstance(begun[0].exception(), BrokenProcessPool)  # it did not sleep to its end


def test_a_run_takes_its_start_and_no_less_than_its_longest_recording() -> None:
    start_s = run_s(0, 0, 1000, 2)
    assert run_s(36_000, 300, 1000, 1) == pytest.approx(start_s + 36)
    assert 18 < run_s(36_000, 300, 1000, 2) - start_s < 36
    assert run_s(36_000, 36_000, 1000, 2) == pytest.approx(start_s + 36)
    assert run_s(36_000, 300, 1000, 0) == pytest.approx(start_s + 36)


def test_a_survey_is_a_page_for_people() -> None:
    page = Survey(
        recordings=30,
        hours=2.5,
        unknown_length=1,
        formats={"wav ulaw, 8000 Hz": 5},
        channels={"1": 4, "2": 1},
        truncated=2,
        faults=[(f"call-{number}", "the file is empty") for number in range(25)],
        warning="nothing would be scored",
        x_realtime=512.3,
        workers=2,
        run_minutes=0.31,
    ).page()
    lines = page.splitlines()
    assert lines[0] == "30 recordings, 2.50 hours of audio"
    assert lines[1] == "1 do not state their length; they are not in the hours"
    assert lines[2:5] == [
        "         5  wav ulaw, 8000 Hz",
        "         4  with 1 channel",
        "         1  with 2 channels",
    ]
    assert lines[5] == "2 are truncated or have a wrong header: scored as far as they go"
    assert lines[6:8] == ["25 cannot be read:", "  call-0: the file is empty"]
    assert lines[27:29] == ["  and 5 more", "warning: nothing would be scored"]
    assert lines[-1] == "a run will take about 0.3 minutes here with 2 workers (measured: 512 x real time a process)"
    assert len(lines) == 30


def same_signal_that_dies(recording: Recording, limits: LimitSettings) -> bool:
    """Stand for a decoder that kills its process, or finds two channels that are one."""
    if recording.call_id == "deadly":
        os._exit(1)
    return recording.call_id == "same"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.usefixtures("forking")
@pytest.mark.parametrize(("call_id", "refused"), [("deadly", False), ("same", False), ("other", True)])
def test_whether_two_channels_are_one_is_found_out_elsewhere(
    stereo: Path, monkeypatch: pytest.MonkeyPatch, call_id: str, refused: bool
) -> None:
    headers = headers_of(*(Recording(k, call_id if k == 40 else str(k), str(stereo)) for k in range(50)))
    monkeypatch.setattr(preflight.audio, "channels_carry_same_signal", same_signal_that_dies)
    if refused:
        with pytest.raises(ConfigError, match="nothing would be scored"):
            refuse_if_nothing_is_scored(headers, RunSettings(), 2)
    else:
        refuse_if_nothing_is_scored(headers, RunSettings(), 2)


def probe_that_dies(recording: Recording, limits: LimitSettings) -> AudioInfo:
    """Stand for a decoder that kills its process on one file."""
    if recording.call_id == "deadly":
        os._exit(1)
    return probe(recording, limits)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.usefixtures("forking")
@pytest.mark.parametrize(("chunk", "deadly"), [(256, {2}), (2, {2}), (3, {0, 7, 8})])
def test_a_file_that_kills_its_decoder_costs_its_own_header(
    stereo: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, deadly: set[int]
) -> None:
    recordings = [Recording(k, "deadly" if k in deadly else str(k), str(stereo)) for k in range(9)]
    monkeypatch.setattr(preflight, "_CHUNK", chunk)
    monkeypatch.setattr(preflight.audio, "probe", probe_that_dies)
    headers = read_headers(recordings, LimitSettings(), 3)
    assert [header.recording for header in headers] == recordings
    assert {header.recording.index for header in headers if header.info is None} == deadly
    assert {header.fault for header in headers if header.info is None} == {
        "the process that read its header died, grew too large, or took too long"
    }
