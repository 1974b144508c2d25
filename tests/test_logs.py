"""What a run leaves for machines to watch: JSON lines with its id, and Prometheus text."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchser import logs
from batchser.metrics import Meter, write_metrics
from batchser.runner import Report
from batchser.sink import SinkError

REPORT = Report(
    "r1", 1, "2026-11-20T02:00:00.000+00:00", 12.5, 5, 2, {"ok": 4, "failed": 1}, 90.0, 21, 7.2, "m", "o", "s"
)


@pytest.fixture(autouse=True)
def plain_again() -> Iterator[None]:
    yield
    logs.configure("text")


def test_every_json_line_has_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    progress = logs.JsonProgress(quiet=False)
    progress.begin("r1")
    progress.say("reading 2 headers")
    progress.start(120.0, 3)
    progress.advance(80.0, 2, {"decode": 0.25})
    progress.advance(40.0, 1, {})
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logging.getLogger("batchser.pipeline").exception("c7: an unexpected error")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["run_id"] for line in lines] == ["r1"] * 5
    assert [line["message"] for line in lines] == [
        "reading 2 headers", "scoring", "2 of 3 recordings are done", "3 of 3 recordings are done",
        "c7: an unexpected error",
    ]  # fmt: skip
    assert {"event": "shard", "recordings": 2, "audio_s": 80.0, "seconds": {"decode": 0.25}}.items() <= lines[2].items()
    assert (lines[3]["recordings_done"], lines[3]["audio_done_s"]) == (3, 120.0)
    assert lines[4]["level"] == "error"
    assert lines[4]["exception"].endswith("ZeroDivisionError: division by zero")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", lines[0]["time"])


def test_quiet_json_says_errors_alone(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    progress = logs.JsonProgress(quiet=True)
    progress.begin("r1")
    progress.say("reading")
    progress.advance(1.0, 1, {})
    logging.getLogger("batchser.dispatch").error("c7: ended its process")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["c7: ended its process"]


def metrics_of(path: Path) -> dict[str, float]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_of_a_run_and_of_one_that_broke_off(tmp_path: Path) -> None:
    meter = Meter(logs.JsonProgress(quiet=True))
    meter.begin("r1")
    meter.say("now")
    meter.start(90.0, 5)
    meter.advance(60.0, 3, {"decode": 1.0, "scoring": 2.0})
    meter.advance(30.0, 2, {"decode": 0.5})
    path = tmp_path / "batchser.prom"
    write_metrics(path, 1, REPORT, meter.stages)
    found = metrics_of(path)
    assert found['batchser_recordings{status="ok"}'] == 4
    assert found['batchser_recordings{status="crashed"}'] == 0
    assert found['batchser_stage_seconds{stage="decode"}'] == 1.5
    assert (found["batchser_audio_seconds"], found["batchser_exit_code"]) == (90, 1)
    success = found["batchser_last_success_timestamp_seconds"]
    text = path.read_text(encoding="utf-8")
    for name in {name.partition("{")[0] for name in found}:
        assert text.count(f"# TYPE {name} gauge\n") == text.count(f"# HELP {name} ") == 1

    write_metrics(path, 3, None, {})
    assert metrics_of(path) == {"batchser_exit_code": 3, "batchser_last_success_timestamp_seconds": success}
    assert [p.name for p in tmp_path.iterdir()] == ["batchser.prom"]


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="cannot be written"):
        write_metrics(tmp_path / "no/m.prom", 3, None, {})
